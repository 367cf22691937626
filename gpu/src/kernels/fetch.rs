//! How a warp brings `RUNS` runs of contiguous bytes to shared memory: where there are bulk copies,
//! a lane for each run; else in copies of 16 bytes, the lanes dealt out to the runs evenly.

#[cfg(zipserv_sm = "90a")]
pub use bulk::*;
#[cfg(not(zipserv_sm = "90a"))]
pub use chunks::*;

#[cfg(zipserv_sm = "90a")]
mod bulk {
    use crate::arch::{barrier, copy, thread};

    /// How often [`arrive`] arrives.
    pub const ARRIVALS: u32 = 1;

    /// Which run `lane` copies; none if there are not so many.
    #[inline(always)]
    pub fn run<const RUNS: usize>(lane: u32) -> u32 {
        lane
    }

    /// Starts this lane's part in the copy of its run: `bytes` bytes, at most `most`.
    ///
    /// # Safety
    /// Both ranges are valid; `to`, `from` and `bytes` are multiples of 16; nothing touches the
    /// destination until the barrier's phase completes, for which the warp has yet to [`arrive`].
    #[inline(always)]
    pub unsafe fn start<const RUNS: usize>(
        to: u32,
        from: *const u8,
        bytes: u32,
        _most: u32,
        barrier: u32,
    ) {
        // SAFETY: the caller's promise.
        unsafe {
            barrier::expect(barrier, bytes);
            copy::bulk(to, from, bytes, barrier);
        }
    }

    /// Arrives when all that the warp has started has landed.
    ///
    /// # Safety
    /// `barrier` counts [`ARRIVALS`]; all lanes of the warp call this.
    #[inline(always)]
    pub unsafe fn arrive(barrier: u32) {
        thread::sync_warp();
        if thread::lane() == 0 {
            // SAFETY: the caller's promise.
            unsafe { barrier::arrive(barrier) };
        }
    }
}

#[cfg(not(zipserv_sm = "90a"))]
mod chunks {
    use crate::{
        arch::{copy, thread},
        layout::LANES,
    };

    /// How often [`arrive`] arrives.
    pub const ARRIVALS: u32 = LANES as u32;

    /// Bytes that a lane copies at a time.
    const CHUNK: u32 = 16;

    /// Which run `lane` copies.
    #[inline(always)]
    pub fn run<const RUNS: usize>(lane: u32) -> u32 {
        const { assert!(LANES.is_multiple_of(RUNS)) };
        lane / (LANES / RUNS) as u32
    }

    /// Starts this lane's part in the copy of its run: `bytes` bytes, at most `most`.
    ///
    /// # Safety
    /// Both ranges are valid; `to`, `from` and `bytes` are multiples of 16; nothing touches the
    /// destination until the barrier's phase completes, for which the warp has yet to [`arrive`].
    #[inline(always)]
    pub unsafe fn start<const RUNS: usize>(
        to: u32,
        from: *const u8,
        bytes: u32,
        most: u32,
        _barrier: u32,
    ) {
        let lanes = (LANES / RUNS) as u32;
        let mine = CHUNK * (thread::lane() % lanes);
        let (to, from) = (to + mine, from.wrapping_add(mine as usize));
        let left = bytes.saturating_sub(mine);
        for round in 0..most.div_ceil(CHUNK * lanes) {
            let at = CHUNK * lanes * round;
            if at < left {
                // SAFETY: the caller's promise.
                unsafe { copy::chunk(to + at, from.wrapping_add(at as usize), CHUNK) };
            }
        }
    }

    /// Arrives when all that the warp has started has landed.
    ///
    /// # Safety
    /// `barrier` counts [`ARRIVALS`]; all lanes of the warp call this.
    #[inline(always)]
    pub unsafe fn arrive(barrier: u32) {
        // SAFETY: the caller's promise.
        unsafe { copy::arrive_after_chunks(barrier) };
    }
}
