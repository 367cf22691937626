//! How a block of threads brings a block tile to shared memory.

use zipserv_gpu::{
    arch::{copy, memory, thread},
    unroll,
};

use crate::{
    BANDS, BLOCK_BYTES, BLOCK_WEIGHTS, CHUNK,
    args::Weights,
    launch::{BANDS_AT, STREAMS_AT, THREADS},
};

/// Where a block tile's parts of the two streams start, in chunks.
#[derive(Clone, Copy)]
pub struct Start {
    pub bytes: u32,
    pub outliers: u32,
}

impl Start {
    /// Of the block tile numbered `index`, or past the last one.
    ///
    /// # Safety
    /// There is one.
    #[inline(always)]
    pub unsafe fn load(weights: &Weights, index: u32) -> Self {
        let start = weights.starts.wrapping_add(2 * index as usize);
        // SAFETY: the caller's promise.
        unsafe {
            Self {
                bytes: memory::load_global_u32(start),
                outliers: memory::load_global_u32(start.wrapping_add(1)),
            }
        }
    }
}

/// Starts this thread's copies of the block tile numbered `index`, whose parts of the streams start
/// at `from` and end at `to`.
///
/// # Safety
/// There is such a block tile; `stage` is the address of a stage in shared memory that nothing
/// touches until the copies have landed.
#[inline(always)]
pub unsafe fn copy(weights: &Weights, stage: u32, index: u32, from: Start, to: Start) {
    const BITMAP_CHUNKS: u32 = (BLOCK_BYTES / CHUNK) as u32;
    const { assert!(BITMAP_CHUNKS < THREADS as u32 && 4 * BANDS == CHUNK) };
    let chunk = |from: *const u8, index: u32| from.wrapping_add(CHUNK * index as usize);
    // SAFETY: every thread has an index.
    let thread = unsafe { thread::thread() } as u32;
    // SAFETY: the caller's promise.
    unsafe {
        if thread < BITMAP_CHUNKS {
            let bitmaps = weights.bitmaps.wrapping_add(BLOCK_BYTES * index as usize);
            let to = stage + CHUNK as u32 * thread;
            copy::whole_chunk(to, chunk(bitmaps, thread));
        } else if thread == BITMAP_CHUNKS {
            let bands = chunk(weights.bands.cast(), index);
            copy::whole_chunk(stage + BANDS_AT as u32, bands);
        }
        // There are at most as many bytes as weights, and seldom more outliers than a chunk a thread.
        let bytes = to.bytes - from.bytes;
        let streams = stage + STREAMS_AT as u32;
        unroll!(I < BLOCK_WEIGHTS / CHUNK / THREADS => {
            let next = (I * THREADS) as u32 + thread;
            if next < bytes {
                let source = chunk(weights.bytes, from.bytes + next);
                copy::whole_chunk(streams + CHUNK as u32 * next, source);
            }
        });
        let outliers = to.outliers - from.outliers;
        let streams = streams + CHUNK as u32 * bytes;
        let mut next = thread;
        while next < outliers {
            let source = chunk(weights.outliers, from.outliers + next);
            copy::whole_chunk(streams + CHUNK as u32 * next, source);
            next += THREADS as u32;
        }
    }
}
