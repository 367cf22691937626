//! Sorts the assignments of tokens to experts by expert.
//!
//! ```text
//! experts --LDG--> shared --LDS--> count of each --> sums before --> where experts start; groups
//! experts --LDG--> shared --LDS--> place of each assignment, and the reverse
//! ```
//!
//! One block, a thread for each expert, which goes through all assignments. So an expert's tokens are in their order,
//! the groups that they fall into are always the same, and so are the bits that come of them. For 256 assignments that
//! is 128 loads of four.

use crate::{
    arch::{grid, memory, thread},
    args::{Group, NOWHERE, RouteArgs},
    kernels::scan::block_sum_before,
    launch::{MAX_EXPERTS, ROUTE_THREADS},
    layout::LANES,
};

/// Routes.
///
/// # Safety
/// `args` describe assignments, at most [`MAX_EXPERTS`] experts, and room for a row and a place for each assignment
/// and for as many groups as there can be; one block is launched, as [`crate::launch`] has it.
#[inline(always)]
pub unsafe fn route(args: &RouteArgs) {
    const WARPS: u32 = (ROUTE_THREADS / LANES) as u32;
    const { assert!(MAX_EXPERTS == ROUTE_THREADS) };
    grid::launch_dependents();
    let sums = memory::shared();
    let staged = sums + 4 * WARPS;
    // SAFETY: shared addresses lie in the block's; all threads meet at its barriers; ranges are the caller's promise.
    unsafe {
        let own = thread::thread() as u32;
        grid::wait_dependencies();
        let mut count = 0;
        for_each_own(args, staged, |_| count += 1);
        let own_groups = (count + args.group_tokens)
            .wrapping_sub(1)
            .checked_div(args.group_tokens)
            .unwrap_or(0);
        let (start, _) = block_sum_before::<WARPS>(sums, count);
        let (first_group, groups) = block_sum_before::<WARPS>(sums, own_groups);
        if own == 0 {
            *args.group_count = groups;
        }
        for group in 0..own_groups {
            let done = group * args.group_tokens;
            *args.groups.add((first_group + group) as usize) = Group {
                expert: own,
                first: start + done,
                tokens: (count - done).min(args.group_tokens),
            };
        }
        let mut place = start;
        for_each_own(args, staged, |at| {
            *args.rows.add(place as usize) = at.checked_div(args.top_k).unwrap_or(0);
            *args.places.add(at as usize) = place;
            place += 1;
        });
    }
}

/// Calls `each` with the assignments to this thread's expert, in their order, and has those to none be nowhere.
///
/// # Safety
/// As [`route`]; at `staged` there is a word for each thread.
#[inline(always)]
unsafe fn for_each_own(args: &RouteArgs, staged: u32, mut each: impl FnMut(u32)) {
    // SAFETY: the caller's promise.
    unsafe {
        let own = thread::thread() as u32;
        let mut first = 0;
        while first < args.assignments {
            let at = first + own;
            let mut expert = NOWHERE;
            if at < args.assignments {
                match self::expert(args, at) {
                    Some(found) => expert = found,
                    None => *args.places.add(at as usize) = NOWHERE,
                }
            }
            memory::store_u32(staged + 4 * own, expert);
            thread::sync_block();
            let count = (args.assignments - first).min(ROUTE_THREADS as u32);
            let mut index = 0;
            while index < count {
                let four = memory::load_u32x4(staged + 4 * index);
                unroll!(E < 4 => {
                    if four[E] == own {
                        each(first + index + E as u32);
                    }
                });
                index += 4;
            }
            thread::sync_block();
            first += ROUTE_THREADS as u32;
        }
    }
}

/// The expert of an assignment, if it is one.
#[inline(always)]
unsafe fn expert(args: &RouteArgs, at: u32) -> Option<u32> {
    let at = at as usize;
    // SAFETY: there are so many assignments.
    let expert = unsafe {
        match args.is_64_bit {
            true => *args.experts_of.cast::<i64>().add(at),
            false => i64::from(*args.experts_of.cast::<i32>().add(at)),
        }
    };
    (0 <= expert && expert < i64::from(args.experts)).then_some(expert as u32)
}
