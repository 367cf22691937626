//! Bias, FP32 outputs, addition to what the outputs hold, and rows apart: every combination gives
//! what sums in FP64 give, and, unless weights are decompressed to memory first, the very bits that
//! FP32 arithmetic makes of the kernel's own sums.

use std::fmt::Debug;

use bytemuck::Pod;
use half::bf16;
use rand::{Rng, SeedableRng, rngs::SmallRng};
use rand_distr::StandardNormal;
use zipserv::gpu::{
    Buffer, DeviceMatrix, GpuError, Need, Operand, Operands, OutputType, Plan, RawOperands, View,
};

use crate::{
    data::{Kind, Product},
    lab::{
        GUARD, Guarded, Lab, NAN, decoupled_plan, invariant_plan, plan, plan_of, plans_of, quick,
        refused,
    },
};

const TOKENS: [usize; 8] = [1, 65, 8, 13, 33, 64, 200, 300];
/// Features: the last ones fill neither a vector nor a tile.
const M: usize = 133;

fn tokens() -> &'static [usize] {
    if quick() { &TOKENS[..2] } else { &TOKENS }
}

/// Bits of a type of outputs.
trait Bits: Pod + PartialEq + Debug {
    const OUTPUT: OutputType;
    /// What lies around and between rows.
    const GAP: Self;
    /// What outputs hold that are not to be read.
    const NAN: Self;

    fn rounded(value: f32) -> Self;
    fn value(self) -> f32;
}

impl Bits for u16 {
    const OUTPUT: OutputType = OutputType::Bf16;
    const GAP: Self = GUARD;
    const NAN: Self = NAN;

    fn rounded(value: f32) -> Self {
        bf16::from_f32(value).to_bits()
    }

    fn value(self) -> f32 {
        bf16::from_bits(self).to_f32()
    }
}

impl Bits for u32 {
    const OUTPUT: OutputType = OutputType::F32;
    const GAP: Self = 0x1234_5678;
    const NAN: Self = u32::MAX >> 1;

    fn rounded(value: f32) -> Self {
        value.to_bits()
    }

    fn value(self) -> f32 {
        f32::from_bits(self)
    }
}

/// Values about as large as the sums, so that some outputs are much smaller than what is added up:
/// a sum that was rounded on the way would show.
fn addends(len: usize, seed: u64) -> Vec<f32> {
    let mut rng = SmallRng::seed_from_u64(seed);
    let value = |_| 0.3 * rng.sample::<f32, _>(StandardNormal);
    (0..len).map(value).collect()
}

/// Rows of `width` that start `stride` apart.
fn apart<T: Copy>(values: &[T], width: usize, stride: usize, gap: T) -> Vec<T> {
    let rows = values.chunks(width);
    let mut all = vec![gap; (rows.len() - 1) * stride + width];
    for (row, values) in rows.enumerate() {
        all[row * stride..][..width].copy_from_slice(values);
    }
    all
}

/// The rows again, if the gaps between them are as they were.
fn together<T: Bits>(all: &[T], width: usize, stride: usize) -> Vec<T> {
    let rows = all.chunks(stride).flat_map(|row| {
        let (values, gap) = row.split_at(width);
        let whole = gap.iter().all(|&value| value == T::GAP);
        assert!(whole, "something is written between the rows");
        values
    });
    rows.copied().collect()
}

/// A multiplication but for its epilogue.
struct Problem<'a> {
    lab: &'a Lab,
    weights: &'a DeviceMatrix,
    n: usize,
    x: &'a Guarded<u16>,
    x_stride: usize,
    product: &'a Product,
    bias: &'a [f32],
    old: &'a [f32],
}

