//! `y = W x` straight from the compressed weights, on CUDA cores: a block has one strip of
//! tiles, a warp one band of each.

use zipserv_gpu::{launch::Launch, layout::*};

/// A warp for each band, and in shared memory what codes leave out of each weight of a tile.
pub const LAUNCH: Launch = Launch {
    name: "matvec",
    threads: LANES * BANDS,
    min_blocks: 16,
    shared_bytes: TILE_WEIGHTS,
    cluster: 1,
};

/// The kernel's one parameter. All pointers are to device memory.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Args {
    /// Outputs: M FP32.
    pub y: *mut f32,
    /// Activations: K BF16, aligned to 4 bytes.
    pub x: *const u16,
    /// Dense part of the weights, right behind the header.
    pub dense: *const u8,
    /// Index of each tile's first patch.
    pub offsets: *const u32,
    /// Patches.
    pub patches: *const u16,
    /// Output features.
    pub m: u32,
    /// Input features, a multiple of 64.
    pub k: u32,
}

#[cfg(target_arch = "nvptx64")]
mod device {
    use zipserv_gpu::{
        arch::{memory::*, thread::*},
        decode::kstep,
        kernels::base,
        layout::*,
    };

    zipserv_gpu::kernel! {
        /// Multiplies the strip of this block.
        ///
        /// # Safety
        /// `args` describe a compressed matrix whose columns fill tiles, activations, and room for
        /// outputs; one block a strip is launched, as [`super::LAUNCH`] has it.
        fn matvec(args: super::Args) {
            let (band, lane, table) = (warp() as usize, lane() as usize, shared());
            let tiles = args.k as usize / TILE_COLS;
            // This lane's part of the sums of rows `g` and `g + 8` of the band.
            let mut sums = [0.0; 2];
            // SAFETY: the strip's tiles exist, so their bytes, offsets and patches do; shared
            // addresses lie in the table, and all threads meet between writing and reading it.
            unsafe {
                let (strip, thread) = (block() as usize, thread() as usize);
                let base = base(args.dense);
                for column in 0..tiles {
                    // What codes leave out: the window's, but for patches.
                    for at in (thread..TILE_WEIGHTS / 16).step_by(super::LAUNCH.threads) {
                        store_u32x4(table + 16 * at as u32, [window_quad(base); 4]);
                    }
                    sync_block();
                    let tile = strip * tiles + column;
                    let patch = |tile| load_global_u32(args.offsets.add(tile)) as usize;
                    for at in (patch(tile) + thread..patch(tile + 1)).step_by(super::LAUNCH.threads) {
                        let patch = Patch(load_global_u16(args.patches.add(at)));
                        store_u8(table + u32::from(patch.position()), patch.high().into());
                    }
                    sync_block();
                    // What is this lane's: its low bytes, its code words, its patches.
                    let dense = args.dense.add(tile * TILE_BYTES + band * BAND_BYTES);
                    let bytes = |half| load_global_u32x4(dense.add(half * HALF_BYTES + 16 * lane));
                    let word = |w| dense.add(CODES_AT + w * CODE_BYTES + 4 * lane).cast();
                    let words = [0, 1, 2].map(|w| load_global_u32(word(w)));
                    let patches = |half| {
                        let first = patch_position(band, lane, LANE_PAIRS / 2 * half, false);
                        load_u32x4(table + u32::from(first))
                    };
                    let mut add = |kstep: usize, pairs: [u32; REGISTERS]| {
                        for (register, pair) in pairs.into_iter().enumerate() {
                            let (_, col) = pair_position(lane, REGISTERS * kstep + register);
                            let x = load_global_u32(args.x.add(TILE_COLS * column + col).cast());
                            // A BF16 is the upper half of an FP32.
                            let upper = |pair: u32| f32::from_bits(pair & 0xFFFF_0000);
                            sums[register % 2] += upper(pair << 16) * upper(x << 16);
                            sums[register % 2] += upper(pair) * upper(x);
                        }
                    };
                    let [[a, b, c, d], [e, f, g, h]] = [bytes(0), bytes(1)];
                    let [[i, j, k, l], [m, n, o, p]] = [patches(0), patches(1)];
                    add(0, kstep::<0>([a, b], words, [i, j]));
                    add(1, kstep::<1>([c, d], words, [k, l]));
                    add(2, kstep::<2>([e, f], words, [m, n]));
                    add(3, kstep::<3>([g, h], words, [o, p]));
                    sync_block();
                }
                for (half, mut sum) in sums.into_iter().enumerate() {
                    // Four neighbouring lanes have the columns of a row between them.
                    for distance in [1, 2] {
                        sum += f32::from_bits(shuffle(sum.to_bits(), lane as u32 ^ distance));
                    }
                    let row = TILE_ROWS * strip + BAND_ROWS * band + 8 * half + lane / 4;
                    if lane % 4 == 0 && row < args.m as usize {
                        *args.y.add(row) = sum * unscale(scale(base));
                    }
                }
            }
        }
    }
}
