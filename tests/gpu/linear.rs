//! A layer gives what sums in FP64 give, whoever calls it: for any number of tokens, from threads
//! with streams of their own, recorded as a graph.

use half::bf16;
use zipserv::gpu::{
    Buffer, Family, GpuError, Linear, Need, Operand, Operands, OutputType, Outputs, PlanOptions,
    RawOperands, Stream, Workspace,
};
use zipserv_bench::Timer;

use crate::{
    data::{Kind, Product},
    lab::{GUARD, Lab, compressed, quick, refused},
};

const TOKENS: [usize; 12] = [1, 65, 8, 3, 16, 33, 64, 129, 200, 300, 1000, 2049];

fn tokens() -> &'static [usize] {
    if quick() { &TOKENS[..2] } else { &TOKENS }
}

/// A layer, and what it multiplies.
struct Problem {
    layer: Linear,
    bias: Option<Vec<f32>>,
    x: Vec<u16>,
    product: Product,
}

impl Problem {
    /// Activations of as many tokens as any test wants.
    fn new(lab: &Lab, (m, k): (usize, usize)) -> Self {
        let most = tokens().iter().copied().max().unwrap();
        let bits = Kind::Gaussian.weights(m, k);
        let x = Kind::Gaussian.activations(most, k);
        Self {
            layer: Linear::new(lab.device, &compressed(m, k, &bits)).unwrap(),
            bias: None,
            product: Product::new(&x, &bits, k),
            x,
        }
    }

    fn with_bias(self, lab: &Lab) -> Self {
        let m = self.layer.weights().rows();
        let bias: Vec<bf16> = (0..m)
            .map(|row| bf16::from_f32(row as f32 / 64.0 - 1.0))
            .collect();
        let layer = self
            .layer
            .with_bias(Buffer::from_slice(lab.device, &bias).unwrap());
        Self {
            layer: layer.unwrap(),
            bias: Some(bias.into_iter().map(bf16::to_f32).collect()),
            ..self
        }
    }

    fn with_options(self, options: PlanOptions) -> Self {
        Self {
            layer: self.layer.with_options(options),
            ..self
        }
    }

    /// Activations of the first `n` tokens on the device.
    fn activations(&self, lab: &Lab, n: usize) -> Buffer<bf16> {
        lab.buffer(&self.x[..n * self.layer.weights().cols()])
    }

    /// Fails unless `y` are as close to the outputs of the first tokens as FP32 sums, rounded to
    /// `output`, let them be.
    fn check(&self, y: &[f32], output: OutputType, what: &str) {
        let m = self.layer.weights().rows();
        let rounding = match output {
            OutputType::Bf16 => 1.0 / 256.0,
            OutputType::F32 => 2f64.powi(-23),
        };
        for (at, (&value, &(sum, all))) in y.iter().zip(self.product.sums()).enumerate() {
            let bias = self
                .bias
                .as_ref()
                .map_or(0.0, |bias| f64::from(bias[at % m]));
            let (value, exact) = (f64::from(value), sum + bias);
            let close = (value - exact).abs() <= exact.abs() * rounding + all * 2e-6 + 1e-38;
            let (token, row) = (at / m, at % m);
            assert!(
                close,
                "{what}: token {token}, row {row}: {value:e}, not {exact:e}"
            );
        }
    }

    /// Calls the layer and checks outputs of both types.
    fn run(&self, lab: &mut Lab, n: usize, what: &str) {
        let x = self.activations(lab, n);
        let m = self.layer.weights().rows();
        let (stream, work) = (&lab.stream, &mut lab.workspace);
        let mut y = Buffer::<bf16>::zeroed(lab.device, n * m).unwrap();
        self.layer.forward(stream, &x, n, &mut y, work).unwrap();
        let outputs: Vec<f32> = y
            .to_vec(stream)
            .unwrap()
            .into_iter()
            .map(bf16::to_f32)
            .collect();
        self.check(
            &outputs,
            OutputType::Bf16,
            &format!("{what}, {n} tokens, BF16"),
        );
        let mut y = Buffer::<f32>::zeroed(lab.device, n * m).unwrap();
        self.layer.forward(stream, &x, n, &mut y, work).unwrap();
        let outputs = y.to_vec(stream).unwrap();
        self.check(
            &outputs,
            OutputType::F32,
            &format!("{what}, {n} tokens, FP32"),
        );
    }
}

