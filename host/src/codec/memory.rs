use bytemuck::Pod;

/// Zeros in fresh memory, in large pages where the system has them: with small ones, faults take
/// longer than the codec does.
pub(crate) fn zeroed<T: Pod>(len: usize) -> Vec<T> {
    let mut memory = bytemuck::zeroed_vec(len);
    ask_for_large_pages(bytemuck::cast_slice_mut(&mut memory));
    memory
}

/// As [`zeroed`], but nothing where there is not so much memory.
pub(crate) fn try_zeroed(len: usize) -> Option<Vec<u8>> {
    let mut memory = bytemuck::try_zeroed_vec(len).ok()?;
    ask_for_large_pages(&mut memory);
    Some(memory)
}

#[cfg(target_os = "linux")]
fn ask_for_large_pages(memory: &mut [u8]) {
    use rustix::mm::{Advice, madvise};

    const LARGE_PAGE: usize = 2 << 20;
    let start = memory.as_ptr().align_offset(LARGE_PAGE);
    if let Some(rest) = memory.get_mut(start..) {
        let len = rest.len() / LARGE_PAGE * LARGE_PAGE;
        // SAFETY: the pages belong to `memory` in full, and the advice changes no byte of them.
        // It may be refused, which costs speed alone.
        unsafe { madvise(rest.as_mut_ptr().cast(), len, Advice::LinuxHugepage) }.ok();
    }
}

#[cfg(not(target_os = "linux"))]
fn ask_for_large_pages(_: &mut [u8]) {}
