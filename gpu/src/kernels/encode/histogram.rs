//! How often each exponent occurs, and which window that gives.
//!
//! ```text
//! dense --LDG.128--> exponents --LDS, add, STS--> a byte for each thread and exponent --> sums --> global counts
//! ```
//!
//! Most weights have one of a few exponents, so atomics would wait for each other. A thread counts in bytes of its own
//! instead, which lie in a bank of its own: no two threads of a warp meet. Before a byte can overflow, all are added
//! up, four exponents at a time.

use super::weight;
use crate::{
    arch::{memory, thread},
    args::EncodeArgs,
    format::window,
    launch::ENCODE_THREADS,
};

const THREADS: u32 = ENCODE_THREADS as u32;
/// Weights that a thread loads at a time.
const UNIT: u64 = 8;
/// Loads in flight.
const LOADS: u64 = 4;
/// Weights of a row that a block takes at a time.
const CHUNK: u64 = THREADS as u64 * UNIT;
/// Loads between two additions: no byte passes 255.
const ROUNDS: u32 = 255 / (UNIT as u32 * LOADS as u32);
/// Words that hold four exponents' counts of all threads.
const GROUPS: u32 = 64;
/// Threads that add up one group.
const ADDERS: u32 = THREADS / GROUPS;
/// Words that each of them adds up.
const WORDS: u32 = THREADS / ADDERS;

/// Adds the exponents of this block's chunks to `args.counts`.
///
/// # Safety
/// `args` describe dense weights, and counts that started as zeros; the launch is that of [`crate::launch`], on any
/// number of blocks.
#[inline(always)]
pub unsafe fn encode_histogram(args: &EncodeArgs) {
    // SAFETY: every thread has a place in the grid.
    let (thread, block, blocks) = unsafe {
        (
            thread::thread() as u32,
            thread::block() as u64,
            thread::blocks() as u64,
        )
    };
    let shared = memory::shared();
    let chunks_of_row = args.cols.div_ceil(CHUNK);
    let chunks = args.rows * chunks_of_row;
    // The group that this thread adds up, and its part of it.
    let (group, part) = (thread / ADDERS, thread % ADDERS);
    let own = shared + group * 4 * THREADS + part * 4 * WORDS;
    let counters = shared + 4 * thread;
    let mut sums = [0u32; 4];
    // SAFETY: shared addresses lie in the block's; weights are loaded only where there are some; all threads of the
    // block meet at its barriers, for `chunk` is the same in all.
    unsafe {
        for word in 0..WORDS {
            memory::store_u32(own + 4 * word, 0);
        }
        thread::sync_block();
        let mut chunk = block;
        while chunk < chunks {
            let mut round = 0;
            while round < ROUNDS && chunk < chunks {
                let load = |i: u64| unit(args, chunk + i * blocks, chunks, chunks_of_row, thread);
                let (a, b, c, d) = (load(0), load(1), load(2), load(3));
                chunk += LOADS * blocks;
                count(counters, a);
                count(counters, b);
                count(counters, c);
                count(counters, d);
                round += 1;
            }
            thread::sync_block();
            // Each lane starts at a word of its own, or all would ask the same bank.
            let (mut even, mut odd) = (0, 0);
            for word in 0..WORDS {
                let at = own + 4 * ((word + thread) % WORDS);
                let four = memory::load_u32(at);
                memory::store_u32(at, 0);
                even += four & 0x00FF_00FF;
                odd += four >> 8 & 0x00FF_00FF;
            }
            sums[0] += even & 0xFFFF;
            sums[1] += odd & 0xFFFF;
            sums[2] += even >> 16;
            sums[3] += odd >> 16;
            thread::sync_block();
        }
        let add = |exponent: usize, sum: u32| {
            if sum > 0 {
                memory::add_global_u64(args.counts.add(4 * group as usize + exponent), sum.into());
            }
        };
        let [a, b, c, d] = sums;
        add(0, a);
        add(1, b);
        add(2, c);
        add(3, d);
    }
}

/// Counts up to eight weights in the bytes of a thread.
#[inline(always)]
unsafe fn count(counters: u32, ([a, b, c, d], count): ([u32; 4], u32)) {
    let one = |i: u32, weight: u32| {
        let exponent = weight >> 7 & 0xFF;
        if i < count {
            let at = counters + exponent / 4 * (4 * THREADS) + exponent % 4;
            // SAFETY: the thread's byte of the exponent.
            unsafe { memory::store_u8(at, memory::load_u8(at) + 1) };
        }
    };
    one(0, a);
    one(1, a >> 16);
    one(2, b);
    one(3, b >> 16);
    one(4, c);
    one(5, c >> 16);
    one(6, d);
    one(7, d >> 16);
}

/// This thread's weights of a chunk, and how many there are.
#[inline(always)]
unsafe fn unit(
    args: &EncodeArgs,
    chunk: u64,
    chunks: u64,
    chunks_of_row: u64,
    thread: u32,
) -> ([u32; 4], u32) {
    let Some(row) = chunk.checked_div(chunks_of_row) else {
        return ([0; 4], 0);
    };
    let col = (chunk - row * chunks_of_row) * CHUNK + UNIT * u64::from(thread);
    if chunk >= chunks || col >= args.cols {
        return ([0; 4], 0);
    }
    // SAFETY: the row exists, and columns below `cols` do.
    unsafe {
        let from = args.weights.add((row * args.stride + col) as usize);
        if col + UNIT <= args.cols && from as u64 % 16 == 0 {
            return (memory::load_global_u32x4(from.cast()), UNIT as u32);
        }
        let count = (args.cols - col).min(UNIT);
        let one = |i: u64| match i < count {
            true => u32::from(weight(args, row, col + i)),
            false => 0,
        };
        let words = [0, 2, 4, 6].map(|i| one(i) | one(i + 1) << 16);
        (words, count as u32)
    }
}

/// Chooses the window.
///
/// # Safety
/// `args` are those of [`encode_histogram`], which has run; one thread is launched.
#[inline(always)]
pub unsafe fn encode_window(args: &EncodeArgs) {
    // SAFETY: the counts are complete, and there is room for the window.
    unsafe {
        let (base, outliers) = window::best(&*args.counts.cast::<[u64; 256]>());
        (*args.window).base = base.into();
        (*args.window).patches = outliers;
    }
}
