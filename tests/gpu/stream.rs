//! ZipGEMM among other kernels of a stream: the same bits in every run, in order, in graphs.

use half::bf16;
use zipserv::gpu::{Buffer, DeviceMatrix, GpuError, Operands, Plan, PlanOptions, RawOperands};
use zipserv_bench::Timer;

use crate::{
    data::Kind,
    lab::{Lab, plan_of, plans_of, quick},
};

/// Outputs of `runs` launches, none of which waits for the host.
fn repeat(
    lab: &Lab,
    plan: &Plan,
    weights: &DeviceMatrix,
    x: &Buffer<bf16>,
    runs: usize,
) -> Vec<u16> {
    let n = x.len() / weights.cols();
    let len = n * weights.rows();
    let y = lab.buffer(&vec![u16::MAX; runs * len]);
    for run in 0..runs {
        let y = y.address() + (2 * run * len) as u64;
        let operands = RawOperands::new(weights, x.address(), n, y);
        // SAFETY: each run has its own outputs.
        unsafe { lab.launch(plan, weights, &operands) };
    }
    lab.bits(&y)
}

#[test]
fn the_same_bits_in_a_hundred_runs() {
    for lab in Lab::each() {
        let (runs, (m, k)) = match quick() {
            true => (3, (200, 776)),
            false => (100, (1000, 4104)),
        };
        let weights = lab.upload(m, k, &Kind::Gaussian.weights(m, k));
        for (kernel, tokens) in Plan::kernels(lab.device) {
            let n = tokens - 1;
            let x = lab.buffer(&Kind::Gaussian.activations(n, k));
            for plan in plans_of(&weights, n, kernel, &[7, 132]) {
                let plain = plan.with_pdl(false);
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
        let weights = lab.upload(size, size, &Kind::Gaussian.weights(size, size));
        for (kernel, tokens) in Plan::kernels(lab.device) {
            // Two slices of a kernel for few tokens, two output tiles of the others.
            let n = 2 * tokens;
            let x = Kind::Gaussian.activations(n, size);
            let plan = plan_of(&weights, n, kernel);
            let run = |plan: Plan| {
                // Each launch reads what the one before it wrote, and writes what that one read.
                let buffers = [lab.buffer(&x), lab.buffer(&x)];
                for i in 0..depth {
                    let [from, to] = [&buffers[i % 2], &buffers[(i + 1) % 2]];
                    let (x, y) = (from.address(), to.address());
                    // SAFETY: both have the size.
                    unsafe { lab.launch(&plan, &weights, &RawOperands::new(&weights, x, n, y)) };
                    if !plan.is_pdl() {
                        lab.stream.synchronize().unwrap();
                    }
                }
                lab.bits(&buffers[depth % 2])
            };
            let same = run(plan) == run(plan.with_pdl(false));
            assert!(same, "{plan}: a launch was ahead of its activations");
        }
    }
}

#[test]
fn a_graph_replays() {
    let options = PlanOptions::default();
    for mut lab in Lab::each() {
        graph_replays(&mut lab, (500, 1000), 5, &options);
        // Many tokens, at once and in slices.
        graph_replays(&mut lab, (500, 1000), 200, &options);
        graph_replays(&mut lab, (500, 1001), 200, &options);
    }
}

#[test]
fn a_graph_of_decoupled_plans_replays() {
    let options = PlanOptions::default().decoupled();
    for mut lab in Lab::each_with_dense() {
        graph_replays(&mut lab, (500, 1000), 200, &options);
        graph_replays(&mut lab, (501, 1001), 333, &options);
    }
}

#[test]
fn a_graph_of_batch_invariant_plans_replays() {
    let Some(mut lab) = Lab::hopper() else {
        return;
    };
    // Two groups, of two kernels.
    let options = PlanOptions::default().batch_invariant();
    graph_replays(&mut lab, (501, 1000), 300, &options);
}

fn graph_replays(lab: &mut Lab, (m, k): (usize, usize), n: usize, options: &PlanOptions) {
    let weights = lab.upload(m, k, &Kind::Gaussian.weights(m, k));
    let plan = match Plan::new(&weights, n, options) {
        // A file of PTX may have no such kernels.
        Err(GpuError::NoKernel { .. }) => return,
        plan => plan.unwrap(),
    };
    let values = Kind::Gaussian.activations(n, k);
    let expected = lab.multiply(&plan, &weights, &values, [0; 2]);
    let x = lab.buffer(&values);
    let timer = Timer::new(&lab.stream).unwrap();
    for replays in 0..3 {
        let mut y = lab.buffer(&vec![u16::MAX; n * m]);
        let (stream, work) = (&lab.stream, &mut lab.workspace);
        // SAFETY: weights, operands and workspace stay until the last replay.
        let graph = unsafe {
            timer.record(3, || {
                (0..3).try_for_each(|_| plan.run(stream, &weights, Operands::new(&x, &mut y), work))
            })
        };
        let graph = graph.unwrap();
        for _ in 0..replays {
            timer.replay(&graph).unwrap();
        }
        drop(graph);
        let y = lab.bits(&y);
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
