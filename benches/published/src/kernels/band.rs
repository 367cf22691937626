//! How a warp decodes its band of a block tile, see [`crate::decode`].

use zipserv_gpu::{
    arch::{memory, thread},
    unroll,
};

use crate::{
    BAND_BYTES, Before, CHUNK, KSTEP_TILES, PLANE_BYTES, TILE_BYTES, TILE_WEIGHTS,
    decode::{Cursor, HALF_LANES, Lane, base_pair},
    launch::{BANDS_AT, STREAMS_AT},
};

/// What stays the same from band to band.
#[derive(Clone, Copy)]
pub struct Decoder {
    lane: Lane,
    bases: u32,
    /// Offset of the lane's half of its warp's first plane in a stage.
    planes_at: u32,
    /// Offset of its warp's word in a stage.
    word_at: u32,
    /// Which lane it is.
    number: u32,
}

/// A band of which some k-steps have been decoded.
pub struct Band<'a> {
    decoder: &'a Decoder,
    /// Address of the lane's half of the next tile's first plane.
    planes: u32,
    cursor: Cursor,
}

impl Decoder {
    /// Of this lane, for weights of that base.
    #[inline(always)]
    pub fn new(base: u32) -> Self {
        let (lane, warp) = (thread::lane_id(), thread::warp());
        Self {
            lane: Lane::new(lane),
            bases: base_pair(base as u8),
            planes_at: warp * BAND_BYTES as u32 + lane / HALF_LANES * 4,
            word_at: BANDS_AT as u32 + 4 * warp,
            number: lane,
        }
    }

    /// This warp's band of the block tile in a stage, of which so many chunks are bytes.
    ///
    /// # Safety
    /// [`super::stage::copy`]'s copies to the stage have landed, and stay there.
    #[inline(always)]
    pub unsafe fn band(&self, stage: u32, byte_chunks: u32) -> Band<'_> {
        // SAFETY: the caller's promise.
        let before = Before::of_word(unsafe { memory::load_u32(stage + self.word_at) });
        let bytes = stage + STREAMS_AT as u32;
        let outliers = bytes + CHUNK as u32 * byte_chunks;
        Band {
            decoder: self,
            planes: stage + self.planes_at,
            cursor: Cursor::new(self.number, bytes, outliers, before),
        }
    }
}

impl Band<'_> {
    /// The registers of the next k-step.
    ///
    /// # Safety
    /// There is one left.
    #[inline(always)]
    pub unsafe fn kstep(&mut self) -> [u32; KSTEP_TILES] {
        let Decoder { lane, bases, .. } = self.decoder;
        let mut registers = [0; KSTEP_TILES];
        unroll!(T < KSTEP_TILES => {
            let plane = |i: usize| {
                let at = self.planes + (T * TILE_BYTES + i * PLANE_BYTES) as u32;
                // SAFETY: the caller's promise.
                unsafe { memory::load_u32(at) }
            };
            let found = lane.find([plane(0), plane(1), plane(2)]);
            let lower = thread::shuffle(found.through, HALF_LANES - 1);
            let upper = thread::shuffle(found.through, 2 * HALF_LANES - 1);
            let [first, second] = self.cursor.tile(lane, &found, [lower, upper]);
            // SAFETY: the caller's promise.
            registers[T] = unsafe {
                found.pair(
                    memory::load_byte_or_u16::<{ T * TILE_WEIGHTS }>(
                        found.has_first(), first.byte, first.outlier,
                    ),
                    memory::load_byte_or_u16::<{ T * TILE_WEIGHTS + 1 }>(
                        found.has_second(), second.byte, second.outlier,
                    ),
                    *bases,
                )
            };
        });
        self.planes += (KSTEP_TILES * TILE_BYTES) as u32;
        self.cursor.end_kstep();
        registers
    }
}
