//! Tensor cores: `mma.sync` and the loads that feed it.

use core::arch::asm;

/// `acc += a * b` for 16 x 16 BF16 times 16 x 8 BF16, in FP32.
///
/// Fragments, with `lane = 4 * g + t`: `a` as in [`crate::layout`]; `b[i]` holds rows
/// `2t + 8i` and the next of column `g`; `acc[2i + j]` is row `g + 8i`, column `2t + j`.
#[inline(always)]
pub fn mma_16x8x16(acc: &mut [f32; 4], a: [u32; 4], b: [u32; 2]) {
    // SAFETY: arithmetic; all lanes of the warp run this.
    unsafe {
        asm!(
            "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 \
             {{{}, {}, {}, {}}}, {{{}, {}, {}, {}}}, {{{}, {}}}, {{{}, {}, {}, {}}};",
            out(reg32) acc[0], out(reg32) acc[1], out(reg32) acc[2], out(reg32) acc[3],
            in(reg32) a[0], in(reg32) a[1], in(reg32) a[2], in(reg32) a[3],
            in(reg32) b[0], in(reg32) b[1],
            in(reg32) acc[0], in(reg32) acc[1], in(reg32) acc[2], in(reg32) acc[3],
            options(nomem, nostack, preserves_flags));
    }
}

/// Loads four 8 x 8 matrices of 16-bit elements. Lane `8i + r` gives the address of row `r` of
/// matrix `i`; of each matrix a lane `4g + t` gets elements `2t` and `2t + 1` of row `g`.
///
/// # Safety
/// Each address is 16-byte aligned and lies in shared memory.
#[inline(always)]
pub unsafe fn load_matrices(row: u32) -> [u32; 4] {
    let (mut a, mut b, mut c, mut d): (u32, u32, u32, u32);
    // SAFETY: the caller's promise.
    unsafe {
        asm!("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {{{}, {}, {}, {}}}, [{}];",
            out(reg32) a, out(reg32) b, out(reg32) c, out(reg32) d, in(reg32) row,
            options(readonly, nostack, preserves_flags));
    }
    [a, b, c, d]
}

/// Stores four 8 x 8 matrices of 16-bit elements, transposed: the reverse of [`load_matrices`],
/// where element `j` of the row at an address comes from row `j` of the matrix.
///
/// # Safety
/// Each address is 16-byte aligned and lies in shared memory.
#[inline(always)]
pub unsafe fn store_transposed_matrices(row: u32, [a, b, c, d]: [u32; 4]) {
    // SAFETY: the caller's promise.
    unsafe {
        asm!("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [{}], {{{}, {}, {}, {}}};",
            in(reg32) row, in(reg32) a, in(reg32) b, in(reg32) c, in(reg32) d,
            options(nostack, preserves_flags));
    }
}

/// Rounds two values to the nearest BF16, ties to even; the first goes to the low half.
#[inline(always)]
pub fn to_bf16_pair(first: f32, second: f32) -> u32 {
    let mut bits: u32;
    // SAFETY: arithmetic.
    unsafe {
        asm!("cvt.rn.bf16x2.f32 {}, {}, {};", out(reg32) bits, in(reg32) second, in(reg32) first,
            options(pure, nomem, nostack, preserves_flags));
    }
    bits
}
