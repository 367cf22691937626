//! Compressed weights to dense row-major BF16, bit for bit.
//!
//! ```text
//! global                 registers                shared           global
//! dense tile  --LDG.128, LDG--> bytes, words --decode--> tile --LDS.128--> rows of 128 bytes
//! patches     --LDG----> what they replace in the tile --^
//! ```
//!
//! One warp a tile, no ring: the loads of a tile are all in flight at once, and 32 warps a
//! SM keep 90 KB in flight. Budget (builder/budget.json, from the machine code): 4.8
//! instructions a weight.

use crate::{
    arch::{memory, thread},
    args::DecompressArgs,
    decode,
    launch::DECOMPRESS_WARP_BYTES,
    layout::*,
};

/// Bytes between the rows of a tile in shared memory.
const STRIDE: u32 = (DECOMPRESS_WARP_BYTES / TILE_ROWS) as u32;

/// Restores the tile of this warp.
///
/// # Safety
/// `args` describe a compressed matrix and room for its weights; one warp a tile is launched, as
/// [`crate::launch`] has it.
#[inline(always)]
pub unsafe fn decompress(args: &DecompressArgs) {
    // SAFETY: every thread has a place in the grid.
    let warps = unsafe { thread::block() as u64 * (thread::threads() as u64 / 32) };
    let tile = warps + u64::from(thread::warp());
    let tile_cols = args.k.div_ceil(TILE_COLS as u32);
    let tile_rows = args.m.div_ceil(TILE_ROWS as u32);
    if tile >= u64::from(tile_rows) * u64::from(tile_cols) {
        return;
    }
    let Some(tile_row) = tile.checked_div(u64::from(tile_cols)) else {
        return;
    };
    let tile_col = (tile - tile_row * u64::from(tile_cols)) as u32;
    let tile_row = tile_row as u32;
    let lane = thread::lane();
    let staged = memory::shared() + thread::warp() * DECOMPRESS_WARP_BYTES as u32;
    // SAFETY: the tile exists, so its bytes, offsets and patches do; shared addresses lie in the
    // warp's share.
    unsafe {
        let dense = args.dense.add(tile as usize * TILE_BYTES);
        let load = |band: usize| {
            let dense = dense.add(band * BAND_BYTES);
            let bytes = |half: usize| {
                memory::load_global_u32x4(dense.add(half * HALF_BYTES + 16 * lane as usize))
            };
            let word = |w: usize| {
                let at = CODES_AT + w * CODE_BYTES + 4 * lane as usize;
                memory::load_global_u32(dense.add(at).cast())
            };
            ([bytes(0), bytes(1)], [word(0), word(1), word(2)])
        };
        let (upper, lower) = (load(0), load(1));
        let base = super::base(args.dense);
        let offsets = args.offsets.add(tile as usize);
        let first = memory::load_global_u32(offsets);
        let last = memory::load_global_u32(offsets.add(1));

        store_band(base, staged, lane, upper);
        store_band(base, staged + BAND_ROWS as u32 * STRIDE, lane, lower);
        thread::sync_warp();

        let mut index = first + lane;
        while index < last {
            let patch = Patch(*args.patches.add(index as usize));
            let (row, col) = patch_row_col(patch.position());
            let at = staged + row as u32 * STRIDE + 2 * col as u32;
            memory::store_u16(at, patch.weight(memory::load_u16(at), scale(base)));
            index += LANES as u32;
        }
        thread::sync_warp();

        let (row, col) = (tile_row * TILE_ROWS as u32, tile_col * TILE_COLS as u32);
        let (rows, cols) = ((args.m - row).min(32), (args.k - col).min(64));
        let out = args
            .weights
            .add(row as usize * args.k as usize + col as usize);
        if cols == TILE_COLS as u32 && args.k % 8 == 0 && args.weights as u64 % 16 == 0 {
            for group in 0..TILE_ROWS as u32 / 4 {
                let r = 4 * group + lane / 8;
                if r < rows {
                    let values = memory::load_u32x4(staged + r * STRIDE + lane % 8 * 16);
                    let to = out.add(r as usize * args.k as usize + 8 * (lane as usize % 8));
                    memory::store_global_u32x4(to.cast(), values);
                }
            }
        } else {
            for r in 0..rows {
                let mut c = lane;
                while c < cols {
                    *out.add(r as usize * args.k as usize + c as usize) =
                        memory::load_u16(staged + r * STRIDE + 2 * c);
                    c += LANES as u32;
                }
            }
        }
    }
}

/// Decodes a band as if it had no outliers, and stores it to its rows of the tile.
#[inline(always)]
unsafe fn store_band(
    base: u8,
    rows: u32,
    lane: u32,
    (bytes, words): ([[u32; 4]; 2], [u32; LANE_WORDS]),
) {
    let (rest, scale) = ([window_quad(base); 2], scale_pair(base));
    let at = rows + lane / 4 * STRIDE + lane % 4 * 4;
    let store = |kstep: u32, registers: [u32; REGISTERS]| {
        for (register, value) in registers.into_iter().enumerate() {
            let (row, col) = (
                8 * (register as u32 & 1),
                16 * kstep + 8 * (register as u32 >> 1),
            );
            // No half borrows: without patches all exponents are the window's, which starts at the scale or above.
            // SAFETY: inside the warp's tile.
            unsafe { memory::store_u32(at + row * STRIDE + 2 * col, value - scale) }
        }
    };
    let [[a, b, c, d], [e, f, g, h]] = bytes;
    store(0, decode::kstep::<0>([a, b], words, rest));
    store(1, decode::kstep::<1>([c, d], words, rest));
    store(2, decode::kstep::<2>([e, f], words, rest));
    store(3, decode::kstep::<3>([g, h], words, rest));
}