#[test]
fn layers_of_any_tokens() {
    for mut lab in Lab::each() {
        // The last one's activations are not for tensor copies.
        for size in [(200, 328), (133, 267)] {
            let problem = Problem::new(&lab, size);
            let biased = Problem::new(&lab, size).with_bias(&lab);
            for &n in tokens() {
                problem.run(&mut lab, n, "no bias");
                biased.run(&mut lab, n, "bias");
            }
        }
    }
}

#[test]
fn decoupled_layers() {
    for mut lab in Lab::each_with_dense() {
        let within = PlanOptions::default().dense_workspace(lab.workspace.dense_bytes());
        for options in [PlanOptions::default().decoupled(), within] {
            let problem = Problem::new(&lab, (136, 264)).with_options(options.clone());
            let biased = Problem::new(&lab, (136, 264));
            let biased = biased.with_bias(&lab).with_options(options);
            for &n in tokens() {
                problem.run(&mut lab, n, "decoupled");
                biased.run(&mut lab, n, "decoupled, bias");
            }
        }
    }
}

/// A token's outputs have the same bits in every call of a batch-invariant layer, which has one plan
/// for all of them.
#[test]
fn batch_invariant_layers() {
    let Some(mut lab) = Lab::hopper() else {
        return;
    };
    let (m, k) = (301, 1032);
    let options = PlanOptions::default().batch_invariant();
    let problem = Problem::new(&lab, (m, k))
        .with_bias(&lab)
        .with_options(options);
    let mut outputs = |first: usize, n: usize| {
        let x = lab.buffer(&problem.x[first * k..][..n * k]);
        let mut y = Buffer::<f32>::zeroed(lab.device, n * m).unwrap();
        let (stream, work) = (&lab.stream, &mut lab.workspace);
        problem.layer.forward(stream, &x, n, &mut y, work).unwrap();
        y.to_vec(stream).unwrap()
    };
    let most = problem.x.len() / k;
    let all = outputs(0, most);
    problem.check(&all, OutputType::F32, "batch invariant");
    for &n in tokens() {
        for first in [0, (most - n) / 2, most - n] {
            let same = outputs(first, n) == all[first * m..][..n * m];
            assert!(same, "{n} tokens from {first} on: other bits");
        }
    }
    let plans = [1, 300].map(|n| problem.layer.prepare(n).unwrap());
    assert_eq!(plans[0], plans[1]);
}

/// Threads with a stream and a workspace each have one layer, and find its plans at the same time.
#[test]
fn layers_of_many_threads() {
    for lab in Lab::each() {
        let threads = if quick() { 2 } else { 8 };
        let problem = &Problem::new(&lab, (500, 1000)).with_bias(&lab);
        let m = problem.layer.weights().rows();
        let calls = |thread: usize| {
            let stream = Stream::new(lab.device).unwrap();
            let mut work = Workspace::new(lab.device).unwrap();
            for round in 0..2 {
                for at in 0..tokens().len() {
                    let n = tokens()[(at + thread) % tokens().len()];
                    let x = problem.activations(&lab, n);
                    let mut y = Buffer::<f32>::zeroed(lab.device, n * m).unwrap();
                    problem
                        .layer
                        .forward(&stream, &x, n, &mut y, &mut work)
                        .unwrap();
                    let outputs = y.to_vec(&stream).unwrap();
                    let what = format!("thread {thread}, round {round}, {n} tokens");
                    problem.check(&outputs, OutputType::F32, &what);
                }
            }
            assert!(work.is_empty(&stream).unwrap(), "sums are left over");
        };
        std::thread::scope(|scope| {
            for thread in 0..threads {
                let calls = &calls;
                scope.spawn(move || calls(thread));
            }
        });
    }
}

