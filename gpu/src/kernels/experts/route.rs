//! Sorts the assignments of tokens to experts by expert.
//!
//! ```text
//! experts of all --LDG--> count of each, in shared memory --> sums before --> where experts start; groups
//! experts of a block's own --LDG--> places: start + those before in other blocks, warps, lanes --> rows, places
//! ```
//!
//! Each block counts all assignments, so that none waits for another, and places its own part of them, 1024 at a time.
//! An expert's tokens stay in their order, so the groups that they fall into are always the same, and so are the bits
//! that come of them. For up to 1024 assignments one block does it all, in some 4 us.

use crate::{
    arch::{grid, memory, thread},
    args::{Group, NOWHERE, RouteArgs},
    kernels::{experts::expert, scan::block_sum_before},
    launch::{MAX_EXPERTS, ROUTE_THREADS},
    layout::LANES,
};

const WARPS: u32 = (ROUTE_THREADS / LANES) as u32;

/// Routes.
///
/// # Safety
/// `args` describe assignments, at most [`MAX_EXPERTS`] experts, and room for a row and a place for each assignment
/// and for as many groups as there can be; blocks are launched as [`crate::launch`] has them.
#[inline(always)]
pub unsafe fn route(args: &RouteArgs) {
    const { assert!(MAX_EXPERTS == ROUTE_THREADS) };
    const CHUNK: u32 = ROUTE_THREADS as u32;
    let shared = memory::shared();
    let counts = shared + 4 * WARPS;
    let nexts = counts + 4 * MAX_EXPERTS as u32;
    // For each warp and expert, how many of a chunk's assignments come before.
    let of_warps = nexts + 4 * MAX_EXPERTS as u32;
    let of_warp = |warp: u32, expert: u32| of_warps + 2 * (warp * args.of.experts + expert);
    // SAFETY: shared addresses lie in the block's; all threads meet at its barriers; ranges are the caller's promise.
    unsafe {
        let own = thread::thread() as u32;
        let (block, blocks) = (thread::block() as u32, thread::blocks() as u32);
        let chunks = args.of.assignments.div_ceil(CHUNK);
        let each = CHUNK * chunks.div_ceil(blocks.max(1));
        let (first, end) = (
            (block * each).min(args.of.assignments),
            ((block + 1) * each).min(args.of.assignments),
        );
        memory::store_u32(counts + 4 * own, 0);
        memory::store_u32(nexts + 4 * own, 0);
        thread::sync_block();
        grid::wait_dependencies();
        grid::launch_dependents();
        let mut at = own;
        while at < args.of.assignments {
            // Their loads are in flight at the same time.
            let mut experts = [NOWHERE; 4];
            unroll!(I < 4 => { experts[I] = expert(&args.of, at + I as u32 * CHUNK); });
            unroll!(I < 4 => {
                if experts[I] != NOWHERE {
                    memory::add_u32(counts + 4 * experts[I], 1);
                    if at + (I as u32 * CHUNK) < first {
                        memory::add_u32(nexts + 4 * experts[I], 1);
                    }
                }
            });
            at += 4 * CHUNK;
        }
        thread::sync_block();

        // A thread for each expert.
        let count = memory::load_u32(counts + 4 * own);
        let own_groups = (count + args.group_tokens)
            .wrapping_sub(1)
            .checked_div(args.group_tokens)
            .unwrap_or(0);
        let (start, routed) = block_sum_before::<WARPS>(shared, count);
        let (first_group, groups) = block_sum_before::<WARPS>(shared, own_groups);
        if block == 0 {
            if own == 0 {
                *args.group_count = groups;
                *args.routed = routed;
            }
            // Counted in tokens, not in groups: a compiler that unrolls it runs out of registers.
            let (mut done, mut group) = (0, first_group as usize);
            while done < count {
                let tokens = (count - done).min(args.group_tokens.max(1));
                *args.groups.add(group) = Group {
                    expert: own,
                    first: start + done,
                    tokens,
                };
                done += tokens;
                group += 1;
            }
        }
        let mut next = start + memory::load_u32(nexts + 4 * own);

        let (warp, lane) = (thread::warp(), thread::lane());
        let mut chunk = first;
        while chunk < end {
            let at = chunk + own;
            let expert = if at < end {
                expert(&args.of, at)
            } else {
                NOWHERE
            };
            memory::store_u32(nexts + 4 * own, next);
            let mut index = own;
            while index < WARPS * args.of.experts {
                memory::store_u16(of_warps + 2 * index, 0);
                index += CHUNK;
            }
            thread::sync_block();
            let peers = thread::lanes_with(expert);
            let earlier = (peers & ((1 << lane) - 1)).count_ones();
            if expert != NOWHERE && earlier == 0 {
                memory::store_u16(of_warp(warp, expert), peers.count_ones() as u16);
            }
            thread::sync_block();
            if own < args.of.experts {
                let mut before = 0;
                // By address, not by warp: 32 addresses made ahead would take half of the registers.
                let mut slot = of_warp(0, own);
                while slot < of_warp(WARPS, 0) {
                    let count = memory::load_u16(slot);
                    memory::store_u16(slot, before);
                    before += count;
                    slot += 2 * args.of.experts;
                }
                next += u32::from(before);
            }
            thread::sync_block();
            if expert != NOWHERE {
                let in_chunk = u32::from(memory::load_u16(of_warp(warp, expert))) + earlier;
                let place = memory::load_u32(nexts + 4 * expert) + in_chunk;
                *args.rows.add(place as usize) = at.checked_div(args.top_k).unwrap_or(0);
                *args.places.add(at as usize) = place;
            } else if at < end {
                *args.places.add(at as usize) = NOWHERE;
            }
            thread::sync_block();
            chunk += CHUNK;
        }
    }
}
