//! The published layout to dense row-major BF16, bit for bit.
//!
//! ```text
//! global              shared               registers           shared           global
//! block tile --cp.async--> planes, bytes, outliers --decode--> rows --LDS.128--> rows of 128 bytes
//! ```
//!
//! A block of four warps for each block tile, a band a warp.

use zipserv_gpu::{
    arch::{copy, memory, thread},
    layout::LANES,
    unroll,
};

use super::{
    band::Decoder,
    stage::{self, Start},
};
use crate::{
    BAND_KSTEPS, BLOCK_COLS, BLOCK_ROWS, KSTEP_SIDE, KSTEP_TILES, TILE_SIDE,
    args::DecompressArgs,
    launch::{BAND_ROWS_BYTES, ROW_BYTES, WEIGHTS_BYTES},
};

/// Restores the block tile of this thread block.
///
/// # Safety
/// `args` describe a compressed matrix and room for its weights; there is a thread block for each
/// block tile, as [`crate::launch`] has it.
#[inline(always)]
pub unsafe fn decompress(args: &DecompressArgs) {
    let weights = &args.weights;
    // SAFETY: every thread has a place in the grid.
    let index = unsafe { thread::block() } as u32;
    let block_cols = weights.k.div_ceil(BLOCK_COLS as u32);
    let block_row = index.checked_div(block_cols).unwrap_or(0);
    let block_col = index - block_row * block_cols;
    let (shared, warp, lane) = (memory::shared(), thread::warp(), thread::lane());
    // SAFETY: the block tile exists; each warp has its own rows.
    unsafe {
        let from = Start::load(weights, index);
        let to = Start::load(weights, index + 1);
        stage::copy(weights, shared, index, from, to);
        copy::commit_chunks();
        copy::wait_chunks::<0>();
        thread::sync_block();

        let decoder = Decoder::new(weights.base);
        let mut band = decoder.band(shared, to.bytes - from.bytes);
        let staged = shared + WEIGHTS_BYTES as u32 + warp * BAND_ROWS_BYTES as u32;
        unroll!(S < BAND_KSTEPS => {
            stage_kstep(staged + (2 * S * KSTEP_SIDE) as u32, lane, band.kstep());
        });
        thread::sync_warp();

        let row = block_row * BLOCK_ROWS as u32 + warp * KSTEP_SIDE as u32;
        // The last bands may be padding as a whole.
        if row < weights.m {
            let at = [row, block_col * BLOCK_COLS as u32];
            store_rows(args, at, staged, lane);
        }
    }
}

/// Puts the registers of a k-step into its columns of 16 rows in shared memory, of which the first
/// starts at `at`.
///
/// # Safety
/// The rows are the warp's.
#[inline(always)]
unsafe fn stage_kstep(at: u32, lane: u32, registers: [u32; KSTEP_TILES]) {
    let at = at + lane / 4 * ROW_BYTES as u32 + lane % 4 * 4;
    unroll!(R < KSTEP_TILES => {
        let tile = TILE_SIDE * (R % 2 * ROW_BYTES + R / 2 * 2);
        // SAFETY: the caller's promise.
        unsafe { memory::store_u32(at + tile as u32, registers[R]) };
    });
}

/// Stores a band's rows, from `staged` on, to the output's from `[row, col]` on: what there is of
/// them.
///
/// # Safety
/// The rows are in shared memory, and the output is writable.
#[inline(always)]
unsafe fn store_rows(args: &DecompressArgs, [row, col]: [u32; 2], staged: u32, lane: u32) {
    let k = args.weights.k;
    let rows = (args.weights.m - row).min(KSTEP_SIDE as u32);
    let cols = (k - col).min(BLOCK_COLS as u32);
    let start = row as usize * k as usize + col as usize;
    // SAFETY: the caller's promise.
    unsafe {
        let row = |r: u32| args.output.add(start + r as usize * k as usize);
        if cols == BLOCK_COLS as u32 && k % 8 == 0 && args.output as u64 % 16 == 0 {
            unroll!(I < KSTEP_SIDE / 4 => {
                // Eight lanes a row.
                let r = 4 * I as u32 + lane / 8;
                if r < rows {
                    let values = memory::load_u32x4(staged + r * ROW_BYTES as u32 + lane % 8 * 16);
                    memory::store_global_u32x4(row(r).add(8 * (lane as usize % 8)).cast(), values);
                }
            });
        } else {
            for r in 0..rows {
                let mut c = lane;
                while c < cols {
                    *row(r).add(c as usize) =
                        memory::load_u16(staged + r * ROW_BYTES as u32 + 2 * c);
                    c += LANES as u32;
                }
            }
        }
    }
}
