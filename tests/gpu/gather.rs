//! `gather` gives rows as `decode` does, and kernels read the weights that are there when they run.

use half::bf16;
use zipserv::gpu::{Buffer, DeviceMatrix, GpuError, Plan, PlanOptions};

use crate::{
    data::{KINDS, Kind},
    lab::{Lab, compressed, quick},
};

#[test]
fn rows_of_every_kind_and_shape() {
    const SHAPES: [(usize, usize); 7] = [
        (300, 520),
        (31, 65),
        (1, 1),
        (1, 3000),
        (3000, 1),
        (33, 72),
        (2048, 1024),
    ];
    for lab in Lab::each() {
        let shapes = if quick() { &SHAPES[..2] } else { &SHAPES };
        for kind in KINDS {
            for &(rows, cols) in shapes {
                let bits = kind.weights(rows, cols);
                let matrix = lab.upload(rows, cols, &bits);
                // All rows backwards, one twice, and some that are none.
                let mut numbers: Vec<i64> = (0..rows as i64).rev().collect();
                numbers.extend([0, 0, -1, rows as i64, i64::MAX, i64::MIN, 1 << 40]);
                let expected: Vec<u16> = numbers
                    .iter()
                    .flat_map(|&row| match usize::try_from(row) {
                        Ok(row) if row < rows => bits[row * cols..][..cols].to_vec(),
                        _ => vec![0; cols],
                    })
                    .collect();
                let ids = Buffer::from_slice(lab.device, &numbers).unwrap();
                let filled = vec![bf16::NAN; expected.len()];
                let mut out = Buffer::from_slice(lab.device, &filled).unwrap();
                matrix.gather(&lab.stream, &ids, &mut out).unwrap();
                assert!(lab.bits(&out) == expected, "{kind:?}, {rows} x {cols}");

                let narrow: Vec<i32> = (0..rows as i32).chain([-1, rows as i32]).collect();
                let ids = Buffer::from_slice(lab.device, &narrow).unwrap();
                let filled = vec![bf16::NAN; narrow.len() * cols];
                let out = Buffer::from_slice(lab.device, &filled).unwrap();
                let mut expected = bits.clone();
                expected.resize(narrow.len() * cols, 0);
                // SAFETY: the numbers are there, and the output has room for their rows.
                unsafe {
                    let (ids, count) = (ids.address(), narrow.len());
                    matrix
                        .gather_raw(lab.raw(), ids, false, count, out.address())
                        .unwrap();
                }
                assert!(
                    lab.bits(&out) == expected,
                    "{kind:?}, {rows} x {cols}, 32 bits"
                );
            }
        }
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    for lab in Lab::each() {
        let matrix = lab.upload(64, 64, &[0; 64 * 64]);
        let ids = Buffer::from_slice(lab.device, &[1i64, 2]).unwrap();
        let mut out = Buffer::<bf16>::zeroed(lab.device, 2 * 64 - 1).unwrap();
        let refused = matrix.gather(&lab.stream, &ids, &mut out);
        assert!(matches!(refused, Err(GpuError::Length { got: 127, .. })));
        // SAFETY: refused.
        let refused =
            unsafe { matrix.gather_raw(lab.raw(), ids.address() + 4, true, 1, out.address()) };
        assert!(matches!(refused, Err(GpuError::Alignment { align: 8, .. })));
    }
}

/// Of one shape, but another window and another number of patches, in the same memory.
#[test]
fn other_weights_in_the_same_place() {
    for lab in Lab::each() {
        let (m, k) = (300, 712);
        let kinds = [
            Kind::Gaussian,
            Kind::OutlierTiles,
            Kind::Large,
            Kind::Outliers,
        ];
        let all: Vec<_> = kinds
            .iter()
            .map(|kind| {
                let bits = kind.weights(m, k);
                let matrix = compressed(m, k, &bits);
                (bits, matrix)
            })
            .collect();
        let bases: std::collections::BTreeSet<_> =
            all.iter().map(|(_, matrix)| matrix.base()).collect();
        assert!(bases.len() > 1);
        let room = all
            .iter()
            .map(|(_, matrix)| matrix.stored_bytes())
            .max()
            .unwrap();
        let mut memory = Buffer::<u8>::zeroed(lab.device, room + DeviceMatrix::TAIL_BYTES).unwrap();
        // SAFETY: nothing runs while the memory is written; `memory` outlives it.
        let weights = unsafe {
            let borrowed = Buffer::borrowed(lab.device, memory.address(), memory.len());
            DeviceMatrix::from_device(m, k, borrowed).unwrap()
        };
        for n in [1, 8, 16, 33, 70, 200, 300] {
            let plan = Plan::new(&weights, n, &PlanOptions::default()).unwrap();
            let x = Kind::Gaussian.activations(n, k);
            for (bits, matrix) in &all {
                let mut bytes = matrix.as_bytes().to_vec();
                bytes.resize(memory.len(), u8::MAX);
                lab.stream.synchronize().unwrap();
                memory.copy_from_slice(&lab.stream, &bytes).unwrap();
                let y = lab.multiply(&plan, &weights, &x, [0; 2]);
                let own = lab.upload(m, k, bits);
                assert!(lab.multiply(&plan, &own, &x, [0; 2]) == y, "{n} tokens");
                assert!(lab.decompress(&weights, 0) == *bits);
            }
        }
    }
}
