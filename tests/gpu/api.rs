//! The checked calls say what is wrong, and do nothing.

use half::bf16;
use zipserv::gpu::{
    Buffer, DeviceMatrix, GpuError, MAX_TOKENS, Need, Operand, Operands, OutputType, Plan,
    PlanOptions, RawOperands, Stream, View, Workspace,
};

use crate::{
    data::{Kind, Product},
    lab::{GUARD, Lab, compressed, plan, plan_with, refused},
};

#[test]
fn checked_multiplication() {
    for mut lab in Lab::each() {
        let (m, k, n) = (100, 200, 3);
        let bits = Kind::Gaussian.weights(m, k);
        let weights = lab.upload(m, k, &bits);
        let options = PlanOptions::default();
        for n in [0, MAX_TOKENS + 1] {
            let result = Plan::new(&weights, n, &options);
            refused!(result, GpuError::Tokens { tokens, most: MAX_TOKENS } if *tokens == n);
        }
        let named = |name: &str| options.clone().kernel(name);
        refused!(
            Plan::new(&weights, n, &named("decompress")),
            GpuError::NoKernel { kernel, family }
                if kernel == "decompress" && *family == lab.device.family()
        );
        let narrow = lab.upload(m, k + 1, &Kind::Zero.weights(m, k + 1));
        for (name, _) in lab.prefill_kernels() {
            refused!(
                Plan::new(&narrow, n, &named(name)),
                GpuError::Columns { kernel, cols: 201 } if *kernel == name
            );
        }
        if lab.decode_kernels().count() == 0 {
            // A file of PTX may have none.
            refused!(Plan::new(&weights, n, &options), GpuError::NoKernel { .. });
            continue;
        }
        assert!(Plan::new(&weights, MAX_TOKENS, &options).is_ok());
        let plan = plan(&weights, n);
        let values = Kind::Gaussian.activations(n, k);
        let x = lab.buffer(&values);
        let mut y = lab.buffer(&vec![0; n * m]);
        let mut short = lab.buffer(&vec![0; n * m - 1]);
        let larger = lab.upload(64 * m, k, &Kind::Zero.weights(64 * m, k));
        let larger = Plan::new(&larger, n, &options).unwrap();
        let more = Plan::new(&weights, 1000, &options).unwrap();

        let (stream, work) = (&lab.stream, &mut lab.workspace);
        let mut run = |plan: &Plan, x: View<bf16>, y: &mut Buffer<bf16>, stream: &Stream| {
            plan.run(stream, &weights, Operands::new(x, y), work)
        };
        refused!(
            run(&plan, (&x).into(), &mut short, stream),
            GpuError::Length {
                operand: Operand::Outputs,
                expected: Need::Exactly(300),
                got: 299
            }
        );
        for x in [x.slice(1..), x.slice(..0)] {
            refused!(
                run(&plan, x, &mut y, stream),
                GpuError::Length { operand: Operand::Activations, expected: Need::MultipleOf(200), got }
                    if *got == x.len()
            );
        }
        for other in [larger, more] {
            refused!(
                run(&other, (&x).into(), &mut y, stream),
                GpuError::PlanMismatch { .. }
            );
        }
        run(&plan, (&x).into(), &mut y, stream).unwrap();
        // The workspace now follows that stream.
        let other = Stream::new(lab.device).unwrap();
        refused!(
            run(&plan, (&x).into(), &mut y, &other),
            GpuError::WorkspaceInUse
        );

        Product::new(&values, &bits, k).check(&lab.bits(&y), &plan);
    }
}

