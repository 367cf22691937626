//! How a warp decodes its band of a block tile, see [`crate::published::decode`].

use crate::{
    arch::{memory, thread},
    decode::base_pair,
    published::{
        BAND_BYTES, Before, CHUNK, KSTEP_TILES, PLANE_BYTES, TILE_BYTES, TILE_WEIGHTS,
        decode::{HALF_LANES, Lane},
        launch::{BANDS_AT, STREAMS_AT},
    },
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
    /// Bytes of outliers before its first weight, if none is in the window.
    outliers_before: u32,
}

/// A band of which some k-steps have been decoded.
pub struct Band<'a> {
    decoder: &'a Decoder,
    /// Address of the lane's half of the next tile's first plane.
    planes: u32,
    /// Address of the next byte.
    bytes: u32,
    /// Address of the lane's first outlier of the next k-step, if its byte's address were 0.
    outliers: u32,
}

impl Decoder {
    /// Of this lane, for weights of that base.
    #[inline(always)]
    pub fn new(base: u32) -> Self {
        let (lane, warp) = (thread::lane(), thread::warp());
        Self {
            lane: Lane::new(lane),
            bases: base_pair(base as u8),
            planes_at: warp * BAND_BYTES as u32 + lane / HALF_LANES * 4,
            word_at: BANDS_AT as u32 + 4 * warp,
            outliers_before: 4 * lane,
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
        let streams = stage + STREAMS_AT as u32;
        let bytes = streams + before.bytes;
        let outliers = streams + CHUNK as u32 * byte_chunks + 2 * before.outliers;
        Band {
            decoder: self,
            planes: stage + self.planes_at,
            bytes,
            // What is not in the window counts: an outlier less for each byte.
            outliers: outliers + self.outliers_before + 2 * bytes,
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
            let first = self.bytes + lane.before(&found, lower);
            let second = first + u32::from(found.has_first() != 0);
            self.bytes += lower + upper;
            let outlier = |byte: u32| self.outliers.wrapping_sub(2 * byte);
            // SAFETY: the caller's promise.
            registers[T] = unsafe {
                found.pair(
                    memory::load_byte_or_u16::<{ T * TILE_WEIGHTS }>(
                        found.has_first(), first, outlier(first),
                    ),
                    memory::load_byte_or_u16::<{ T * TILE_WEIGHTS + 1 }>(
                        found.has_second(), second, outlier(second),
                    ),
                    *bases,
                )
            };
        });
        self.planes += (KSTEP_TILES * TILE_BYTES) as u32;
        self.outliers += (2 * KSTEP_TILES * TILE_WEIGHTS) as u32;
        registers
    }
}
