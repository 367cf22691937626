//! Tiles: how many patches each has, where they go, and all that is stored of it.
//!
//! ```text
//! dense --LDG.128--> shared --LDS--> pairs, scaled --> low bytes --STG.128--> global
//!                                       |        \---> code words --STG----> global
//!                                       \--> outliers --prefix sums--> patches, in order --STG--> global
//! ```
//!
//! One warp a tile. A lane has the pairs that it would have if it multiplied, so what it makes is what it stores.

use super::weight;
use crate::kernels::scan::{block_sum_before, warp_sum, warp_sum_before};
use crate::{
    arch::{memory, thread},
    args::EncodeArgs,
    decode,
    launch::{DECOMPRESS_WARP_BYTES, ENCODE_SCAN_THREADS},
    layout::*,
};

/// Bytes between the rows of a tile in shared memory.
const STRIDE: u32 = (DECOMPRESS_WARP_BYTES / TILE_ROWS) as u32;
/// Offsets that a thread adds up at a time.
const RUN: usize = 8;

/// The tile of this warp: its number, and its first row and column.
#[inline(always)]
fn tile(args: &EncodeArgs) -> Option<(usize, u64, u64)> {
    // SAFETY: every thread has a place in the grid.
    let warps = unsafe { thread::block() as u64 * (thread::threads() as u64 / 32) };
    let tile = warps + u64::from(thread::warp());
    let tile_cols = args.cols.div_ceil(TILE_COLS as u64);
    let tile_row = tile.checked_div(tile_cols)?;
    let (row, col) = (
        tile_row * TILE_ROWS as u64,
        (tile - tile_row * tile_cols) * TILE_COLS as u64,
    );
    (row < args.rows).then_some((tile as usize, row, col))
}

/// Whether a tile lies within the matrix, its rows aligned to 16 bytes.
#[inline(always)]
fn is_plain(args: &EncodeArgs, row: u64, col: u64) -> bool {
    let inside = row + TILE_ROWS as u64 <= args.rows && col + TILE_COLS as u64 <= args.cols;
    inside && args.weights as u64 % 16 == 0 && args.stride % 8 == 0
}

/// A plain tile's weights: eight of rows `lane / 8`, and every fourth from there on.
#[inline(always)]
unsafe fn load_plain(
    args: &EncodeArgs,
    row: u64,
    col: u64,
    lane: u32,
) -> [[u32; 4]; TILE_ROWS / 4] {
    core::array::from_fn(|group| {
        let row = row + 4 * group as u64 + u64::from(lane / 8);
        let at = row * args.stride + col + 8 * u64::from(lane % 8);
        // SAFETY: within the matrix, and aligned.
        unsafe { memory::load_global_u32x4(args.weights.add(at as usize).cast()) }
    })
}

/// Counts the patches of this warp's tile.
///
/// # Safety
/// `args` describe dense weights, whose window is known, and room for the result; one warp a tile is launched, as
/// [`crate::launch`] has it.
#[inline(always)]
pub unsafe fn encode_counts(args: &EncodeArgs) {
    let Some((tile, row, col)) = tile(args) else {
        return;
    };
    let lane = thread::lane();
    // SAFETY: weights are loaded where there are some; there is one offset more than there are tiles.
    unsafe {
        let base = (*args.window).base;
        let is_outlier = |weight: u32| u32::from((weight >> 7 & 0xFF).wrapping_sub(base) >= WINDOW);
        let mut outliers = 0;
        if is_plain(args, row, col) {
            let groups = load_plain(args, row, col, lane);
            unroll!(GROUP < TILE_ROWS / 4 => {
                let of_pair = |pair: u32| is_outlier(pair & 0xFFFF) + is_outlier(pair >> 16);
                let [a, b, c, d] = groups[GROUP];
                outliers += of_pair(a) + of_pair(b) + of_pair(c) + of_pair(d);
            });
        } else {
            let rows = (args.rows - row).min(TILE_ROWS as u64);
            let cols = (args.cols - col).min(TILE_COLS as u64);
            let mut r = 0;
            while r < rows {
                let mut c = u64::from(lane);
                while c < cols {
                    outliers += is_outlier(weight(args, row + r, col + c).into());
                    c += LANES as u64;
                }
                r += 1;
            }
        }
        let outliers = warp_sum(outliers);
        if lane == 0 {
            *args.offsets.add(tile + 1) = outliers;
        }
    }
}

