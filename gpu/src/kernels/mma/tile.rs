//! One warp multiplies one tile: the decode on its way to the tensor cores.
//!
//! ```text
//! patches --8-bit stores--> patch table --LDS.128--> bytes --------+
//! dense tile --LDS.128, LDS.32--> low bytes, code words -----------+--> A fragment --+
//! activations --ldmatrix--> B fragment ---------------------------------------------+--> mma
//! ```
//!
//! Budget for each lane's 64 weights: 14 loads of weights and patches, 66 instructions to decode, 2
//! loads and 8 mma for each 8 tokens, some 60 for patches, addresses and order.

use crate::{
    arch::{memory, mma, thread},
    decode,
    layout::*,
};

/// Makes a warp's patch table one without patches.
///
/// # Safety
/// `table` is the warp's, of [`crate::launch::Gemm::TABLE_BYTES`].
#[inline(always)]
pub unsafe fn clear_table(window: Window, table: u32, lane: u32) {
    let rest = [window.quad(); 4];
    for i in 0..(TILE_WEIGHTS / 512) as u32 {
        // SAFETY: inside the table.
        unsafe { memory::store_u32x4(table + 512 * i + 16 * lane, rest) };
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
    /// The warp's patch table.
    pub table: u32,
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

    /// Puts them in the table, or the window's byte, which is there without.
    #[inline(always)]
    unsafe fn store(&self, table: u32, lane: u32, first: Patch, instead: Option<Window>) {
        let store = |patch: Patch| {
            let value = match instead {
                Some(window) => window.byte(),
                None => patch.high().into(),
            };
            // SAFETY: inside the warp's table.
            unsafe { memory::store_u8(table + u32::from(patch.position()), value) };
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
    window: Window,
    tile: &Tile,
    patches: &Patches,
    acc: &mut [[[f32; 4]; N_TILES]; BANDS],
) {
    let lane = thread::lane();
    // SAFETY: the caller's promise.
    unsafe {
        let first = patches.first(lane);
        // Those of the last tile are out.
        thread::sync_warp();
        patches.store(tile.table, lane, first, None);
        thread::sync_warp();
        half::<0, N_TILES>(tile, lane, acc);
        half::<1, N_TILES>(tile, lane, acc);
        thread::sync_warp();
        patches.store(tile.table, lane, first, Some(window));
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
            let words = core::array::from_fn(|w| {
                memory::load_u32(dense + (CODES_AT + w * CODE_BYTES) as u32 + 4 * lane)
            });
            let half_at = (H * HALF_BYTES) as u32 + 16 * lane;
            let [a, b, c, d] = memory::load_u32x4(dense + half_at);
            let [p, q, r, s] = memory::load_u32x4(tile.table + (band * CODES_AT) as u32 + half_at);
            let (first, second) = if H == 0 {
                (
                    decode::kstep::<0>([a, b], words, [p, q]),
                    decode::kstep::<1>([c, d], words, [r, s]),
                )
            } else {
                (
                    decode::kstep::<2>([a, b], words, [p, q]),
                    decode::kstep::<3>([c, d], words, [r, s]),
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
