//! Asynchronous copies from global to shared memory.

use core::arch::asm;

/// How long the L2 cache should keep what a [`bulk`] copy reads.
#[derive(Clone, Copy)]
pub struct Keep(u64);

impl Keep {
    /// Not at all: it is read once, and what is read again and again should stay instead.
    #[inline(always)]
    pub fn not() -> Self {
        let mut policy: u64;
        // SAFETY: makes a number.
        unsafe {
            asm!("createpolicy.fractional.L2::evict_first.b64 {}, 1.0;", out(reg64) policy,
                options(pure, nomem, nostack, preserves_flags));
        }
        Self(policy)
    }

    /// As usual.
    #[inline(always)]
    pub fn as_usual() -> Self {
        let mut policy: u64;
        // SAFETY: makes a number.
        unsafe {
            asm!("createpolicy.fractional.L2::evict_normal.b64 {}, 1.0;", out(reg64) policy,
                options(pure, nomem, nostack, preserves_flags));
        }
        Self(policy)
    }
}

/// Starts a bulk copy of `bytes` bytes; `barrier` counts them when they have landed.
///
/// # Safety
/// Both ranges are valid; `to`, `from` and `bytes` are multiples of 16; `barrier` expects the
/// bytes; nothing touches the destination until the barrier's phase completes.
#[inline(always)]
pub unsafe fn bulk(to: u32, from: *const u8, bytes: u32, barrier: u32, keep: Keep) {
    // SAFETY: the caller's promise.
    unsafe {
        asm!(
            "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint \
             [{}], [{}], {}, [{}], {};",
            in(reg32) to, in(reg64) from, in(reg32) bytes, in(reg32) barrier, in(reg64) keep.0,
            options(nostack, preserves_flags));
    }
}

/// Brings a tensor map to where copies look for it first: a hint that has no other effect.
///
/// # Safety
/// `map` as in [`tensor`].
#[inline(always)]
pub unsafe fn prefetch_map(map: u64) {
    // SAFETY: the caller's promise.
    unsafe {
        asm!("prefetch.tensormap [{}];", in(reg64) map, options(nostack, preserves_flags));
    }
}

/// Starts a copy of a box of a two-dimensional tensor, as `map` describes both; what lies outside
/// the tensor becomes zeros. `barrier` counts the bytes of the whole box when they have landed.
///
/// # Safety
/// `map` is the generic address of a tensor map in a kernel parameter or in constant or global
/// memory; `to` is aligned as its swizzle asks and has room for the box; `barrier` expects the
/// bytes; nothing touches the destination until the barrier's phase completes.
#[inline(always)]
pub unsafe fn tensor(to: u32, map: u64, column: u32, row: u32, barrier: u32) {
    // SAFETY: the caller's promise.
    unsafe {
        asm!(
            "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes \
             [{}], [{}, {{{}, {}}}], [{}];",
            in(reg32) to, in(reg64) map, in(reg32) column, in(reg32) row, in(reg32) barrier,
            options(nostack, preserves_flags));
    }
}

/// [`tensor`] to the same place of each block of the cluster whose bit is set in `blocks`, where
/// the same barrier counts the bytes.
///
/// # Safety
/// As [`tensor`], in each of the blocks.
#[inline(always)]
pub unsafe fn tensor_multicast(
    to: u32,
    map: u64,
    column: u32,
    row: u32,
    barrier: u32,
    blocks: u16,
) {
    // SAFETY: the caller's promise.
    unsafe {
        asm!(
            "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes\
             .multicast::cluster [{}], [{}, {{{}, {}}}], [{}], {};",
            in(reg32) to, in(reg64) map, in(reg32) column, in(reg32) row, in(reg32) barrier,
            in(reg16) blocks, options(nostack, preserves_flags));
    }
}

