//! Rows of compressed weights by their numbers, to dense BF16, bit for bit: an embedding.
//!
//! ```text
//! number  --LDG-->  row              shared            global
//! low bytes, words of its lanes --LDG--> decode --> 64 weights --> part of a row
//! patches of the tile --LDG----> those of the row --^
//! ```
//!
//! One warp a row and tile, a pair of weights a lane: of a tile's 2816 bytes it reads the four lanes' share that
//! holds the row, and all patches, of which one in 32 is the row's.

use crate::{
    arch::{memory, thread},
    args::GatherArgs,
    decode,
    launch::GATHER_WARP_BYTES,
    layout::*,
};

/// Writes the part of a row that is this warp's.
///
/// # Safety
/// `args` describe a compressed matrix, `count` numbers and room for as many rows; one warp a number and tile column
/// is launched, as [`crate::launch`] has it.
#[inline(always)]
pub unsafe fn gather(args: &GatherArgs) {
    // SAFETY: every thread has a place in the grid.
    let warps = unsafe { thread::block() as u64 * (thread::threads() as u64 / 32) };
    let tile_cols = u64::from(args.k.div_ceil(TILE_COLS as u32));
    let place = warps + u64::from(thread::warp());
    if place >= args.count * tile_cols {
        return;
    }
    let Some(index) = place.checked_div(tile_cols) else {
        return;
    };
    let (tile_col, lane) = ((place - index * tile_cols) as usize, thread::lane());
    // SAFETY: there are `count` numbers.
    let row = unsafe {
        let index = index as usize;
        match args.is_64_bit {
            true => *args.numbers.cast::<i64>().add(index),
            false => i64::from(*args.numbers.cast::<i32>().add(index)),
        }
    };
    let exists = 0 <= row && row < i64::from(args.m);
    let pair = match exists {
        // SAFETY: the tile exists.
        true => unsafe { decode_pair(args, row as usize, tile_col, tile_cols as usize, lane) },
        false => 0,
    };
    let col = TILE_COLS * tile_col + 2 * lane as usize;
    let k = args.k as usize;
    // SAFETY: inside the row, which there is room for.
    unsafe {
        let out = args.weights.add(index as usize * k + col);
        if col + 2 <= k && out as u64 % 4 == 0 {
            *out.cast::<u32>() = pair;
        } else {
            if col < k {
                *out = pair as u16;
            }
            if col + 1 < k {
                *out.add(1) = (pair >> 16) as u16;
            }
        }
    }
}

/// The lane's pair of a row of a tile: columns `2 lane` and the next.
#[inline(always)]
unsafe fn decode_pair(
    args: &GatherArgs,
    row: usize,
    tile_col: usize,
    tile_cols: usize,
    lane: u32,
) -> u32 {
    let (tile, row) = (row / TILE_ROWS * tile_cols + tile_col, row % TILE_ROWS);
    let (band, group, lower) = (row / BAND_ROWS, row % 8, row % BAND_ROWS / 8);
    // Which lane of a warp that multiplies holds it, and as which of its pairs.
    let (kstep, owner) = (lane as usize / 8, 4 * group + lane as usize % 4);
    let pair = REGISTERS * kstep + lower + 2 * (lane as usize % 8 / 4);
    let staged = memory::shared() + thread::warp() * GATHER_WARP_BYTES as u32;
    // SAFETY: the tile exists, so its bytes, offsets and patches do; shared addresses lie in the warp's share.
    unsafe {
        let dense = args.dense.add(tile * TILE_BYTES + band * BAND_BYTES);
        let low_at = pair / 8 * HALF_BYTES + 16 * owner + 2 * (pair % 8);
        let low = u32::from(memory::load_global_u16(dense.add(low_at).cast()));
        let word = |w: usize| dense.add(CODES_AT + w * CODE_BYTES + 4 * owner).cast();
        let words = [0, 1, 2].map(|w| memory::load_global_u32(word(w)));
        let offsets = args.offsets.add(tile);
        let (first, last) = (
            memory::load_global_u32(offsets),
            memory::load_global_u32(offsets.add(1)),
        );
        let base = super::base(args.dense);

        let high = decode::high_bytes_of(pair / 2, words, window_quad(base)) >> (16 * (pair % 2));
        let value = low & 0xFF | (high & 0xFF) << 8 | (low & 0xFF00) << 8 | (high & 0xFF00) << 16;
        // As in `decompress`: no half borrows.
        memory::store_u32(staged + 4 * lane, value - scale_pair(base));
        thread::sync_warp();
        let mut index = first + lane;
        while index < last {
            let patch = Patch(memory::load_global_u16(args.patches.add(index as usize)));
            let (patch_row, col) = patch_row_col(patch.position());
            if patch_row == row {
                let at = staged + 2 * col as u32;
                let weight = patch.weight(memory::load_u16(at), scale(base));
                memory::store_u16(at, weight);
            }
            index += LANES as u32;
        }
        thread::sync_warp();
        memory::load_u32(staged + 4 * lane)
    }
}