/// Every length, stride, and address that is wrong, by the calls that check them; nothing is written.
#[test]
fn wrong_operands() {
    for mut lab in Lab::each() {
        let (m, k, n) = (100, 200, 3);
        let weights = lab.upload(m, k, &Kind::Gaussian.weights(m, k));
        let plan = plan(&weights, n);
        let [x_stride, y_stride] = [208, 104];
        // As long as their last rows' ends.
        let [x_len, y_len] = [2 * x_stride + k, 2 * y_stride + m];
        // With room behind them, so that what is too long by a little overlaps nothing.
        let x = lab.buffer(&vec![0; 2 * x_len]);
        let mut y = lab.buffer(&vec![GUARD; 2 * y_len]);
        let bias = lab.buffer(&vec![0; m + 1]);
        let (stream, work) = (&lab.stream, &mut lab.workspace);
        let mut run = |change: &dyn for<'a> Fn(Operands<'a>) -> Operands<'a>,
                       [x_len, y_len]: [usize; 2]| {
            let operands = Operands::new(x.slice(..x_len), y.slice_mut(..y_len));
            let operands = operands.tokens(n).x_stride(x_stride).y_stride(y_stride);
            plan.run(stream, &weights, change(operands), work)
        };
        let all = [x_len, y_len];
        for (lengths, which, least, has) in [
            ([x_len - 1, y_len], Operand::Activations, x_len, x_len - 1),
            ([0, y_len], Operand::Activations, x_len, 0),
            ([x_len, y_len - 1], Operand::Outputs, y_len, y_len - 1),
        ] {
            refused!(
                run(&|operands| operands, lengths),
                GpuError::Length { operand, expected: Need::AtLeast(expected), got }
                    if (*operand, *expected, *got) == (which, least, has)
            );
        }
        for tokens in [0, MAX_TOKENS + 1, usize::MAX] {
            refused!(
                run(&|operands| operands.tokens(tokens), all),
                GpuError::Tokens { tokens: wrong, most: MAX_TOKENS } if *wrong == tokens
            );
        }
        // Room for four tokens is not there.
        refused!(
            run(&|operands| operands.tokens(4), all),
            GpuError::Length {
                operand: Operand::Activations,
                ..
            }
        );
        for wrong in [0, k - 1, 1 << 31, usize::MAX] {
            refused!(
                run(&|operands| operands.x_stride(wrong), all),
                GpuError::Stride { operand: Operand::Activations, stride, least: 200, .. }
                    if *stride == wrong
            );
        }
        for wrong in [0, m - 1, 1 << 31, usize::MAX] {
            refused!(
                run(&|operands| operands.y_stride(wrong), all),
                GpuError::Stride { operand: Operand::Outputs, stride, least: 100, .. }
                    if *stride == wrong
            );
        }
        // A stride that is possible, for which there is no room.
        refused!(
            run(&|operands| operands.x_stride(x_stride + 1), all),
            GpuError::Length {
                operand: Operand::Activations,
                ..
            }
        );
        assert!(lab.bits(&y).iter().all(|&y| y == GUARD), "it ran");

        let (stream, work) = (&lab.stream, &mut lab.workspace);
        for (from, to) in [(0, m - 1), (0, m + 1), (0, 0), (1, m)] {
            let operands = Operands::new(&x, &mut y).tokens(n);
            let operands = operands.x_stride(x_stride).y_stride(y_stride);
            let operands = operands.bias(bias.slice(from..to));
            refused!(
                plan.run(stream, &weights, operands, work),
                GpuError::Length { operand: Operand::Bias, expected: Need::Exactly(100), got }
                    if *got == to - from
            );
        }
        assert!(lab.bits(&y).iter().all(|&y| y == GUARD), "it ran");
    }
}

