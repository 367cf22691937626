//! ZipGEMM among other kernels of a stream: the same bits in every run, in order, in graphs.

use cust::{
    context::CurrentContext,
    memory::{CopyDestination, DeviceBuffer},
};
use zipserv::{
    bench::Timer,
    cuda::{CudaError, DeviceMatrix, GemmOperands, Gpu, Plan, zipgemm, zipgemm_plan},
};

use crate::{
    data::Kind,
    lab::{Lab, quick, upload},
};

fn buffer(values: &[u16]) -> DeviceBuffer<u16> {
    let buffer = DeviceBuffer::from_slice(values).unwrap();
    CurrentContext::synchronize().unwrap();
    buffer
}

fn download(lab: &Lab, buffer: &DeviceBuffer<u16>) -> Vec<u16> {
    lab.stream.synchronize().unwrap();
    let mut values = vec![0; buffer.len()];
    buffer.copy_to(&mut values).unwrap();
    values
}

/// Outputs of `runs` launches, none of which waits for the host.
fn repeat(
    lab: &Lab,
    plan: &Plan,
    weights: &DeviceMatrix,
    x: &DeviceBuffer<u16>,
    runs: usize,
) -> Vec<u16> {
    let n = x.len() / weights.cols();
    let len = n * weights.rows();
    let y = buffer(&vec![u16::MAX; runs * len]);
    for run in 0..runs {
        let x = x.as_device_ptr().as_raw();
        let y = y.as_device_ptr().as_raw() + (2 * run * len) as u64;
        // SAFETY: each run has its own outputs.
        unsafe { lab.launch(plan, weights, &GemmOperands::new(weights, x, n, y)) };
    }
    download(lab, &y)
}

#[test]
fn the_same_bits_in_a_hundred_runs() {
    for lab in Lab::each() {
        let (runs, (m, k)) = match quick() {
            true => (3, (200, 776)),
            false => (100, (1000, 4104)),
        };
        let weights = upload(m, k, &Kind::Gaussian.weights(m, k));
        for (kernel, tokens) in Plan::kernels(lab.gpu) {
            let n = tokens - 1;
            let x = buffer(&Kind::Gaussian.activations(n, k));
            for plan in lab.plans(&weights, n, kernel, &[7, 132]) {
                let plain = plan.with_dependent(false);
                let first = repeat(&lab, &plain, &weights, &x, 1);
                // Dependent launches, which may overlap, then plain ones.
                for plan in [plan, plain] {
                    let all = repeat(&lab, &plan, &weights, &x, runs);
                    let same = all.chunks(n * m).all(|y| y == first);
                    assert!(same, "{plan}: runs differ");
                }
            }
        }
    }
}

#[test]
fn a_chain_of_dependent_launches_keeps_its_order() {
    for lab in Lab::each() {
        let size = if quick() { 256 } else { 1024 };
        let depth = if quick() { 4 } else { 50 };
        let weights = upload(size, size, &Kind::Gaussian.weights(size, size));
        for (kernel, tokens) in Plan::kernels(lab.gpu) {
            // Two slices of a kernel for few tokens, two output tiles of the others.
            let n = 2 * tokens;
            let x = Kind::Gaussian.activations(n, size);
            let plan = Plan::with_kernel(lab.gpu, &weights, n, kernel).unwrap();
            let run = |plan: Plan| {
                // Each launch reads what the one before it wrote, and writes what that one read.
                let buffers = [buffer(&x), buffer(&x)];
                for i in 0..depth {
                    let [from, to] = [&buffers[i % 2], &buffers[(i + 1) % 2]];
                    let (x, y) = (from.as_device_ptr().as_raw(), to.as_device_ptr().as_raw());
                    // SAFETY: both have the size.
                    unsafe { lab.launch(&plan, &weights, &GemmOperands::new(&weights, x, n, y)) };
                    if !plan.is_dependent() {
                        lab.stream.synchronize().unwrap();
                    }
                }
                download(&lab, &buffers[depth % 2])
            };
            let same = run(plan) == run(plan.with_dependent(false));
            assert!(same, "{plan}: a launch was ahead of its activations");
        }
    }
}

#[test]
fn a_graph_replays() {
    for mut lab in Lab::each() {
        graph_replays(&mut lab, (500, 1000), 5, zipgemm_plan);
        // Many tokens, at once and in slices.
        graph_replays(&mut lab, (500, 1000), 200, zipgemm_plan);
        graph_replays(&mut lab, (500, 1001), 200, zipgemm_plan);
    }
}

#[test]
fn a_graph_of_decoupled_plans_replays() {
    for mut lab in Lab::each_with_dense() {
        graph_replays(&mut lab, (500, 1000), 200, Plan::decoupled);
        graph_replays(&mut lab, (501, 1001), 333, Plan::decoupled);
    }
}

#[test]
fn a_graph_of_batch_invariant_plans_replays() {
    let Some(mut lab) = Lab::hopper() else {
        return;
    };
    // Two groups, of two kernels.
    graph_replays(&mut lab, (501, 1000), 300, |gpu, weights, _| {
        Plan::batch_invariant(gpu, weights)
    });
}

fn graph_replays(
    lab: &mut Lab,
    (m, k): (usize, usize),
    n: usize,
    plan: fn(&Gpu, &DeviceMatrix, usize) -> Result<Plan, CudaError>,
) {
    let weights = upload(m, k, &Kind::Gaussian.weights(m, k));
    let Ok(plan) = plan(lab.gpu, &weights, n) else {
        return;
    };
    let values = Kind::Gaussian.activations(n, k);
    let expected = lab.multiply(&plan, &weights, &values, [0; 2]);
    let x = buffer(&values);
    // SAFETY: the lab outlives the timer.
    let timer = unsafe { Timer::new(lab.raw()).unwrap() };
    for replays in 0..3 {
        let mut y = buffer(&vec![u16::MAX; n * m]);
        let (gpu, stream, work) = (lab.gpu, &lab.stream, &mut lab.workspace);
        let graph = timer.record(3, || {
            (0..3).try_for_each(|_| zipgemm(gpu, stream, &plan, &weights, &x, &mut y, work))
        });
        let graph = graph.unwrap();
        for _ in 0..replays {
            timer.replay(&graph).unwrap();
        }
        drop(graph);
        let y = download(lab, &y);
        if replays == 0 {
            assert!(
                y.iter().all(|&v| v == u16::MAX),
                "recording ran the launches"
            );
        } else {
            assert!(y == expected, "a replay differs");
        }
    }
}
