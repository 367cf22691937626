//! The kernels. Each file opens with its data flow and its budget.

use crate::{
    arch::memory,
    layout::{BASE_AT, HEADER_BYTES},
};

/// Runs `$body` for `$j` from 0 to below `$n`, at most 8, or 12 if that stands in front, with `$j` a literal each time: a
/// loop that certainly leaves no index to run time, which registers do not have.
#[macro_export]
macro_rules! unroll {
    ($j:ident < $n:expr => $body:block) => {
        const { assert!($n <= 8, "there are no more literals") };
        $crate::unroll!(@ $j $n, $body, 0 1 2 3 4 5 6 7)
    };
    (12: $j:ident < $n:expr => $body:block) => {
        const { assert!($n <= 12, "there are no more literals") };
        $crate::unroll!(@ $j $n, $body, 0 1 2 3 4 5 6 7 8 9 10 11)
    };
    (@ $j:ident $n:expr, $body:block, $($i:literal)*) => {
        $(if $i < $n {
            const $j: usize = $i;
            $body
        })*
    };
}

/// The base of a matrix, from the header in front of its dense part. No earlier kernel of the stream writes it, as none
/// writes the weights, but another launch may find other weights in the same place: the host does not have to know.
///
/// # Safety
/// `dense` is the dense part of a matrix in global memory.
#[inline(always)]
pub unsafe fn base(dense: *const u8) -> u8 {
    // SAFETY: the header lies there.
    unsafe { memory::load_global_u32(dense.sub(HEADER_BYTES - BASE_AT).cast()) as u8 }
}

pub mod decompress;
pub mod encode;
pub mod epilogue;
pub mod experts;
pub mod fixup;
pub mod gate;
pub mod gather;
pub mod mma;
pub mod read;
pub mod scan;
pub mod wgmma;
