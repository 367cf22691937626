//! Y = X W^T from weights in the published layout.
//!
//! ```text
//! for each block tile of this thread block's 64 rows and its part of K:
//!     wait for its copies; sync                       two stages: this one, and the next
//!     start copies of the next block tile and its activations       cp.async
//!     each warp, for its band of 16 rows, two k-steps at a time:
//!         decode 2 x 4 registers                      planes, counts, bytes, outliers
//!         for each 8 tokens: ldmatrix; 2 mma
//! sums through shared memory: four features of a token to a thread
//! other parts of K: store them; the last part: add the others', round, store
//! ```
//!
//! The parts of a row block are neighbours in the grid. That thread blocks start in order, so that
//! the last one waits for such as run or have run, is assumed: CUDA does not promise it. Budget:
//! builder/budget.json.

use zipserv_gpu::{
    arch::{copy, memory, mma, thread},
    kernels::{epilogue::Epilogue, fixup::sentinel},
    launch::Gemm as Zipgemm,
    unroll,
};

use super::{
    band::Decoder,
    stage::{self, Start},
};
use crate::{
    BAND_KSTEPS, BLOCK_COLS, BLOCK_ROWS, CHUNK, KSTEP_SIDE,
    args::GemmArgs,
    launch::{Gemm, THREADS, WEIGHTS_BYTES},
};

/// Tokens of an `mma`.
const MMA_TOKENS: usize = 8;
/// Chunks of a token's activations that go with a block tile.
const X_CHUNKS: u32 = (2 * BLOCK_COLS / CHUNK) as u32;
/// Fours of features of a row block.
const FOURS: u32 = BLOCK_ROWS as u32 / 4;
/// Bytes between tokens of sums.
const SUMS_STRIDE: u32 = 4 * Gemm::SUMS_STRIDE as u32;

/// Multiplies 64 rows of weights, or a part of their columns, by all tokens.
///
/// # Safety
/// `args` describe a compressed matrix, activations whose rows are aligned to 16 bytes, at most
/// `8 * N_TILES` of them, and outputs; the launch is [`Gemm`]'s, of `split` blocks for each 64
/// rows, no more than there are block tiles in them.
#[inline(always)]
pub unsafe fn gemm<const N_TILES: usize>(args: &GemmArgs) {
    // `blocks` plays no part in the shape.
    let shape = const {
        Gemm {
            n_tiles: N_TILES,
            blocks: 1,
        }
    };
    let stage_bytes = shape.stage_bytes() as u32;
    let shared = memory::shared();
    // SAFETY: every thread has a place in the grid.
    let (block, thread) = unsafe { (thread::block() as u32, thread::thread() as u32) };
    let row_block = block.checked_div(args.split).unwrap_or(0);
    let part = block - row_block * args.split;
    let block_cols = args.weights.k.div_ceil(BLOCK_COLS as u32);
    let bound = |part: u32| (part * block_cols).checked_div(args.split).unwrap_or(0);
    let (from, to) = (bound(part), bound(part + 1));
    let first = row_block * block_cols;

    // SAFETY: block tiles `from..to` of the row block exist, and at least one, for there are no
    // more parts than block tiles; and so do the starts after each.
    unsafe {
        let copy = |stage: u32, col: u32, start: Start, end: Start| {
            stage::copy(&args.weights, stage, first + col, start, end);
            copy_activations::<N_TILES>(args, stage + WEIGHTS_BYTES as u32, col, thread);
        };
        let start = Start::load(&args.weights, first + from);
        let mut end = Start::load(&args.weights, first + from + 1);
        let mut byte_chunks = end.bytes - start.bytes;
        copy(shared, from, start, end);
        copy::commit_chunks();
        // The end of the block tile after that, or again of the last one.
        let mut next_end = Start::load(&args.weights, first + (from + 2).min(to));

        let decoder = Decoder::new(args.weights.base);
        let mut sums = [[0.0f32; 4]; N_TILES];
        let x_row = x_row(thread::lane());
        let (mut stage, mut other) = (shared, shared + stage_bytes);
        for col in from..to {
            copy::wait_chunks::<0>();
            // Nobody reads the other stage any more either.
            thread::sync_block();
            let next_byte_chunks = next_end.bytes - end.bytes;
            if col + 1 < to {
                copy(other, col + 1, end, next_end);
                end = next_end;
                next_end = Start::load(&args.weights, first + (col + 3).min(to));
            }
            copy::commit_chunks();

            let mut band = decoder.band(stage, byte_chunks);
            let x = stage + WEIGHTS_BYTES as u32 + x_row;
            unroll!(P < BAND_KSTEPS / 2 => {
                let a = [band.kstep(), band.kstep()];
                unroll!(J < N_TILES => {
                    let tokens = (J * MMA_TOKENS * Gemm::X_STRIDE) as u32;
                    let cols = (P * 4 * KSTEP_SIDE) as u32;
                    let b = mma::load_matrices(x + tokens + cols);
                    mma::mma_16x8x16(&mut sums[J], a[0], [b[0], b[1]]);
                    mma::mma_16x8x16(&mut sums[J], a[1], [b[2], b[3]]);
                });
            });
            byte_chunks = next_byte_chunks;
            core::mem::swap(&mut stage, &mut other);
        }

        thread::sync_block();
        stage_sums(shared, sums);
        thread::sync_block();
        write::<N_TILES>(args, shared, row_block, part, thread);
    }
}

