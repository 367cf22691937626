//! One warp multiplies one tile: the decode on its way to the tensor cores.
//!
//! ```text
//! patches --16-bit stores--> table of bases --LDS.128--> bases -----+
//! dense tile --LDS.128, LDS.32--> bytes, words ---------------------+--> A fragment --+
//! activations --ldmatrix--> B fragment ----------------------------------------------+--> mma
//! ```
//!
//! Budget for each lane's 64 weights: 14 loads of weights and bases, 136 instructions to decode, 2
//! loads and 8 mma for each 8 tokens, some 60 for patches, addresses and order.

use crate::{
    arch::{memory, mma, thread},
    args::GemmArgs,
    decode,
    layout::*,
};

/// Fills a warp's table of bases with the matrix's base.
///
/// # Safety
/// `bases` is the warp's table of [`crate::launch::Gemm::BASES_BYTES`].
#[inline(always)]
pub unsafe fn fill_bases(args: &GemmArgs, bases: u32, lane: u32) {
    let pairs = [decode::base_pair(args.base as u8); 4];
    for i in 0..(2 * TILE_WEIGHTS / 512) as u32 {
        // SAFETY: inside the table.
        unsafe { memory::store_u32x4(bases + 512 * i + 16 * lane, pairs) };
    }
}

/// Where a warp finds its tile and what belongs to it, as addresses in shared memory.
#[derive(Clone, Copy)]
pub struct Tile {
    /// Dense tile.
    pub dense: u32,
    /// Activations of the tile's columns: where this lane's row of the first 8 x 8 matrices
    /// starts, and bytes between tokens.
    pub x: u32,
    /// Bytes between tokens.
    pub x_stride: u32,
    /// The warp's table of bases.
    pub bases: u32,
}

/// The patches of a tile. Most tiles have at most 32, one a lane.
#[derive(Clone, Copy)]
pub struct Patches {
    /// How many there are.
    pub count: u32,
    /// Whether all of them are in shared memory.
    pub staged: bool,
    /// Where they are in shared memory.
    pub shared: u32,
    /// Where they are in global memory.
    pub global: *const u16,
}

impl Patches {
    /// One of them.
    #[inline(always)]
    unsafe fn get(&self, index: u32) -> Patch {
        // SAFETY: there are `count`, here and there.
        Patch(unsafe {
            if self.staged {
                memory::load_u16(self.shared + 2 * index)
            } else {
                memory::load_global_u16(self.global.add(index as usize))
            }
        })
    }

    /// This lane's first patch, any if it has none.
    #[inline(always)]
    unsafe fn first(&self, lane: u32) -> Patch {
        if lane < self.count {
            // SAFETY: `count` says so.
            unsafe { self.get(lane) }
        } else {
            Patch(0)
        }
    }

    /// Stores the patched bases in the table, or the matrix's `base` in their place.
    #[inline(always)]
    unsafe fn store(&self, bases: u32, lane: u32, first: Patch, restore: Option<u16>) {
        let store = |patch: Patch| {
            let at = bases + 2 * u32::from(patch.position());
            // SAFETY: inside the warp's table.
            unsafe { memory::store_u16(at, restore.unwrap_or(patch.base())) };
        };
        if lane < self.count {
            store(first);
        }
        let mut index = LANES as u32 + lane;
        while index < self.count {
            // SAFETY: `count` says so.
            store(unsafe { self.get(index) });
            index += LANES as u32;
        }
    }
}

/// Adds the product of a tile and the activations of `8 * N_TILES` tokens to `acc`.
///
/// # Safety
/// The addresses of `tile` are those of a complete stage; `patches` are the tile's; all lanes of
/// the warp call this.
#[inline(always)]
pub unsafe fn multiply<const N_TILES: usize>(
    args: &GemmArgs,
    tile: &Tile,
    patches: &Patches,
    acc: &mut [[[f32; 4]; N_TILES]; BANDS],
) {
    let lane = thread::lane();
    // SAFETY: the caller's promise.
    unsafe {
        let first = patches.first(lane);
        // The last tile's bases have been restored.
        thread::sync_warp();
        patches.store(tile.bases, lane, first, None);
        thread::sync_warp();
        half::<0, N_TILES>(tile, lane, acc);
        half::<1, N_TILES>(tile, lane, acc);
        thread::sync_warp();
        patches.store(tile.bases, lane, first, Some((args.base as u16) << 7));
    }
}

/// The two k-steps of half `H` of both bands.
#[inline(always)]
unsafe fn half<const H: usize, const N_TILES: usize>(
    tile: &Tile,
    lane: u32,
    acc: &mut [[[f32; 4]; N_TILES]; BANDS],
) {
    // SAFETY: `multiply`'s.
    unsafe {
        let x = core::array::from_fn::<_, N_TILES, _>(|j| {
            mma::load_matrices(tile.x + 8 * j as u32 * tile.x_stride + 64 * H as u32)
        });
        let mut band = |band: usize| {
            let dense = tile.dense + (band * BAND_BYTES) as u32;
            let bases = |s: usize| {
                memory::load_u32x4(tile.bases + (512 * (KSTEPS * band + s)) as u32 + 16 * lane)
            };
            let words = core::array::from_fn(|w| {
                memory::load_u32(dense + (BITMAPS_AT + w * BITMAP_BYTES) as u32 + 4 * lane)
            });
            let [b0, b1, b2, b3] = memory::load_u32x4(dense + (H * HALF_BYTES) as u32 + 16 * lane);
            let (first, second) = if H == 0 {
                (
                    decode::kstep::<0>([b0, b1], words, bases(0)),
                    decode::kstep::<1>([b2, b3], words, bases(1)),
                )
            } else {
                (
                    decode::kstep::<2>([b0, b1], words, bases(2)),
                    decode::kstep::<3>([b2, b3], words, bases(3)),
                )
            };
            for (acc, x) in acc[band].iter_mut().zip(&x) {
                mma::mma_16x8x16(acc, first, [x[0], x[1]]);
            }
            for (acc, x) in acc[band].iter_mut().zip(&x) {
                mma::mma_16x8x16(acc, second, [x[2], x[3]]);
            }
        };
        band(0);
        band(1);
    }
}
