//! Fixup: how thread blocks that share an output tile along K add up their partial sums.
//!
//! All but the last *store* theirs in global memory, and the last *reduces* them in a fixed order, so
//! that results are the same again. Two protocols tell it that they are there:
//!
//! | | how | who |
//! |---|---|---|
//! | [`sentinel`] | each sum is its own flag | `zipgemm`: few sums, which come to registers |
//! | [`counted`] | a counter for each block | `prefill`: many sums, which come by bulk copies |
//!
//! Both leave their memory as they found it, for the next launch.

use crate::{arch::memory, launch::Gemm};

/// Adds four sums.
#[inline(always)]
pub fn add(sum: &mut [f32; 4], part: [f32; 4]) {
    *sum = [
        sum[0] + part[0],
        sum[1] + part[1],
        sum[2] + part[2],
        sum[3] + part[3],
    ];
}

/// A place is empty as long as it holds [`Gemm::EMPTY`], a pattern that no sum has. Whoever reduces
/// loads it until it is not, which is written out where it is done: in a function of its own, the wait
/// made the compiler order the instructions around it otherwise.
pub mod sentinel {
    use super::*;

    /// Stores four partial sums.
    ///
    /// # Safety
    /// `to` is an empty place that is this thread's, aligned to 16 bytes.
    #[inline(always)]
    pub unsafe fn store(to: *mut f32, sums: [f32; 4]) {
        let flag = |sum: f32| match sum.to_bits() {
            Gemm::EMPTY => f32::NAN.to_bits(),
            bits => bits,
        };
        // SAFETY: the caller's promise.
        unsafe { memory::publish_u32x4(to, sums.map(flag)) }
    }

    /// Asks for what is in a place, which may be empty yet.
    ///
    /// # Safety
    /// `from` is a place, aligned to 16 bytes.
    #[inline(always)]
    pub unsafe fn load(from: *const f32) -> [u32; 4] {
        // SAFETY: the caller's promise.
        unsafe { memory::observe_u32x4(from) }
    }

    /// Empties a place.
    ///
    /// # Safety
    /// This thread alone reduces its sums, and has them.
    #[inline(always)]
    pub unsafe fn clear(place: *mut f32) {
        // SAFETY: the caller's promise.
        unsafe { memory::publish_u32x4(place, [Gemm::EMPTY; 4]) }
    }
}

/// A counter for each block tells how many of its warps have stored all of theirs.
pub mod counted {
    use super::*;

    /// Stores four partial sums.
    ///
    /// # Safety
    /// `to` is a place that is this thread's, aligned to 16 bytes.
    #[inline(always)]
    pub unsafe fn store(to: *mut f32, sums: [f32; 4]) {
        // SAFETY: the caller's promise.
        unsafe { memory::leave_u32x4(to, sums.map(f32::to_bits)) }
    }

    /// Counts the warp, when all that its lanes have stored is there for other blocks.
    ///
    /// # Safety
    /// `counter` is the block's; all lanes of the warp run this.
    #[inline(always)]
    pub unsafe fn arrive(counter: *mut u32, lane: u32) {
        // SAFETY: the caller's promise.
        unsafe { memory::count_warp(counter, lane) }
    }

    /// Waits for so many warps, and sets the counter back. Bulk copies that this thread starts then see
    /// their sums.
    ///
    /// # Safety
    /// `counter` is a block's for which no other thread waits.
    #[inline(always)]
    pub unsafe fn wait(counter: *mut u32, warps: u32) {
        // SAFETY: the caller's promise.
        unsafe { memory::await_count(counter, warps) }
    }
}
