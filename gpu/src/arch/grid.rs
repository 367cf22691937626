//! Order between the kernels of a stream, and between the blocks of a grid.

use core::arch::asm;

/// Lets the next kernel of the stream start as soon as there is room (programmatic dependent
/// launch). Without effect when the launch does not ask for it.
#[inline(always)]
pub fn launch_dependents() {
    // SAFETY: a hint to the scheduler.
    unsafe { asm!("griddepcontrol.launch_dependents;", options(nostack, preserves_flags)) }
}

/// Waits until the previous kernel of the stream has finished and its writes are visible.
#[inline(always)]
pub fn wait_dependencies() {
    // SAFETY: a wait.
    unsafe { asm!("griddepcontrol.wait;", options(nostack, preserves_flags)) }
}

/// Adds to a counter in global memory and returns its value before. Writes of this thread
/// before it are visible to a thread that reads the sum.
///
/// # Safety
/// `counter` is valid and aligned.
#[inline(always)]
pub unsafe fn add(counter: *mut u32, value: u32) -> u32 {
    let mut before: u32;
    // SAFETY: the caller's promise.
    unsafe {
        asm!("atom.acq_rel.gpu.global.add.u32 {}, [{}], {};",
            out(reg32) before, in(reg64) counter, in(reg32) value,
            options(nostack, preserves_flags));
    }
    before
}

/// Orders this thread's global writes before its later ones for all threads of the device.
#[inline(always)]
pub fn fence() {
    // SAFETY: a fence.
    unsafe { asm!("fence.acq_rel.gpu;", options(nostack, preserves_flags)) }
}