/// Numbers of patches to the index of each tile's first: sums of all before.
///
/// # Safety
/// `args` are those of [`encode_counts`], which has run; one block is launched, as [`crate::launch`] has it.
#[inline(always)]
pub unsafe fn encode_offsets(args: &EncodeArgs) {
    const WARPS: u32 = ENCODE_SCAN_THREADS as u32 / LANES as u32;
    let shared = memory::shared();
    let tiles = args.tiles as usize;
    // SAFETY: there are so many offsets; shared addresses lie in the block's; all threads meet at its barriers.
    unsafe {
        let thread = thread::thread() as usize;
        // Whatever becomes of the weights meanwhile, kernels follow no offset past the last patch.
        let most = (*args.window).patches as u32;
        if thread == 0 {
            *args.offsets = 0;
        }
        let (mut done, mut before) = (0, 0u32);
        while done < tiles {
            let first = done + RUN * thread;
            let run: [u32; RUN] = core::array::from_fn(|i| match first + i < tiles {
                true => *args.offsets.add(first + i + 1),
                false => 0,
            });
            let sum = run
                .iter()
                .fold(0, |sum: u32, count| sum.wrapping_add(*count));
            let (earlier, all) = block_sum_before::<WARPS>(shared, sum);
            let mut offset = before.wrapping_add(earlier);
            for (i, count) in run.into_iter().enumerate() {
                offset = offset.wrapping_add(count);
                if first + i < tiles {
                    *args.offsets.add(first + i + 1) = offset.min(most);
                }
            }
            before = before.wrapping_add(all);
            done += RUN * ENCODE_SCAN_THREADS;
        }
    }
}

/// Writes all that is stored of this warp's tile.
///
/// # Safety
/// As [`encode_counts`], after [`encode_offsets`].
#[inline(always)]
pub unsafe fn encode_tiles(args: &EncodeArgs) {
    let Some((tile, row, col)) = tile(args) else {
        return;
    };
    let lane = thread::lane();
    let staged = memory::shared() + thread::warp() * DECOMPRESS_WARP_BYTES as u32;
    // SAFETY: weights are loaded where there are some; shared addresses lie in the warp's share; the tile has a place.
    unsafe {
        let base = (*args.window).base as u8;
        if is_plain(args, row, col) {
            let groups = load_plain(args, row, col, lane);
            unroll!(GROUP < TILE_ROWS / 4 => {
                let at = (4 * GROUP as u32 + lane / 8) * STRIDE + 16 * (lane % 8);
                memory::store_u32x4(staged + at, groups[GROUP]);
            });
        } else {
            // Outside the matrix there is what is stored as zeros.
            let padding = u16::from(base) << 7;
            for r in 0..TILE_ROWS as u32 {
                for c in [lane, lane + LANES as u32] {
                    let (row, col) = (row + u64::from(r), col + u64::from(c));
                    let value = match row < args.rows && col < args.cols {
                        true => weight(args, row, col),
                        false => padding,
                    };
                    memory::store_u16(staged + r * STRIDE + 2 * c, value);
                }
            }
        }
        thread::sync_warp();
        let dense = args.dense.add(tile * TILE_BYTES);
        let lower = staged + BAND_ROWS as u32 * STRIDE;
        let [a, b] = encode_band(base, staged, lane, dense);
        let [c, d] = encode_band(base, lower, lane, dense.add(BAND_BYTES));
        // Lanes part only after they have told each other how many patches they have.
        let place = |mask: u32, first: u32| {
            let count = mask.count_ones();
            (first + warp_sum_before(count), first + warp_sum(count))
        };
        let (at_a, next) = place(a, *args.offsets.add(tile));
        let (at_b, next) = place(b, next);
        let (at_c, next) = place(c, next);
        let (at_d, _) = place(d, next);
        write_patches(args, base, [0, 0], staged, lane, a, at_a);
        write_patches(args, base, [0, 1], staged, lane, b, at_b);
        write_patches(args, base, [1, 0], lower, lane, c, at_c);
        write_patches(args, base, [1, 1], lower, lane, d, at_d);
    }
}

