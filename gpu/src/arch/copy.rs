//! Asynchronous copies from global to shared memory.

use core::arch::asm;

/// Starts a bulk copy of `bytes` bytes; `barrier` counts them when they have landed.
///
/// # Safety
/// Both ranges are valid; `to`, `from` and `bytes` are multiples of 16; `barrier` expects the
/// bytes; nothing touches the destination until the barrier's phase completes.
#[inline(always)]
pub unsafe fn bulk(to: u32, from: *const u8, bytes: u32, barrier: u32) {
    // SAFETY: the caller's promise.
    unsafe {
        asm!(
            "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [{}], [{}], {}, [{}];",
            in(reg32) to, in(reg64) from, in(reg32) bytes, in(reg32) barrier,
            options(nostack, preserves_flags));
    }
}

/// Starts a copy of 16 bytes of which the first `bytes` (0 or 16) are read and the others zero.
///
/// # Safety
/// `from` is readable for `bytes` bytes; both addresses are 16-byte aligned; nothing touches the
/// destination until the copy has completed.
#[inline(always)]
pub unsafe fn chunk(to: u32, from: *const u8, bytes: u32) {
    // SAFETY: the caller's promise.
    unsafe {
        asm!("cp.async.cg.shared.global [{}], [{}], 16, {};",
            in(reg32) to, in(reg64) from, in(reg32) bytes, options(nostack, preserves_flags));
    }
}

/// Arrives at `barrier` when all copies that this thread has started with [`chunk`] have landed.
///
/// # Safety
/// `barrier` has been initialised and counts this arrival.
#[inline(always)]
pub unsafe fn arrive_after_chunks(barrier: u32) {
    // SAFETY: the caller's promise.
    unsafe {
        asm!("cp.async.mbarrier.arrive.noinc.shared.b64 [{}];", in(reg32) barrier,
            options(nostack, preserves_flags));
    }
}

/// Brings the line at `address` to the L2 cache, if it is in global memory: a hint that has no
/// other effect.
#[inline(always)]
pub fn prefetch(address: *const u8) {
    // SAFETY: a hint; addresses that are not mapped are ignored.
    unsafe {
        asm!("prefetch.global.L2 [{}];", in(reg64) address, options(nostack, preserves_flags));
    }
}
