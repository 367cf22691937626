//! Order between the kernels of a stream. Without effect where kernels only follow one another.

#[cfg(zipserv_sm = "90a")]
use core::arch::asm;

/// Lets the next kernel of the stream start as soon as there is room (programmatic dependent
/// launch). Without effect when the launch does not ask for it.
///
/// All kernels call this once they have [waited](wait_dependencies) themselves. So when a kernel starts, all but the one
/// ahead of it have ended, and what those have written may be read at once.
#[inline(always)]
pub fn launch_dependents() {
    #[cfg(zipserv_sm = "90a")]
    // SAFETY: a hint to the scheduler.
    unsafe {
        asm!(
            "griddepcontrol.launch_dependents;",
            options(nostack, preserves_flags)
        )
    }
}

/// Waits until the previous kernel of the stream has finished and its writes are visible.
#[inline(always)]
pub fn wait_dependencies() {
    #[cfg(zipserv_sm = "90a")]
    // SAFETY: a wait.
    unsafe {
        asm!("griddepcontrol.wait;", options(nostack, preserves_flags))
    }
}
