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
