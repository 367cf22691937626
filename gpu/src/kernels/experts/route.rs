//! Sorts the assignments of tokens to experts by expert.
//!
//! ```text
//! experts --LDG--> count each (shared) --> sums before --> where experts start; groups
//! experts --LDG--> next place of each (shared) ----------> place of each assignment, and the reverse
//! ```
//!
//! One block. The order of an expert's tokens is as it comes: outputs of a token do not depend on those beside it, nor
//! on its place among them.

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
    let counts = sums + 4 * WARPS;
    // SAFETY: shared addresses lie in the block's; all threads meet at its barriers; ranges are the caller's promise.
    unsafe {
        let thread = thread::thread() as u32;
        let own = counts + 4 * thread;
        memory::store_u32(own, 0);
        grid::wait_dependencies();
        thread::sync_block();
        let mut at = thread;
        while at < args.assignments {
            if let Some(expert) = expert(args, at) {
                memory::add_u32(counts + 4 * expert, 1);
            }
            at += ROUTE_THREADS as u32;
        }
        thread::sync_block();
        // One expert a thread.
        let count = memory::load_u32(own);
        let own_groups = count
            .wrapping_add(args.group_tokens - 1)
            .checked_div(args.group_tokens)
            .unwrap_or(0);
        let (start, _) = block_sum_before::<WARPS>(sums, count);
        let (first_group, groups) = block_sum_before::<WARPS>(sums, own_groups);
        memory::store_u32(own, start);
        if thread == 0 {
            *args.group_count = groups;
        }
        for group in 0..own_groups {
            let done = group * args.group_tokens;
            *args.groups.add((first_group + group) as usize) = Group {
                expert: thread,
                first: start + done,
                tokens: (count - done).min(args.group_tokens),
            };
        }
        thread::sync_block();
        let mut at = thread;
        while at < args.assignments {
            let place = match expert(args, at) {
                Some(expert) => {
                    let place = memory::add_u32(counts + 4 * expert, 1);
                    let token = at.checked_div(args.top_k).unwrap_or(0);
                    *args.rows.add(place as usize) = token;
                    place
                }
                None => NOWHERE,
            };
            *args.places.add(at as usize) = place;
            at += ROUTE_THREADS as u32;
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
