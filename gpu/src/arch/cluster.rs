//! Thread-block clusters: who am I, and barriers across blocks.

use core::arch::asm;

/// Place of this block in its cluster.
#[inline(always)]
pub fn rank() -> u32 {
    let mut rank: u32;
    // SAFETY: every block has one.
    unsafe {
        asm!("mov.u32 {}, %cluster_ctarank;", out(reg32) rank,
            options(pure, nomem, nostack, preserves_flags));
    }
    rank
}

/// Waits for all threads of the cluster. Of what they wrote, only barriers need be there after it:
/// see [`super::barrier::fence_init`].
#[inline(always)]
pub fn sync() {
    // SAFETY: all threads of the cluster that have not ended run this.
    unsafe {
        asm!(
            "barrier.cluster.arrive.relaxed;",
            "barrier.cluster.wait.acquire;",
            options(nostack, preserves_flags)
        );
    }
}

/// Arrives once, if `really`, at the barrier that is to block `rank` of the cluster what `barrier`
/// is to this. There is no branch, and no fence either: it tells that something has been read.
///
/// # Safety
/// That barrier has been initialised, and its block has not ended.
#[inline(always)]
pub unsafe fn arrive_if(barrier: u32, rank: u32, really: bool) {
    // SAFETY: the caller's promise.
    unsafe {
        asm!("{{ .reg .pred really;",
            ".reg .b32 remote;",
            "setp.ne.u32 really, {}, 0;",
            "@really mapa.shared::cluster.u32 remote, {}, {};",
            "@really mbarrier.arrive.shared::cluster.b64 _, [remote]; }}",
            in(reg32) u32::from(really), in(reg32) barrier, in(reg32) rank,
            options(nostack, preserves_flags));
    }
}