impl Problem<'_> {
    /// Outputs of rows `stride` apart.
    fn outputs<T: Bits>(
        &self,
        plan: &Plan,
        stride: usize,
        add_bias: bool,
        accumulate: bool,
    ) -> Vec<T> {
        let before: Vec<T> = match accumulate {
            true => self.old.iter().map(|&value| T::rounded(value)).collect(),
            false => vec![T::NAN; self.old.len()],
        };
        let y = Guarded::new(self.lab, &apart(&before, M, stride, T::GAP), T::GAP, 0);
        let bias: Vec<u16> = self.bias.iter().map(|&value| u16::rounded(value)).collect();
        // Aligned to nothing but its type.
        let bias = Guarded::new(self.lab, &bias, NAN, 1);
        let operands = RawOperands {
            x_stride: self.x_stride,
            y_stride: stride,
            output: T::OUTPUT,
            bias: add_bias.then(|| bias.address()),
            accumulate,
            ..RawOperands::new(self.weights, self.x.address(), self.n, y.address())
        };
        // SAFETY: all have room.
        unsafe { self.lab.launch(plan, self.weights, &operands) };
        together(&y.values(self.lab), M, stride)
    }

    /// Checks one combination; `sums` are the plan's own.
    fn check<T: Bits>(
        &self,
        plan: &Plan,
        sums: &[u32],
        stride: usize,
        add_bias: bool,
        accumulate: bool,
    ) {
        let outputs = self.outputs::<T>(plan, stride, add_bias, accumulate);
        for (at, (&bits, &sum)) in outputs.iter().zip(sums).enumerate() {
            let (token, feature) = (at / M, at % M);
            let mut expected = sum.value();
            let (mut exact, all) = self.product.sums()[at];
            // What FP32 sums may be off by, as in `Product::check`.
            let mut error = all * 2e-6;
            let mut add = |addend: f32| {
                expected += addend;
                exact += f64::from(addend);
                error += 2f64.powi(-24) * (exact.abs() + error);
            };
            if add_bias {
                add(u16::rounded(self.bias[feature]).value());
            }
            if accumulate {
                add(T::rounded(self.old[at]).value());
            }
            if T::OUTPUT == OutputType::Bf16 {
                error += 2f64.powi(-8) * (exact.abs() + error);
            }
            let value = f64::from(bits.value());
            let what = || {
                let Self { n, x_stride, .. } = self;
                format!(
                    "{n} tokens, {:?}, strides {x_stride} and {stride}, bias {add_bias}, \
                     accumulate {accumulate}, {plan}: token {token}, feature {feature}",
                    T::OUTPUT
                )
            };
            assert!(
                (value - exact).abs() <= error,
                "{}: {value:e}, not {exact:e}",
                what()
            );
            // The choice is another for each combination, and cuBLASLt adds in another order.
            let expected = match plan.is_decoupled() {
                true => bits,
                false => T::rounded(expected),
            };
            assert!(bits == expected, "{}: {bits:x?}, not {expected:x?}", what());
        }
    }

    /// Checks all combinations of a plan, or only the plainest and the fullest.
    fn check_all(&self, plan: &Plan, every: bool) {
        let sums = self.outputs::<u32>(plan, M, false, false);
        // Odd; vectors of BF16 and FP32, with a rest; odd again.
        for stride in [M, M.next_multiple_of(8), M + 10] {
            for (add_bias, accumulate) in
                [(false, false), (true, true), (true, false), (false, true)]
            {
                if every || add_bias == accumulate && stride != M {
                    self.check::<u16>(plan, &sums, stride, add_bias, accumulate);
                    self.check::<u32>(plan, &sums, stride, add_bias, accumulate);
                }
            }
        }
    }
}

/// Every kernel's launches for `n` tokens, as kernels share sums and as they do not.
fn plans(lab: &Lab, weights: &DeviceMatrix, n: usize) -> Vec<Plan> {
    let mut plans = vec![plan(weights, n)];
    for (kernel, _) in lab.decode_kernels().filter(|&(_, tokens)| n <= tokens) {
        plans.extend(plans_of(weights, n, kernel, &[2]));
    }
    for (kernel, _) in lab.prefill_kernels() {
        let plan = plan_of(weights, n, kernel);
        plans.extend([plan, plan.with_shared_tiles(0)]);
    }
    plans
}

/// Checks all fused plans. They are for weights as wide as the kernels for many tokens want them.
fn check(lab: &Lab, k: usize, x_strides: &[usize], tokens: &[usize]) {
    let wide = k.next_multiple_of(8);
    let wide = lab.upload(M, wide, &Kind::Zero.weights(M, wide));
    check_plans(lab, k, x_strides, tokens, |_, n| plans(lab, &wide, n));
}