/// Where a lane's pair is in a band's rows.
#[inline(always)]
fn pair_at(rows: u32, lane: u32, pair: u32) -> u32 {
    let (kstep, register) = (pair / REGISTERS as u32, pair % REGISTERS as u32);
    let (row, col) = (
        lane / 4 + 8 * (register & 1),
        KSTEP_COLS as u32 * kstep + 8 * (register >> 1) + 2 * (lane % 4),
    );
    rows + row * STRIDE + 2 * col
}

/// Writes a band's low bytes and code words, and says which of the lane's weights are outliers: for each half a bit
/// for each, in the order of their positions.
#[inline(always)]
unsafe fn encode_band(base: u8, rows: u32, lane: u32, dense: *mut u8) -> [u32; 2] {
    let scale = scale(base);
    let window = u32::from(window_high(base)) << 8;
    let mut low = [0u32; LANE_QUADS];
    let mut high = [0u32; LANE_QUADS];
    let mut masks = [0u32; 2];
    macro_rules! pairs {
        ($($pair:literal)*) => {$({
            // SAFETY: inside the warp's share.
            let pair = unsafe { memory::load_u32(pair_at(rows, lane, $pair)) };
            let first = u32::from(scaled(pair as u16, scale));
            let second = u32::from(scaled((pair >> 16) as u16, scale));
            let shift = 16 * ($pair % 2);
            low[$pair / 2] |= (first & 0xFF | (second & 0xFF) << 8) << shift;
            high[$pair / 2] |= (first >> 8 | second >> 8 << 8) << shift;
            let is_outlier = |weight: u32| u32::from((weight ^ window) & u32::from(LEFT_OUT) != 0);
            masks[$pair / 8] |= (is_outlier(first) | is_outlier(second) << 1) << (2 * ($pair % 8));
        })*};
    }
    pairs!(0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15);
    let [c, d, e] = decode::code_words(&high);
    let [p, q, r, s, t, u, v, w] = low;
    // SAFETY: inside the band.
    unsafe {
        let at = dense.add(16 * lane as usize);
        memory::store_global_u32x4(at, [p, q, r, s]);
        memory::store_global_u32x4(at.add(HALF_BYTES), [t, u, v, w]);
        let at = dense.add(CODES_AT + 4 * lane as usize).cast::<u32>();
        *at = c;
        *at.add(CODE_BYTES / 4) = d;
        *at.add(CODE_BYTES / 2) = e;
    }
    masks
}

/// Writes a lane's patches of half a band, from the `at`-th on.
#[inline(always)]
unsafe fn write_patches(
    args: &EncodeArgs,
    base: u8,
    [band, half]: [usize; 2],
    rows: u32,
    lane: u32,
    mut mask: u32,
    mut at: u32,
) {
    // SAFETY: inside the warp's share; no patch past the last is written, whatever becomes of the weights meanwhile.
    unsafe {
        let patches = (*args.window).patches as u32;
        while mask != 0 {
            let bit = mask.trailing_zeros();
            mask &= mask - 1;
            let pair = 8 * half as u32 + bit / 2;
            let weight = memory::load_u16(pair_at(rows, lane, pair) + 2 * (bit % 2));
            let position = patch_position(band, lane as usize, pair as usize, bit % 2 == 1);
            if at < patches {
                *args.patches.add(at as usize) =
                    Patch::new(position, scaled(weight, scale(base))).0;
            }
            at += 1;
        }
    }
}
