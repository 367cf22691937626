//! A norm of states to which each of several devices adds its part first: an all-reduce in one shot, over the memory of
//! peers.
//!
//! ```text
//! h --cp.async, before the wait--> shared memory
//! the number of this exchange --st.release--> each peer's flag; own flags --ld.acquire, until all have it
//! all ranks' parts, FP32 --cp.async--> shared memory --added to h in the order of ranks--> h
//! gains --cp.async, to where parts were--> shared memory; h, gains --> x, h, as in `norm`
//! ```
//!
//! Ahead of it is the product that has left this rank's parts in its own memory. When a block comes past its wait, they
//! are there, and it tells all peers so; when all have told it, theirs are there too. What it tells is the number of the
//! exchange. Each block counts by itself, in its rank's memory: all ranks launch the same, so their counts agree, whether
//! launches are recorded or not. All ranks add in the same order, so all have the same bits.
//!
//! **Two places for parts, used in turn, are enough.** The product of exchange i + 2 writes where peers may read those of
//! exchange i. But its own rank's `norm_parts` of exchange i + 1 has ended before it writes: a product's threads write
//! when they have waited for the kernel ahead, or for activations which one that has waited copies, and that kernel has
//! waited for the one ahead of it, and so on. Each block of that has had a flag of each peer, and the peer gave it when
//! all ahead of its own `norm_parts` of exchange i + 1 had ended, that of exchange i with all its reads among them. One
//! row is enough for that, however many the two have. So no rank is more than one exchange ahead of another. Parts that
//! no norm reads are the exception: behind them all ranks are waited for.
//!
//! **Nothing waits for itself.** Blocks of the product behind start when all blocks here have, so those that wait for peers
//! have their SMs. Where a peer fails, the host sets a word: then nobody waits any more, and what comes out is worth
//! nothing.

use zipserv_gpu::launch::Launch;

use crate::{blocks_of_32_registers, norm};

/// Rows, at most: each has flags.
pub const MOST_ROWS: usize = 64;

/// Those of `norm`, and what is left of its shared memory for parts on their way.
pub const LAUNCH: Launch = Launch {
    name: "norm_parts",
    min_blocks: blocks_of_32_registers(norm::THREADS),
    ..norm::LAUNCH
};

/// Bytes of four features of all threads.
const FOURS_BYTES: usize = 16 * norm::THREADS;

/// Where parts, and gains behind them in time, are in shared memory.
const fn parts_at(features: usize) -> usize {
    norm::SUMS_BYTES + 4 * features
}

/// Times that a thread has four features of each part on their way together, at most as often as it has some at all; 0
/// where there is no room for them, or none for gains then.
pub const fn fours_at_a_time(features: usize, ranks: usize) -> usize {
    let all = (features / 4).div_ceil(norm::THREADS);
    let room = LAUNCH.shared_bytes.saturating_sub(parts_at(features));
    let fit = room / (FOURS_BYTES * ranks);
    if fit * ranks < all {
        0
    } else if fit < all {
        fit
    } else {
        all
    }
}

/// Bytes of shared memory, for so many features and ranks.
pub const fn shared_bytes(features: usize, ranks: usize) -> usize {
    parts_at(features) + FOURS_BYTES * ranks * fours_at_a_time(features, ranks)
}

/// What this rank's device sees of a rank's memory.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Peer {
    /// Its parts: rows of FP32, aligned to 16 bytes.
    pub parts: *const f32,
    /// Its flags: [`MOST_ROWS`] words for each rank that may tell it something.
    pub flags: *mut u32,
}

/// The kernel's one parameter: a block a row, [`MOST_ROWS`] at most.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Args {
    /// What `norm` takes; nothing is added, and states are there. Parts have the rows of states.
    pub norm: norm::Args,
    /// All ranks, in their order.
    pub ranks: *const Peer,
    /// Exchanges of each block so far: a word for each.
    pub counts: *mut u32,
    /// A word that is not 0 when nobody is waited for any more.
    pub aborted: *const u32,
    /// How many ranks there are, at least 2.
    pub count: u32,
    /// Which of them this is.
    pub rank: u32,
    /// [`fours_at_a_time`], not 0.
    pub fours: u32,
}

#[cfg(target_arch = "nvptx64")]
mod device {
    use zipserv_gpu::{
        arch::{copy, grid, memory, thread},
        unroll,
    };

    use super::{Args, FOURS_BYTES, MOST_ROWS};
    use crate::norm::{
        THREADS,
        device::{Row, load, squares},
    };

    /// A row whose gains are where parts of the same thread were.
    type PartRow = Row<16>;

    /// Looks at a flag before it is asked whether to go on.
    const LOOKS: u32 = 1024;