/// Checks plans for weights of `k` columns, of activations `x_strides` apart, the first of them in
/// every combination.
fn check_plans(
    lab: &Lab,
    k: usize,
    x_strides: &[usize],
    tokens: &[usize],
    plans: impl Fn(&DeviceMatrix, usize) -> Vec<Plan>,
) {
    let most = tokens.iter().copied().max().unwrap();
    let bits = Kind::Gaussian.weights(M, k);
    let weights = lab.upload(M, k, &bits);
    let values = Kind::Gaussian.activations(most, k);
    let product = Product::new(&values, &bits, k);
    let (bias, old) = (addends(M, 1), addends(most * M, 2));
    for &n in tokens {
        for (index, &x_stride) in x_strides.iter().enumerate() {
            let x = Guarded::new(lab, &apart(&values[..n * k], k, x_stride, NAN), NAN, 0);
            let problem = Problem {
                lab,
                weights: &weights,
                n,
                x: &x,
                x_stride,
                product: &product,
                bias: &bias,
                old: &old[..n * M],
            };
            for plan in plans(&weights, n) {
                problem.check_all(&plan, index == 0 && !quick());
            }
        }
    }
}

#[test]
fn every_combination() {
    // The last ones are not for tensor copies.
    let strides = [264, 272, 275];
    let strides = if quick() { &strides[..1] } else { &strides };
    for lab in Lab::each() {
        check(&lab, 264, strides, tokens());
    }
}

#[test]
fn odd_widths() {
    for lab in Lab::each() {
        let tokens = if quick() { &[33][..] } else { &[1, 33, 200] };
        // The first ones are for tensor copies, though their last columns fill no group of 16 bytes.
        check(&lab, 267, &[272, 267], tokens);
    }
}

#[test]
fn batch_invariant() {
    let Some(lab) = Lab::hopper() else {
        return;
    };
    let plans = |weights: &DeviceMatrix, _| {
        let plan = invariant_plan(weights);
        vec![plan, plan.with_pdl(false)]
    };
    let tokens = [65, 300, 1, 200, 513];
    let tokens = if quick() { &tokens[..2] } else { &tokens };
    check_plans(&lab, 264, &[264, 272], tokens, plans);
    check_plans(&lab, 267, &[272], &tokens[..2], plans);
}

#[test]
fn decoupled() {
    for lab in Lab::each_with_dense() {
        let plans = |weights: &DeviceMatrix, n| vec![decoupled_plan(weights, n)];
        let tokens = [65, 300, 129, 1000, 4095];
        let tokens = if quick() { &tokens[..2] } else { &tokens };
        // Aligned rows, and others, of an even and of an odd width.
        check_plans(&lab, 264, &[264, 272, 275], tokens, plans);
        check_plans(&lab, 267, &[267, 272], &tokens[..2], plans);
    }
}

/// A bias and old outputs that the kernel just before has written, or is still writing.
#[test]
fn addends_of_the_kernel_before() {
    for lab in Lab::each() {
        let size = if quick() { 256 } else { 1024 };
        let depth = if quick() { 3 } else { 20 };
        let weights = lab.upload(size, size, &Kind::Gaussian.weights(size, size));
        for (kernel, tokens) in Plan::kernels(lab.device) {
            let n = tokens + 1;
            let one = plan(&weights, 1);
            let plan = plan_of(&weights, n, kernel);
            let x = Guarded::new(&lab, &Kind::Gaussian.activations(n, size), NAN, 0);
            let run = |pdl: bool| {
                let y = Guarded::new(&lab, &vec![0u16; n * size], GUARD, 0);
                let bias = Guarded::new(&lab, &vec![NAN; size], GUARD, 0);
                for i in 0..depth {
                    let token = x.address() + (2 * size * (i % n)) as u64;
                    let write = RawOperands::new(&weights, token, 1, bias.address());
                    let add = RawOperands {
                        bias: Some(bias.address()),
                        accumulate: true,
                        ..RawOperands::new(&weights, x.address(), n, y.address())
                    };
                    for (plan, operands) in [(one, write), (plan, add)] {
                        let plan = plan.with_pdl(pdl && plan.is_pdl());
                        // SAFETY: all have room.
                        unsafe { lab.launch(&plan, &weights, &operands) };
                        if !pdl {
                            lab.stream.synchronize().unwrap();
                        }
                    }
                }
                y.values(&lab)
            };
            let same = run(true) == run(false);
            assert!(same, "{plan}: a launch was ahead of what it adds");
        }
    }
}

