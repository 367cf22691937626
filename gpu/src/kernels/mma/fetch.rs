//! How a warp brings the strips of a k-block to shared memory: where there are bulk copies, a lane by
//! itself; else in copies of 16 bytes, of which the lanes take equal parts.

#[cfg(zipserv_sm = "90a")]
pub use bulk::*;
#[cfg(not(zipserv_sm = "90a"))]
pub use chunks::*;

#[cfg(zipserv_sm = "90a")]
mod bulk {
    use crate::arch::{barrier, copy};

    /// Whether one lane copies a strip by itself.
    pub const ALONE: bool = true;

    /// How often a k-block's copies arrive: once a strip.
    #[inline(always)]
    pub const fn arrivals<const STRIPS: usize>() -> u32 {
        STRIPS as u32
    }

    /// Which strip `lane` has a part in, where no lane copies by itself.
    #[inline(always)]
    pub fn strip<const STRIPS: usize>(lane: u32) -> u32 {
        lane % STRIPS as u32
    }

    /// Starts this lane's part in a copy of `bytes` bytes, at most `most`: all of it.
    ///
    /// # Safety
    /// Both ranges are valid; `to`, `from` and `bytes` are multiples of 16; nothing touches the
    /// destination until the barrier's phase completes, at which this lane has yet to arrive.
    #[inline(always)]
    pub unsafe fn start<const STRIPS: usize>(
        to: u32,
        from: *const u8,
        bytes: u32,
        _most: u32,
        barrier: u32,
    ) {
        // SAFETY: the caller's promise.
        unsafe {
            barrier::expect(barrier, bytes);
            // Weights are read once a launch.
            copy::bulk(to, from, bytes, barrier, copy::Keep::not());
        }
    }
}

#[cfg(not(zipserv_sm = "90a"))]
mod chunks {
    use crate::{
        arch::{copy, thread},
        layout::LANES,
    };

    /// Whether one lane copies a strip by itself.
    pub const ALONE: bool = false;

    /// Bytes that a lane copies at a time.
    const CHUNK: u32 = 16;

    /// How often a k-block's copies arrive: once a lane.
    #[inline(always)]
    pub const fn arrivals<const STRIPS: usize>() -> u32 {
        LANES as u32
    }

    /// Which strip `lane` has a part in.
    #[inline(always)]
    pub fn strip<const STRIPS: usize>(lane: u32) -> u32 {
        const { assert!(LANES.is_multiple_of(STRIPS)) };
        lane / (LANES / STRIPS) as u32
    }

    /// Starts this lane's part in a copy of `bytes` bytes, at most `most`.
    ///
    /// # Safety
    /// Both ranges are valid; `to`, `from` and `bytes` are multiples of 16; nothing touches the
    /// destination until the barrier's phase completes, at which this lane has yet to arrive.
    #[inline(always)]
    pub unsafe fn start<const STRIPS: usize>(
        to: u32,
        from: *const u8,
        bytes: u32,
        most: u32,
        _barrier: u32,
    ) {
        let lanes = (LANES / STRIPS) as u32;
        let mine = CHUNK * (thread::lane() % lanes);
        let (to, from) = (to + mine, from.wrapping_add(mine as usize));
        let left = bytes.saturating_sub(mine);
        for round in 0..most.div_ceil(CHUNK * lanes) {
            let at = CHUNK * lanes * round;
            if at < left {
                // SAFETY: the caller's promise.
                unsafe { copy::whole_chunk(to + at, from.wrapping_add(at as usize)) };
            }
        }
    }
}