/// Addresses that no value of their type has, and none at all.
#[test]
fn wrong_addresses() {
    for lab in Lab::each() {
        let (m, k, n) = (100, 200, 3);
        let weights = lab.upload(m, k, &Kind::Gaussian.weights(m, k));
        let plan = plan(&weights, n);
        let x = lab.buffer(&vec![0; n * k + 1]);
        let y = lab.buffer(&vec![GUARD; 2 * n * m + 2]);
        let right = RawOperands::new(&weights, x.address(), n, y.address());
        let f32 = OutputType::F32;
        for (wrong, which, needed) in [
            (
                RawOperands {
                    x: right.x + 1,
                    ..right
                },
                Operand::Activations,
                2,
            ),
            (
                RawOperands {
                    y: right.y + 1,
                    ..right
                },
                Operand::Outputs,
                2,
            ),
            (
                RawOperands {
                    y: right.y + 2,
                    output: f32,
                    ..right
                },
                Operand::Outputs,
                4,
            ),
            (
                RawOperands {
                    bias: Some(right.x + 1),
                    ..right
                },
                Operand::Bias,
                2,
            ),
        ] {
            // SAFETY: refused before anything is launched.
            let result = unsafe { lab.try_launch(&plan, &weights, &wrong) };
            refused!(
                result,
                GpuError::Alignment { operand, align, .. } if (*operand, *align) == (which, needed)
            );
        }
        let none = RawOperands {
            bias: Some(0),
            ..right
        };
        // SAFETY: as above.
        let result = unsafe { lab.try_launch(&plan, &weights, &none) };
        refused!(
            result,
            GpuError::Missing {
                operand: Operand::Bias
            }
        );
        // SAFETY: as above.
        let result = unsafe { weights.decompress_raw(lab.raw(), y.address() + 1) };
        refused!(
            result,
            GpuError::Alignment {
                operand: Operand::Outputs,
                align: 2,
                ..
            }
        );
        assert!(lab.bits(&y).iter().all(|&y| y == GUARD), "it ran");
    }
}

#[test]
fn checked_decompression() {
    for lab in Lab::each() {
        let (rows, cols) = (100, 200);
        let bits = Kind::Gaussian.weights(rows, cols);
        let matrix = lab
            .upload(rows, cols, &bits)
            .duplicate(&lab.stream)
            .unwrap();
        let mut output = lab.buffer(&vec![0; rows * cols]);
        refused!(
            matrix.decompress(&lab.stream, output.slice_mut(1..)),
            GpuError::Length {
                operand: Operand::Outputs,
                expected: Need::Exactly(20_000),
                got: 19_999
            }
        );
        matrix.decompress(&lab.stream, &mut output).unwrap();
        assert!(lab.bits(&output) == bits);
    }
}

/// Copies say when lengths differ.
#[test]
fn checked_copies() {
    for lab in Lab::each() {
        let mut to = lab.buffer(&[0; 3]);
        let from = lab.buffer(&[1, 2, 3, 4]);
        for result in [
            to.copy_from(&lab.stream, &from),
            to.copy_from_slice(&lab.stream, &[bf16::ONE; 2]),
        ] {
            refused!(
                result,
                GpuError::Length {
                    operand: Operand::Data,
                    expected: Need::Exactly(3),
                    ..
                }
            );
        }
        to.copy_from(&lab.stream, from.slice(1..)).unwrap();
        assert_eq!(lab.bits(&to), [2, 3, 4]);
        to.copy_from_slice(&lab.stream, bytemuck::cast_slice(&[7u16, 8, 9]))
            .unwrap();
        assert_eq!(lab.bits(&to), [7, 8, 9]);
        let mut none = Buffer::<bf16>::zeroed(lab.device, 0).unwrap();
        none.copy_from(&lab.stream, from.slice(2..2)).unwrap();
        assert!(none.to_vec(&lab.stream).unwrap().is_empty());
        refused!(
            Buffer::<bf16>::uninitialized(lab.device, usize::MAX),
            GpuError::Length {
                expected: Need::Overflow,
                ..
            }
        );
    }
}

