//! Reads memory and keeps nothing: the ceiling that the other kernels are measured against.
//!
//! ```text
//! global  --8 x LDG.128 in flight-->  registers  --xor-->  one word a thread
//! ```
//!
//! Blocks take chunks of 64 KB in turn, two blocks an SM, and so 128 KB are in flight
//! in each: more than three times what the latency of memory asks for.

use crate::{
    arch::{memory, thread},
    args::ReadArgs,
    launch::READ_THREADS,
};

/// Bytes of one load.
const LOAD: u64 = 16;
/// Bytes between one thread's loads of a chunk.
const STRIDE: u64 = READ_THREADS as u64 * LOAD;
/// Bytes that a block reads at a time.
const CHUNK: u64 = 8 * STRIDE;

/// Leaves the exclusive or of all words that this thread has read.
///
/// # Safety
/// `args.data` is readable for `args.bytes`, 16-byte aligned and a multiple of 16; `args.sink`
/// has a word for each thread of the launch, which is that of [`crate::launch`].
#[inline(always)]
pub unsafe fn read(args: &ReadArgs) {
    // SAFETY: every thread has a place in the grid; loads stay below `bytes`.
    unsafe {
        let (block, blocks) = (thread::block() as u64, thread::blocks() as u64);
        let index = thread::thread() as u64;
        let load = |at: u64| memory::load_global_u32x4(args.data.add(at as usize));
        let mut sum = 0;
        let mut at = block * CHUNK;
        while at + CHUNK <= args.bytes {
            let own = at + index * LOAD;
            let words = [
                load(own),
                load(own + STRIDE),
                load(own + 2 * STRIDE),
                load(own + 3 * STRIDE),
                load(own + 4 * STRIDE),
                load(own + 5 * STRIDE),
                load(own + 6 * STRIDE),
                load(own + 7 * STRIDE),
            ];
            for word in words {
                sum ^= fold(word);
            }
            at += blocks * CHUNK;
        }
        // The last chunk, if it is not whole, belongs to the block whose turn it is.
        let mut own = at + index * LOAD;
        while own < args.bytes {
            sum ^= fold(load(own));
            own += STRIDE;
        }
        *args
            .sink
            .add((block * READ_THREADS as u64 + index) as usize) = sum;
    }
}

#[inline(always)]
fn fold([a, b, c, d]: [u32; 4]) -> u32 {
    a ^ b ^ c ^ d
}