/// A layer feeds another through one workspace, and nothing waits between them.
#[test]
fn layers_share_a_workspace() {
    for mut lab in Lab::each() {
        let (k, hidden, m) = (328, 200, 136);
        for n in [1, 40, 300] {
            let layer = |rows, cols| {
                let bits = Kind::Gaussian.weights(rows, cols);
                let layer = Linear::new(lab.device, &compressed(rows, cols, &bits));
                (layer.unwrap(), bits)
            };
            let [(first, _), (second, bits)] = [layer(hidden, k), layer(m, hidden)];
            let x = lab.buffer(&Kind::Gaussian.activations(n, k));
            let mut between = Buffer::<bf16>::zeroed(lab.device, n * hidden).unwrap();
            let mut y = Buffer::<bf16>::zeroed(lab.device, n * m).unwrap();
            let (stream, work) = (&lab.stream, &mut lab.workspace);
            for _ in 0..20 {
                first.forward(stream, &x, n, &mut between, work).unwrap();
                second.forward(stream, &between, n, &mut y, work).unwrap();
            }
            let product = Product::new(&lab.bits(&between), &bits, hidden);
            product.check(
                &lab.bits(&y),
                &format_args!("{n} tokens through two layers"),
            );
        }
    }
}

/// Raw calls add the layer's bias, unless they bring one; strides and old outputs are as they ask.
#[test]
fn raw_calls_of_layers() {
    for lab in Lab::each() {
        let problem = Problem::new(&lab, (133, 264)).with_bias(&lab);
        let weights = problem.layer.weights();
        let (m, n) = (weights.rows(), 40usize.min(problem.x.len() / 264));
        let x = problem.activations(&lab, n);
        let old = vec![2f32; n * m];
        let ones = Buffer::from_slice(lab.device, &vec![bf16::ONE; m]).unwrap();
        let multiply = |bias: Option<u64>, accumulate: bool| {
            let y = Buffer::from_slice(lab.device, &old).unwrap();
            let operands = RawOperands {
                output: OutputType::F32,
                bias,
                accumulate,
                ..RawOperands::new(weights, x.address(), n, y.address())
            };
            let (stream, work) = (lab.raw(), &lab.workspace);
            // SAFETY: all have room; one stream has the workspace.
            unsafe { problem.layer.forward_raw(stream, &operands, work).unwrap() };
            y.to_vec(&lab.stream).unwrap()
        };
        let own = multiply(None, false);
        problem.check(&own, OutputType::F32, "raw");
        let bias = problem.bias.as_ref().unwrap();
        let close =
            |value: f32, expected: f32| (value - expected).abs() <= 1e-5 * expected.abs() + 1e-5;
        for (at, ((&theirs, &both), &own)) in multiply(Some(ones.address()), false)
            .iter()
            .zip(&multiply(None, true))
            .zip(&own)
            .enumerate()
        {
            assert!(
                close(theirs, own - bias[at % m] + 1.0),
                "output {at}: a bias of theirs"
            );
            assert!(close(both, own + 2.0), "output {at}: old outputs");
        }
    }
}

/// A layer whose plan is there can be recorded; one whose plan is not says so, and the recording goes
/// on.
#[test]
fn layers_in_graphs() {
    for mut lab in Lab::each() {
        let options = PlanOptions::default();
        graph(&mut lab, &options, &[1, 40, 300]);
        if lab.device.family() == Family::Hopper {
            graph(&mut lab, &options.clone().batch_invariant(), &[300]);
        }
    }
    for mut lab in Lab::each_with_dense() {
        graph(&mut lab, &PlanOptions::default().decoupled(), &[40, 300]);
    }
}