    zipserv_gpu::kernel! {
        /// Adds all ranks' parts to the row of this block, and norms it.
        ///
        /// # Safety
        /// `args` have as many rows as there are blocks, which are launched as [`super::LAUNCH`] has them, with
        /// [`super::shared_bytes`], behind the product that writes this rank's parts. All ranks launch the same, and the
        /// two places of parts are used in turn.
        fn norm_parts(args: super::Args) {
            // SAFETY: ranges are the caller's promise; all threads meet at the block's barriers. States, rows and counts
            // are older than the product ahead, which lets none behind it start before all ahead of it has ended.
            unsafe {
                grid::launch_dependents();
                let row = PartRow::new(&args.norm);
                row.prefetch_gains(&args.norm);
                let state = row.state(&args.norm);
                let h = args.norm.h.add(state);
                row.copy_state(h);
                let count = args.counts.add(thread::block() as usize);
                let exchange = memory::observe_u32(count).wrapping_add(1);
                grid::wait_dependencies();
                meet(&args, exchange);
                // All threads have read it.
                if row.own == 0 {
                    *count = exchange;
                }
                let sum = add(&args, row, state);
                row.copy_gains(&args.norm);
                copy::commit_chunks();
                row.finish(&args.norm, Some(h), sum);
            }
        }
    }

    /// Tells all peers that this rank's parts are there, and waits for theirs: a thread for each of them.
    #[inline(always)]
    unsafe fn meet(args: &Args, exchange: u32) {
        // SAFETY: the kernel's promise.
        unsafe {
            let rank = thread::thread() as u32;
            if rank < args.count && rank != args.rank {
                let flag = |rank: u32, from: u32| {
                    let at = from as usize * MOST_ROWS + thread::block() as usize;
                    (*args.ranks.add(rank as usize)).flags.add(at)
                };
                memory::release_u32(flag(rank, args.rank), exchange);
                let own = flag(args.rank, rank);
                let mut looks = 0u32;
                // A peer may be ahead by one.
                while (memory::acquire_u32(own).wrapping_sub(exchange) as i32) < 0 {
                    looks += 1;
                    if looks.is_multiple_of(LOOKS) && memory::observe_u32(args.aborted) != 0 {
                        break;
                    }
                }
            }
            thread::sync_block();
        }
    }

    /// Adds all parts to the state in shared memory; this thread's squares then.
    #[inline(always)]
    unsafe fn add(args: &Args, row: PartRow, state: usize) -> f32 {
        // Behind one another: fours of the first rank, of the next one.
        let start = row.gains(row.own);
        let (mut first, mut sum) = (row.own, 0.0);
        // SAFETY: the kernel's promise; what is in shared memory is this thread's.
        unsafe {
            while first < row.fours {
                let (mut rank, mut to) = (0, start);
                while rank < args.count {
                    let part = (*args.ranks.add(rank as usize)).parts.add(state);
                    let mut i = 0;
                    while i < args.fours {
                        let at = first + i * THREADS as u32;
                        if at < row.fours {
                            copy::whole_chunk(to, part.add(4 * at as usize).cast());
                        }
                        to += FOURS_BYTES as u32;
                        // Several at a time, as the compiler would have it, take more registers than there are.
                        i = thread::opaque(i + 1);
                    }
                    rank += 1;
                }
                copy::commit_chunks();
                copy::wait_chunks::<0>();
                let (mut i, mut from) = (0, start);
                while i < args.fours {
                    let at = first + i * THREADS as u32;
                    if at < row.fours {
                        let mut values = load(row.four(at));
                        let (mut rank, mut part) = (0, from);
                        while rank < args.count {
                            let parts = load(part);
                            unroll!(E < 4 => { values[E] += parts[E]; });
                            part += args.fours * FOURS_BYTES as u32;
                            rank = thread::opaque(rank + 1);
                        }
                        memory::store_u32x4(row.four(at), values.map(f32::to_bits));
                        sum += squares(values);
                    }
                    from += FOURS_BYTES as u32;
                    i += 1;
                }
                first += args.fours * THREADS as u32;
            }
        }
        sum
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_have_room_and_a_block_fits_beside_a_product() {
        for features in [4, 192, 4096, 8192, 12_288, norm::MOST_FEATURES] {
            for ranks in 2..=8 {
                let fours = fours_at_a_time(features, ranks);
                let all = (features / 4).div_ceil(norm::THREADS);
                assert!(shared_bytes(features, ranks) <= LAUNCH.shared_bytes);
                assert!(fours <= all && (fours == 0 || fours * ranks >= all));
                assert_eq!(
                    fours > 0,
                    features < norm::MOST_FEATURES
                        && (features, ranks) != (12_288, 5)
                        && (features, ranks) != (12_288, 7),
                    "{features} {ranks}"
                );
            }
        }
        // All of a row is on its way together, and an SM of 228 KiB has room for the block and a product's of 177232
        // bytes, with 1 KiB for each.
        assert_eq!(fours_at_a_time(4096, 2), 8);
        assert!(shared_bytes(4096, 2) + 177_232 + 2048 <= 228 * 1024);
    }
}
