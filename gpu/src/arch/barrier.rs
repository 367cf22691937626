//! `mbarrier`: barriers in shared memory that also count the bytes of asynchronous copies.

use core::arch::asm;

/// Prepares a barrier for `arrivals` arrivals a phase.
///
/// # Safety
/// `barrier` is an 8-byte aligned address of 8 bytes of shared memory, used for nothing else.
#[inline(always)]
pub unsafe fn init(barrier: u32, arrivals: u32) {
    // SAFETY: the caller's promise.
    unsafe {
        asm!("mbarrier.init.shared.b64 [{}], {};", in(reg32) barrier, in(reg32) arrivals,
            options(nostack, preserves_flags));
    }
}

/// Makes initialised barriers visible to bulk copies; the others need nothing.
#[inline(always)]
pub fn fence_init() {
    #[cfg(zipserv_sm = "90a")]
    // SAFETY: a fence.
    unsafe {
        asm!(
            "fence.mbarrier_init.release.cluster;",
            options(nostack, preserves_flags)
        );
    }
}

/// Arrives once.
///
/// # Safety
/// `barrier` has been initialised.
#[inline(always)]
pub unsafe fn arrive(barrier: u32) {
    // SAFETY: the caller's promise.
    unsafe {
        asm!("mbarrier.arrive.shared.b64 _, [{}];", in(reg32) barrier,
            options(nostack, preserves_flags));
    }
}

/// Arrives once if `really`, without a branch.
///
/// # Safety
/// As [`arrive`].
#[inline(always)]
pub unsafe fn arrive_if(barrier: u32, really: bool) {
    // SAFETY: the caller's promise.
    unsafe {
        asm!("{{ .reg .pred really;",
            "setp.ne.u32 really, {}, 0;",
            "@really mbarrier.arrive.shared.b64 _, [{}]; }}",
            in(reg32) u32::from(really), in(reg32) barrier, options(nostack, preserves_flags));
    }
}

/// Makes the current phase wait for `bytes` more bytes of copies.
///
/// # Safety
/// `barrier` has been initialised, and an arrival of the phase is still to come.
#[inline(always)]
pub unsafe fn expect(barrier: u32, bytes: u32) {
    // SAFETY: the caller's promise.
    unsafe {
        asm!("mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [{}], {};",
            in(reg32) barrier, in(reg32) bytes, options(nostack, preserves_flags));
    }
}

/// Asks for a phase; the instruction itself waits for a while.
#[cfg(zipserv_sm = "90a")]
macro_rules! ask {
    () => {
        "mbarrier.try_wait.parity.shared.b64 p, [{}], {};"
    };
}

/// Asks for a phase; while it lasts, leaves the other warps some 30 ns of issue slots.
#[cfg(not(zipserv_sm = "90a"))]
macro_rules! ask {
    () => {
        "mbarrier.test_wait.parity.shared.b64 p, [{}], {}; @!p nanosleep.u32 32;"
    };
}

/// Whether the phase of the given parity has completed.
///
/// # Safety
/// `barrier` has been initialised.
#[inline(always)]
pub unsafe fn test(barrier: u32, parity: u32) -> bool {
    let mut done: u32;
    // SAFETY: the caller's promise.
    unsafe {
        asm!(
            "{{ .reg .pred p;",
            "mbarrier.test_wait.parity.shared.b64 p, [{}], {};",
            "selp.u32 {}, 1, 0, p; }}",
            in(reg32) barrier, in(reg32) parity, out(reg32) done,
            options(nostack, preserves_flags));
    }
    done != 0
}

/// Waits until the phase of the given parity has completed.
///
/// # Safety
/// `barrier` has been initialised.
#[inline(always)]
pub unsafe fn wait(barrier: u32, parity: u32) {
    loop {
        let mut done: u32;
        // SAFETY: the caller's promise.
        unsafe {
            asm!(
                "{{ .reg .pred p;",
                ask!(),
                "selp.u32 {}, 1, 0, p; }}",
                in(reg32) barrier, in(reg32) parity, out(reg32) done,
                options(nostack, preserves_flags));
        }
        if done != 0 {
            return;
        }
    }
}