/// [`tensor`] of four dimensions, which the L2 cache keeps as `keep` says.
///
/// # Safety
/// As [`tensor`].
#[inline(always)]
pub unsafe fn tensor4(to: u32, map: u64, at: [u32; 4], barrier: u32, keep: Keep) {
    // SAFETY: the caller's promise.
    unsafe {
        asm!(
            "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes\
             .L2::cache_hint [{}], [{}, {{{}, {}, {}, {}}}], [{}], {};",
            in(reg32) to, in(reg64) map, in(reg32) at[0], in(reg32) at[1], in(reg32) at[2],
            in(reg32) at[3], in(reg32) barrier, in(reg64) keep.0, options(nostack, preserves_flags));
    }
}

/// Orders what this thread has read of shared memory before copies that others start there when
/// they have seen it arrive at a barrier. The arrival alone does not: it comes before the answers
/// to loads which no arithmetic has waited for yet, and copies go another way than loads.
#[inline(always)]
pub fn finish_reads() {
    fence_proxy();
}

/// Lets this thread's `wgmma` read what [`chunk`]s have brought to shared memory, its own or those of others whose
/// barrier it has waited for.
#[inline(always)]
pub fn show_chunks() {
    fence_proxy();
}

/// Orders accesses to shared memory by threads and by copies and tensor cores.
#[inline(always)]
fn fence_proxy() {
    // SAFETY: a fence.
    unsafe {
        asm!(
            "fence.proxy.async.shared::cta;",
            options(nostack, preserves_flags)
        )
    }
}

/// Starts a copy of 16 bytes of which the first `bytes` (0 to 16) are read and the others zero.
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

/// [`chunk`] of all 16 bytes.
///
/// It takes no [`Keep`]: for Hopper, ptxas 13.0 may have such a copy read its policy from a register
/// that nothing has written, which is an illegal instruction.
///
/// # Safety
/// As [`chunk`].
#[inline(always)]
pub unsafe fn whole_chunk(to: u32, from: *const u8) {
    // SAFETY: the caller's promise.
    unsafe {
        asm!("cp.async.cg.shared.global [{}], [{}], 16;",
            in(reg32) to, in(reg64) from, options(nostack, preserves_flags));
    }
}

/// Starts a copy of 8 bytes.
///
/// # Safety
/// `from` is readable for 8 bytes; both addresses are 8-byte aligned; nothing touches the destination until the copy has
/// completed.
#[inline(always)]
pub unsafe fn half_chunk(to: u32, from: *const u8) {
    // SAFETY: the caller's promise.
    unsafe {
        asm!("cp.async.ca.shared.global [{}], [{}], 8;",
            in(reg32) to, in(reg64) from, options(nostack, preserves_flags));
    }
}

/// Brings `bytes` bytes to the L2 cache: a hint that has no other effect.
///
/// # Safety
/// The range is readable; `from` and `bytes` are multiples of 16.
#[inline(always)]
pub unsafe fn prefetch_bulk(from: *const u8, bytes: u32) {
    // SAFETY: the caller's promise.
    unsafe {
        asm!("cp.async.bulk.prefetch.L2.global [{}], {};",
            in(reg64) from, in(reg32) bytes, options(nostack, preserves_flags));
    }
}

/// Arrives at `barrier` when all copies that this thread has started with [`chunk`], [`whole_chunk`] and [`half_chunk`]
/// have landed.
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

/// Makes a group of the copies that this thread has started with [`chunk`], [`whole_chunk`] and [`half_chunk`] since the
/// last one.
#[inline(always)]
pub fn commit_chunks() {
    // SAFETY: groups copies.
    unsafe { asm!("cp.async.commit_group;", options(nostack, preserves_flags)) }
}

/// Waits until all groups of this thread but the latest `LEFT` have landed.
#[inline(always)]
pub fn wait_chunks<const LEFT: u32>() {
    // SAFETY: waits.
    unsafe { asm!("cp.async.wait_group {};", const LEFT, options(nostack, preserves_flags)) }
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
