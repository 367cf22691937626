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

/// What `address` in this block's shared memory is in that of block `rank` of the cluster, as an address of the
/// cluster's.
#[inline(always)]
pub fn map(address: u32, rank: u32) -> u32 {
    let mut result: u32;
    // SAFETY: arithmetic.
    unsafe {
        asm!("mapa.shared::cluster.u32 {}, {}, {};",
            out(reg32) result, in(reg32) address, in(reg32) rank,
            options(pure, nomem, nostack, preserves_flags));
    }
    result
}

/// Arrives once, if `really`, at a barrier of another block, whose address [`map`] gives. There is no
/// branch, and no fence either: it tells that something has been read.
///
/// # Safety
/// That barrier has been initialised, and its block has not ended.
#[inline(always)]
pub unsafe fn arrive_if(barrier: u32, really: bool) {
    // SAFETY: the caller's promise.
    unsafe {
        asm!("{{ .reg .pred really;",
            "setp.ne.u32 really, {}, 0;",
            "@really mbarrier.arrive.shared::cluster.b64 _, [{}]; }}",
            in(reg32) u32::from(really), in(reg32) barrier, options(nostack, preserves_flags));
    }
}
