//! Sums over the threads of a warp and of a block, and over those before each.

use crate::{
    arch::{memory, thread},
    layout::LANES,
};

/// The sum of a value over the lanes of a warp.
#[inline(always)]
pub fn warp_sum(mut value: u32) -> u32 {
    let lane = thread::lane();
    for distance in [16, 8, 4, 2, 1] {
        value += thread::shuffle(value, lane ^ distance);
    }
    value
}

/// The sum of a value over the lanes before this one.
#[inline(always)]
pub fn warp_sum_before(value: u32) -> u32 {
    let lane = thread::lane();
    let mut sum = value;
    for distance in [1, 2, 4, 8, 16] {
        let other = thread::shuffle(sum, lane.wrapping_sub(distance) % 32);
        sum += if lane >= distance { other } else { 0 };
    }
    sum - value
}

/// The sums of a value over the threads of a block before this one, and over all.
///
/// # Safety
/// All threads of the block, of `WARPS` warps, call this; `shared` has a word for each warp.
#[inline(always)]
pub unsafe fn block_sum_before<const WARPS: u32>(shared: u32, value: u32) -> (u32, u32) {
    const { assert!(WARPS <= LANES as u32) };
    let (lane, warp) = (thread::lane(), thread::warp());
    let earlier = warp_sum_before(value);
    // SAFETY: the caller's promise.
    unsafe {
        if lane == LANES as u32 - 1 {
            memory::store_u32(shared + 4 * warp, earlier.wrapping_add(value));
        }
        thread::sync_block();
        let of_warps = if lane < WARPS {
            memory::load_u32(shared + 4 * lane)
        } else {
            0
        };
        let earlier_warps = thread::shuffle(warp_sum_before(of_warps), warp);
        let all = warp_sum(of_warps);
        thread::sync_block();
        (earlier_warps.wrapping_add(earlier), all)
    }
}
