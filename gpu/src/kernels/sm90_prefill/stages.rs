//! The warps that copy dense tiles and activations into the ring of stages.

use super::{Accumulator, Block, Ring};
use crate::{
    arch::{barrier, copy, grid},
    launch::Prefill,
    layout::*,
};

impl<const SUMS: usize, const STAGES: usize, const CLUSTER: usize> Block<'_, SUMS, STAGES, CLUSTER>
where
    [f32; SUMS]: Accumulator,
{
    /// How long the L2 cache should keep weights: they are read once, unless other tokens need them
    /// again.
    #[inline(always)]
    pub(super) fn keep(&self) -> copy::Keep {
        if self.args.n <= Self::SHAPE.tokens as u32 {
            copy::Keep::not()
        } else {
            copy::Keep::as_usual()
        }
    }

    /// Keeps the ring full of dense tiles. Weights never depend on an earlier kernel of the stream.
    #[inline(always)]
    pub(super) unsafe fn copy_dense(&self) {
        let mut unit = self.cursor();
        let mut ring = Ring::<STAGES>::FILLING;
        if self.lane > 0 {
            return;
        }
        let keep = self.keep();
        while !unit.is_done() {
            let full = self.full(ring.stage);
            let to = self.stage(ring.stage) + Self::SHAPE.dense_at() as u32;
            // SAFETY: `run`'s.
            unsafe {
                barrier::wait(self.empty(ring.stage), ring.parity);
                barrier::expect(full, (Prefill::STRIPS * TILE_BYTES) as u32);
                barrier::arrive(full);
                unroll!(S < Prefill::STRIPS => {
                    let from = self.args.dense.add(self.tile(&unit, S as u32) * TILE_BYTES);
                    copy::bulk(to + (S * TILE_BYTES) as u32, from, TILE_BYTES as u32, full, keep);
                });
            }
            unit.advance();
            ring.advance();
        }
    }

    /// Keeps the ring full of activations: this block's part of them, to all of the cluster.
    #[inline(always)]
    pub(super) unsafe fn copy_activations(&self) {
        grid::wait_dependencies();
        if self.lane > 0 {
            return;
        }
        let part = self.rank * Self::SHAPE.box_tokens() as u32;
        let mut unit = self.cursor();
        let mut ring = Ring::<STAGES>::FILLING;
        while !unit.is_done() {
            let full = self.full(ring.stage);
            let at = self.stage(ring.stage) + part * Prefill::LINE_BYTES as u32;
            let column = unit.share.from * TILE_COLS as u32;
            let token = unit.place.token_block * Self::SHAPE.tokens as u32 + part;
            // SAFETY: `run`'s. A stage that is empty here is empty in all blocks of the cluster;
            // each expects the bytes of all parts.
            unsafe {
                barrier::wait(self.empty(ring.stage), ring.parity);
                barrier::expect(full, Self::SHAPE.x_bytes() as u32);
                barrier::arrive(full);
                if CLUSTER > 1 {
                    let all = (1 << CLUSTER) - 1;
                    copy::tensor_multicast(at, self.x, column, token, full, all);
                } else {
                    copy::tensor(at, self.x, column, token, full);
                }
            }
            unit.advance();
            ring.advance();
        }
    }
}