/// Starts this thread's copies of the activations of a block column; what there is none of becomes
/// zeros.
///
/// # Safety
/// The activations are as `gemm`'s; nothing touches `to` until the copies have landed.
#[inline(always)]
unsafe fn copy_activations<const N_TILES: usize>(args: &GemmArgs, to: u32, col: u32, thread: u32) {
    let chunks = (N_TILES * MMA_TOKENS) as u32 * X_CHUNKS;
    unroll!(I < N_TILES.div_ceil(2) => {
        let index = (I * THREADS) as u32 + thread;
        if index < chunks {
            let (token, chunk) = (index / X_CHUNKS, index % X_CHUNKS);
            let k = col * BLOCK_COLS as u32 + chunk * (CHUNK as u32 / 2);
            let there = token < args.n && k < args.weights.k;
            let from = match there {
                true => token as usize * args.weights.k as usize + k as usize,
                false => 0,
            };
            let to = to + token * Gemm::X_STRIDE as u32 + chunk * CHUNK as u32;
            let bytes = if there { CHUNK as u32 } else { 0 };
            // SAFETY: the caller's promise.
            unsafe { copy::chunk(to, args.x.wrapping_add(from).cast(), bytes) };
        }
    });
}

/// Offset of the row that a lane gives to `ldmatrix`: of a token, in one of two k-steps' halves.
#[inline(always)]
fn x_row(lane: u32) -> u32 {
    let (matrix, token) = (lane / 8, lane % 8);
    token * Gemm::X_STRIDE as u32 + matrix * CHUNK as u32
}

/// Puts a warp's sums into shared memory, features of a token side by side.
///
/// # Safety
/// There is room, and nobody else uses it.
#[inline(always)]
unsafe fn stage_sums<const N_TILES: usize>(shared: u32, sums: [[f32; 4]; N_TILES]) {
    let lane = thread::lane();
    let feature = thread::warp() * KSTEP_SIDE as u32 + lane / 4;
    let at = shared + lane % 4 * 2 * SUMS_STRIDE + 4 * feature;
    unroll!(J < N_TILES => {
        unroll!(I < 4 => {
            let token = (J * MMA_TOKENS + I % 2) as u32;
            let at = at + token * SUMS_STRIDE + (4 * 8 * (I / 2)) as u32;
            // SAFETY: the caller's promise.
            unsafe { memory::store_f32(at, sums[J][I]) };
        });
    });
}

/// Writes the row block's outputs, or stores its partial sums for the last part.
///
/// # Safety
/// `shared` has what all warps [staged](stage_sums); the rest is as for `gemm`.
#[inline(always)]
unsafe fn write<const N_TILES: usize>(
    args: &GemmArgs,
    shared: u32,
    row_block: u32,
    part: u32,
    thread: u32,
) {
    let epilogue = Epilogue::new(&args.output, args.weights.m, args.n);
    let last = args.split - 1;
    let four = |j: usize| {
        let index = (j * THREADS) as u32 + thread;
        (index / FOURS, index % FOURS * 4)
    };
    let partial = |part: u32, j: usize| {
        let four = ((row_block * last + part) as usize * N_TILES + j) * THREADS + thread as usize;
        args.partials.wrapping_add(4 * four)
    };
    let mut sums = [[0.0f32; 4]; N_TILES];
    // SAFETY: the caller's promise; there is room for the sums of all parts but the last.
    unsafe {
        unroll!(J < N_TILES => {
            let (token, feature) = four(J);
            let at = shared + token * SUMS_STRIDE + 4 * feature;
            sums[J] = memory::load_u32x4(at).map(f32::from_bits);
        });
        if part < last {
            unroll!(J < N_TILES => {
                sentinel::store(partial(part, J), sums[J]);
            });
            return;
        }
        for part in 0..last {
            let mut parts = [[0u32; 4]; N_TILES];
            // All are in flight before the first is looked at.
            unroll!(J < N_TILES => {
                parts[J] = sentinel::load(partial(part, J));
            });
            unroll!(J < N_TILES => {
                while parts[J].map(|sum| sum == Zipgemm::EMPTY) != [false; 4] {
                    parts[J] = sentinel::load(partial(part, J));
                }
                unroll!(I < 4 => { sums[J][I] += f32::from_bits(parts[J][I]); });
                sentinel::clear(partial(part, J));
            });
        }
        unroll!(J < N_TILES => {
            let (token, feature) = four(J);
            let feature = row_block * BLOCK_ROWS as u32 + feature;
            epilogue.store_four(token, feature, sums[J], [0; 4], [0; 4]);
        });
    }
}