fn graph(lab: &mut Lab, options: &PlanOptions, tokens: &[usize]) {
    let timer = Timer::new(&lab.stream).unwrap();
    for &n in tokens {
        let (m, k) = (136, 264);
        let bits = Kind::Gaussian.weights(m, k);
        let layer = Linear::new(lab.device, &compressed(m, k, &bits)).unwrap();
        let layer = layer.with_options(options.clone());
        let values = Kind::Gaussian.activations(n, k);
        let product = Product::new(&values, &bits, k);
        let x = lab.buffer(&values);
        let mut y = lab.buffer(&vec![GUARD; n * m]);
        let (stream, work) = (&lab.stream, &mut lab.workspace);
        // SAFETY: nothing is recorded.
        let unprepared = unsafe {
            timer
                .record(1, || layer.forward(stream, &x, n, &mut y, work))
                .map(|_| ())
        };
        refused!(unprepared, GpuError::NotPrepared { tokens } if *tokens == n);
        // The stream is as it was.
        stream.synchronize().unwrap();

        let plan = layer.prepare(n).unwrap();
        // SAFETY: layer, operands and workspace stay until the last replay.
        let graph = unsafe {
            let launches = || (0..2).try_for_each(|_| layer.forward(stream, &x, n, &mut y, work));
            timer.record(2, launches).unwrap()
        };
        for _ in 0..2 {
            timer.replay(&graph).unwrap();
        }
        drop(graph);
        product.check(
            &lab.bits(&y),
            &format_args!("{n} tokens in a graph, {plan}"),
        );
    }
}

/// What belongs to a layer and what it is called with must fit it.
#[test]
fn layers_refuse() {
    for mut lab in Lab::each() {
        let problem = Problem::new(&lab, (100, 200));
        let weights = problem.layer.weights();
        let (m, k) = (weights.rows(), weights.cols());
        for len in [0, m - 1, m + 1] {
            let layer = Linear::new(lab.device, &compressed(1, 1, &[0])).unwrap();
            let bias = Buffer::from_slice(lab.device, &vec![bf16::ONE; len]).unwrap();
            refused!(
                layer.with_bias(bias).map(|_| ()),
                GpuError::Length { operand: Operand::Bias, expected: Need::Exactly(1), got }
                    if *got == len
            );
        }
        let x = problem.activations(&lab, 1);
        let mut y = lab.buffer(&vec![GUARD; m]);
        let [none, bias] = [0, m].map(|len| lab.buffer(&vec![0; len]));
        let (stream, work) = (&lab.stream, &mut lab.workspace);
        for n in [0, usize::MAX] {
            refused!(problem.layer.prepare(n), GpuError::Tokens { tokens, .. } if *tokens == n);
            refused!(
                problem.layer.forward(stream, &x, n, &mut y, work),
                GpuError::Tokens { tokens, .. } if *tokens == n
            );
        }
        refused!(
            problem
                .layer
                .forward(stream, x.slice(..k - 1), 1, &mut y, work),
            GpuError::Length {
                operand: Operand::Activations,
                expected: Need::AtLeast(_),
                got: 199
            }
        );
        let short = Outputs::from(y.slice_mut(1..));
        refused!(
            problem.layer.forward(stream, &x, 1, short, work),
            GpuError::Length {
                operand: Operand::Outputs,
                expected: Need::AtLeast(_),
                got: 99
            }
        );
        // A bias belongs to output features, which empty weights have no sums for.
        let empty = Linear::new(lab.device, &compressed(m, 0, &[])).unwrap();
        let plan = problem.layer.prepare(1).unwrap();
        let operands = Operands::new(&none, &mut y).tokens(1).bias(&bias);
        refused!(
            plan.run(stream, empty.weights(), operands, work),
            GpuError::EmptyBias
        );
        assert!(lab.bits(&y).iter().all(|&y| y == GUARD), "it ran");
    }
}
