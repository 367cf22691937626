//! Encoding on the GPU gives the bytes that encoding on the host gives.

use half::bf16;
use zipserv::gpu::{Buffer, DeviceMatrix, ENCODE_SCRATCH_BYTES, GpuError, Need, Operand, RawDense};
use zipserv_gpu::layout::{MAX_BASE, is_base};

use crate::{
    data::KINDS,
    lab::{Lab, compressed, quick},
};

/// What is filled in where nothing must be written.
const GUARD: u8 = 0xA5;

/// Encodes rows that start `stride` weights apart, `skew` weights behind where allocations are aligned, with `spare`
/// bytes of room, and compares.
fn check(
    lab: &Lab,
    [rows, cols]: [usize; 2],
    bits: &[u16],
    [stride, skew, spare]: [usize; 3],
    name: &str,
) {
    let expected = compressed(rows, cols, bits);
    // Between the rows there are NaNs.
    let mut dense = vec![0x7FC1u16; skew + rows.max(1) * stride];
    for (to, from) in dense[skew..]
        .chunks_mut(stride.max(1))
        .zip(bits.chunks(cols.max(1)))
    {
        to[..cols].copy_from_slice(from);
    }
    let dense = lab.buffer(&dense);
    let scratch = Buffer::from_slice(lab.device, &[GUARD; ENCODE_SCRATCH_BYTES]).unwrap();
    let raw = RawDense {
        address: dense.address() + 2 * skew as u64,
        rows,
        cols,
        stride,
    };
    let capacity = expected.stored_bytes() + DeviceMatrix::TAIL_BYTES + spare;
    let out = Buffer::from_slice(lab.device, &vec![GUARD; capacity + 16]).unwrap();
    // SAFETY: all of it is there until the stream has been waited for.
    unsafe {
        let measured = lab
            .device
            .measure_raw(lab.raw(), &raw, scratch.address())
            .unwrap();
        assert_eq!(measured.stored_bytes(), expected.stored_bytes(), "{name}");
        lab.device
            .encode_raw(lab.raw(), &measured, out.address(), capacity)
            .unwrap();
    }
    let mut all = expected.as_bytes().to_vec();
    all.resize(capacity, 0);
    all.resize(capacity + 16, GUARD);
    let found = out.to_vec(&lab.stream).unwrap();
    if let Some(at) = found.iter().zip(&all).position(|(a, b)| a != b) {
        panic!(
            "{name}, {rows} x {cols}, stride {stride}, skew {skew}: byte {at} is {:#x}, not {:#x}; {:?}",
            found[at],
            all[at],
            expected.header(),
        );
    }
}

#[test]
fn every_kind_and_shape() {
    const SHAPES: [[usize; 2]; 12] = [
        [300, 520],
        [31, 65],
        [64, 64],
        [1, 1],
        [1, 3000],
        [3000, 1],
        [7, 13],
        [33, 72],
        [100, 1001],
        [0, 5],
        [5, 0],
        [2048, 4096],
    ];
    for lab in Lab::each() {
        let shapes = if quick() { &SHAPES[..2] } else { &SHAPES };
        for kind in KINDS {
            for &[rows, cols] in shapes {
                let bits = kind.weights(rows, cols);
                for [stride, skew, spare] in [
                    [cols, 0, 0],
                    [cols + 3, 1, 48],
                    [cols.next_multiple_of(8) + 8, 8, 4096],
                ] {
                    check(
                        &lab,
                        [rows, cols],
                        &bits,
                        [stride, skew, spare],
                        &format!("{kind:?}"),
                    );
                }
            }
        }
    }
}

/// With every window there is, and every bit pattern in it.
#[test]
fn every_window_and_bit_pattern() {
    for lab in Lab::each() {
        let all: Vec<u16> = (0..=u16::MAX).collect();
        check(&lab, [256, 256], &all, [256, 0, 0], "all bit patterns");
        for base in (0..=MAX_BASE).filter(|&base| is_base(base)) {
            if quick() && base % 16 != 1 {
                continue;
            }
            // Mostly of this window, with all subnormals and signs, and no exponent above it but infinity.
            let bits: Vec<u16> = (0..96 * 128u32)
                .map(|i| match i % 97 {
                    0 => (i & 0x807F) as u16,
                    1 => 0x7F80 | (i & 0x807F) as u16,
                    _ => {
                        ((u32::from(base) + i / 128 % 8) << 7
                            | i.wrapping_mul(2654435761) >> 9 & 0x807F)
                            as u16
                    }
                })
                .collect();
            check(&lab, [96, 128], &bits, [128, 0, 0], &format!("base {base}"));
        }
    }
}

#[test]
fn the_safe_call_multiplies_at_once() {
    for lab in Lab::each() {
        let (m, k) = (300, 712);
        for kind in KINDS {
            let bits = kind.weights(m, k);
            let dense = lab.buffer(&bits);
            let encoded = DeviceMatrix::encode(&lab.stream, &dense, m, k).unwrap();
            assert!(lab.decompress(&encoded, 0) == bits, "{kind:?}");
            assert_eq!(
                encoded.device_bytes(),
                lab.upload(m, k, &bits).device_bytes()
            );
        }
        let dense = Buffer::<bf16>::zeroed(lab.device, 10).unwrap();
        let refused = DeviceMatrix::encode(&lab.stream, &dense, 3, 4).map(|_| ());
        assert!(matches!(
            refused,
            Err(GpuError::Length {
                operand: Operand::Dense,
                expected: Need::Exactly(12),
                got: 10
            })
        ));
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    for lab in Lab::each() {
        let dense = lab.buffer(&vec![0x3C00; 64 * 64]);
        let scratch = Buffer::<u8>::zeroed(lab.device, ENCODE_SCRATCH_BYTES).unwrap();
        let raw = RawDense {
            address: dense.address(),
            rows: 64,
            cols: 64,
            stride: 64,
        };
        // SAFETY: refused, but the second, of which all is there.
        unsafe {
            let measure =
                |raw: &RawDense| lab.device.measure_raw(lab.raw(), raw, scratch.address());
            let narrow = measure(&RawDense { stride: 63, ..raw }).map(|_| ());
            assert!(matches!(
                narrow,
                Err(GpuError::Stride {
                    stride: 63,
                    least: 64,
                    ..
                })
            ));
            let measured = measure(&raw).unwrap();
            let room = measured.stored_bytes() + DeviceMatrix::TAIL_BYTES;
            let out = Buffer::from_slice(lab.device, &vec![GUARD; room]).unwrap();
            let refused = lab
                .device
                .encode_raw(lab.raw(), &measured, out.address(), room - 1);
            assert!(matches!(
                refused,
                Err(GpuError::Length { operand: Operand::Weights, expected: Need::AtLeast(least), got })
                    if least == room && got == room - 1
            ));
            assert!(
                out.to_vec(&lab.stream)
                    .unwrap()
                    .iter()
                    .all(|&byte| byte == GUARD)
            );
        }
    }
}