#[test]
fn no_input_features() {
    for lab in Lab::each() {
        let (m, n, stride) = (5, 3, 7);
        let weights = lab.upload(m, 0, &[]);
        let other = lab.upload(m, 8, &Kind::Zero.weights(m, 8));
        let plan = plan(&other, n);
        let y = Guarded::new(
            &lab,
            &apart(&vec![u32::NAN; n * m], m, stride, u32::GAP),
            u32::GAP,
            0,
        );
        let zeros = RawOperands {
            y_stride: stride,
            output: OutputType::F32,
            ..RawOperands::new(&weights, 0, n, y.address())
        };
        let kept = RawOperands {
            accumulate: true,
            ..zeros
        };
        let biased = RawOperands {
            bias: Some(y.address()),
            ..zeros
        };
        let values = || together(&y.values(&lab), m, stride);
        // SAFETY: `y` has room, and nothing else is read.
        unsafe {
            lab.launch(&plan, &weights, &kept);
            assert_eq!(values(), vec![u32::NAN; n * m]);
            lab.launch(&plan, &weights, &zeros);
            assert_eq!(values(), vec![0; n * m]);
            refused!(
                lab.try_launch(&plan, &weights, &biased),
                GpuError::EmptyBias
            );
        }
    }
}

/// The checked call, with all there is.
#[test]
fn slices() {
    for mut lab in Lab::each() {
        let (k, n, x_stride, y_stride) = (264, 3, 272, 140);
        let bits = Kind::Gaussian.weights(M, k);
        let weights = lab.upload(M, k, &bits);
        // Behind what is multiplied there is room for one token more.
        let values = Kind::Gaussian.activations(n + 1, k);
        let product = Product::new(&values[..n * k], &bits, k);
        let plan = plan(&weights, n);
        let x = lab.buffer(&apart(&values, k, x_stride, NAN));
        let old = apart(&vec![2f32; (n + 1) * M], M, y_stride, -1.0);
        let mut y = Buffer::from_slice(lab.device, &old).unwrap();
        let bias = Buffer::from_slice(lab.device, &[bf16::ONE; M]).unwrap();
        let mut multiply = |y: &mut Buffer<f32>, n, bias: View<bf16>| {
            let (x, y) = (x.slice(..2 * x_stride + k), y.slice_mut(..2 * y_stride + M));
            let operands = Operands::new(x, y).tokens(n);
            let operands = operands.x_stride(x_stride).y_stride(y_stride);
            let operands = operands.bias(bias).accumulate();
            plan.run(&lab.stream, &weights, operands, &mut lab.workspace)
        };
        refused!(
            multiply(&mut y, n + 1, bias.slice(..)),
            GpuError::Length {
                operand: Operand::Activations,
                expected: Need::AtLeast(_),
                ..
            }
        );
        refused!(
            multiply(&mut y, n, bias.slice(1..)),
            GpuError::Length {
                operand: Operand::Bias,
                expected: Need::Exactly(M),
                got: 132
            }
        );
        multiply(&mut y, n, bias.slice(..)).unwrap();
        let outputs = y.to_vec(&lab.stream).unwrap();
        for (at, &(sum, all)) in product.sums().iter().enumerate() {
            let value = f64::from(outputs[at / M * y_stride + at % M]);
            assert!(
                (value - (sum + 3.0)).abs() <= all * 2e-6 + 1e-6,
                "output {at}: {value}"
            );
        }
        for row in outputs.chunks(y_stride) {
            assert!(row[M..].iter().all(|&gap| gap == -1.0), "a gap was written");
        }
        let behind = &outputs[n * y_stride..];
        assert!(behind.iter().all(|&old| old == 2.0), "a token too many");
    }
}