/// A matrix in memory of others, as long as all of it is there and aligned.
#[test]
fn a_matrix_from_the_device() {
    for lab in Lab::each() {
        let (m, k, n) = (100, 712, 70);
        let bits = Kind::OutlierTiles.weights(m, k);
        let matrix = compressed(m, k, &bits);
        let needed = matrix.stored_bytes() + DeviceMatrix::TAIL_BYTES;
        // What the tail holds makes no difference.
        let mut bytes = matrix.as_bytes().to_vec();
        bytes.resize(needed + DeviceMatrix::ALIGN, u8::MAX);
        let memory = Buffer::from_slice(lab.device, &bytes).unwrap();
        let of = |from: usize, len: usize| {
            let address = memory.address() + from as u64;
            // SAFETY: within `memory`, which outlives it, and which nothing writes; where the matrix
            // does not start there, it is refused.
            unsafe {
                let memory = Buffer::borrowed(lab.device, address, len);
                DeviceMatrix::from_device(m, k, memory)
            }
        };
        // How many patches there are only the matrix knows.
        let fewest = matrix.header().patches().start + DeviceMatrix::TAIL_BYTES;
        refused!(
            of(0, fewest - 1).map(|_| ()),
            GpuError::Length { operand: Operand::Weights, expected: Need::AtLeast(least), got }
                if *least == fewest && *got == fewest - 1
        );
        for from in [1, 2, 8] {
            refused!(
                of(from, needed).map(|_| ()),
                GpuError::Alignment {
                    operand: Operand::Weights,
                    align: DeviceMatrix::ALIGN,
                    ..
                }
            );
        }
        let x = Kind::Gaussian.activations(n, k);
        let product = Product::new(&x, &bits, k);
        for len in [needed, bytes.len()] {
            let weights = of(0, len).unwrap();
            assert!(lab.decompress(&weights, 0) == bits);
            for n in [1, n] {
                let plan = plan(&weights, n);
                product.check(&lab.multiply(&plan, &weights, &x[..n * k], [0; 2]), &plan);
            }
        }
        // Borrowed memory is still there.
        let stored = memory.to_vec(&lab.stream).unwrap();
        assert!(stored == bytes);
    }
}

/// Parts of a matrix multiply as the whole does.
#[test]
fn slices_of_a_matrix() {
    for lab in Lab::each() {
        let (m, k, n) = (200, 712, 70);
        let bits = Kind::OutlierTiles.weights(m, k);
        let whole = compressed(m, k, &bits);
        for (rows, cols) in [
            (0..m, 0..k),
            (64..m, 0..k),
            (32..96, 128..640),
            (0..m, 640..k),
            (192..m, 704..k),
        ] {
            let part = whole.slice(rows.clone(), cols.clone()).unwrap();
            let weights = DeviceMatrix::upload(lab.device, &part).unwrap();
            let rows = rows.flat_map(|row| &bits[row * k..][cols.clone()]);
            let bits: Vec<u16> = rows.copied().collect();
            assert!(lab.decompress(&weights, 0) == bits);
            let x = Kind::Gaussian.activations(n, cols.len());
            let product = Product::new(&x, &bits, cols.len());
            for n in [1, 8, n] {
                let plan = plan(&weights, n);
                let y = lab.multiply(&plan, &weights, &x[..n * cols.len()], [0; 2]);
                product.check(&y, &format_args!("columns {cols:?}, {n} tokens, {plan}"));
            }
        }
    }
}

/// Empty weights have no kernel to be multiplied by, and outputs of no features.
#[test]
fn empty_weights() {
    for lab in Lab::each_with_dense() {
        for (m, k) in [(0, 64), (64, 0)] {
            let weights = lab.upload(m, k, &[]);
            refused!(
                Plan::new(&weights, 1, &PlanOptions::default().decoupled()),
                GpuError::EmptyWeights { rows, cols } if (*rows, *cols) == (m, k)
            );
        }
        let nothing = lab.upload(0, 64, &[]);
        let plan = plan_with(&lab.upload(32, 64, &[0; 2048]), 2, PlanOptions::default());
        let x = lab.buffer(&[0; 128]);
        let mut y = lab.buffer(&[]);
        let mut work = Workspace::new(lab.device).unwrap();
        let operands = Operands::new(&x, &mut y);
        plan.run(&lab.stream, &nothing, operands, &mut work)
            .unwrap();
    }
}
