//! The warps that copy dense tiles, activations and sums into the ring of stages.

use core::ops::Range;

use super::{
    Accumulator, Block, Problem, RestartingState, ahead::Located, work_tiles::WorkTileState,
};
use crate::{
    arch::{barrier, copy, grid},
    args::Group,
    kernels::{self, fixup::counted},
    launch::Prefill,
    layout::*,
    sched::{schedule::Place, work::WorkTile},
};

impl<P: Problem, const SUMS: usize, const STAGES: usize, const CLUSTER: usize>
    Block<'_, P, SUMS, STAGES, CLUSTER>
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

    /// Keeps the ring full of dense tiles, and behind those of a work tile, of the sums that others have
    /// of it. Weights never depend on an earlier kernel of the stream.
    #[inline(always)]
    pub(super) unsafe fn copy_dense(&self) {
        if self.lane > 0 {
            return;
        }
        let keep = self.keep();
        // SAFETY: `run`'s.
        let scale = scale(unsafe { kernels::base(self.args.dense) });
        let mut ring = RestartingState::<STAGES>::PRODUCER;
        let mut schedule = self.schedule();
        // Plain copies do not wait for the tensor map, and were faster where memory sets the pace. Tensor
        // copies take less of shared memory's time from the tensor cores.
        let mut early = if Self::FEW_TOKENS {
            u32::MAX
        } else {
            STAGES as u32
        };
        let mut state = WorkTileState::FIRST;
        let mut ahead = self.ahead(&schedule);
        while let Some(work_tile) = schedule.next() {
            let Located { place, group } = self.locate(&mut ahead, &work_tile, &schedule);
            let strip = group.expert * self.strips + self.row_block(place) * Self::STRIPS;
            let mut peers = 0..0;
            for column in work_tile.from..work_tile.to {
                let to = self.stage(ring.stage) + Self::SHAPE.dense_at() as u32;
                // SAFETY: `run`'s.
                unsafe {
                    let full = self.start(&ring, (Prefill::STRIPS * TILE_BYTES) as u32);
                    if early > 0 {
                        early -= 1;
                        unroll!(S < Prefill::STRIPS => {
                            let tile = self.tile(&schedule, place, group.expert, column, S as u32);
                            let from = self.args.dense.add(tile * TILE_BYTES);
                            copy::bulk(to + (S * TILE_BYTES) as u32, from, TILE_BYTES as u32, full, keep);
                        });
                    } else {
                        copy::tensor4(to, self.tiles, [0, 0, column, strip], full, keep);
                    }
                    if column == work_tile.from {
                        // Only now, for the first copy should not wait.
                        let group = if P::GROUPED {
                            group.first..group.first + group.tokens
                        } else {
                            0..0
                        };
                        peers =
                            self.push_work_tile(state, &schedule, &work_tile, place, group, scale);
                        state = state.next();
                    }
                }
                ring.advance();
            }
            if !peers.is_empty() {
                // SAFETY: `run`'s.
                unsafe { self.copy_sums(&mut ring, place, peers) };
            }
            ring.restart();
        }
        let none = WorkTile::default();
        // SAFETY: `run`'s.
        unsafe {
            let place = self.tiles().place(none.tile);
            self.push_work_tile(state, &schedule, &none, place, 0..0, scale)
        };
    }

    /// Copies the sums that earlier clusters have of an output tile: of each chunk of tokens those of
    /// all. That clusters start in order, so that those waited for run or have run, is assumed: CUDA does
    /// not promise it.
    #[inline(always)]
    unsafe fn copy_sums(
        &self,
        ring: &mut RestartingState<STAGES>,
        place: Place,
        peers: Range<u32>,
    ) {
        // Flags may be those of an earlier kernel, and are not its own before it has ended.
        grid::wait_dependencies();
        let bytes = Self::SHAPE.piece_bytes();
        let pieces = Self::SHAPE.chunk_pieces() as u32;
        for chunk in 0..self.chunks(place) {
            for cluster in peers.clone() {
                if chunk == 0 {
                    // SAFETY: there is a flag for every block of the launch.
                    unsafe { counted::wait(self.flag(cluster), Self::WARPS) };
                }
                for piece in pieces * chunk..pieces * (chunk + 1) {
                    let from = self.partial(cluster).cast::<u8>();
                    // SAFETY: the workspace has room for every block of the launch; else `run`'s.
                    unsafe {
                        let full = self.start(ring, bytes as u32);
                        let from = from.add(piece as usize * bytes);
                        copy::bulk(
                            self.stage(ring.stage),
                            from,
                            bytes as u32,
                            full,
                            copy::Keep::not(),
                        );
                    }
                    ring.advance();
                }
            }
        }
    }

    /// Waits until a stage is empty, and tells its barrier, which it returns, of `bytes` to come.
    #[inline(always)]
    unsafe fn start(&self, ring: &RestartingState<STAGES>, bytes: u32) -> u32 {
        let full = self.full(ring.stage);
        // SAFETY: `run`'s.
        unsafe {
            barrier::wait(self.empty(ring.stage), ring.parity());
            barrier::expect(full, bytes);
            barrier::arrive(full);
        }
        full
    }

    /// Lets the stages pass that a work tile takes for the sums of earlier clusters, and goes to the first
    /// stage.
    #[inline(always)]
    pub(super) unsafe fn pass_sums(&self, ring: &mut RestartingState<STAGES>, stages: u32) {
        for _ in 0..stages {
            // SAFETY: `run`'s.
            unsafe {
                barrier::wait(self.empty(ring.stage), ring.parity());
                barrier::arrive(self.full(ring.stage));
            }
            ring.advance();
        }
        ring.restart();
    }

    /// Keeps the ring full of activations: this block's part of them, to all of the cluster.
    #[inline(always)]
    pub(super) unsafe fn copy_activations(&self) {
        grid::wait_dependencies();
        grid::launch_dependents();
        if self.lane > 0 {
            return;
        }
        let box_tokens = self.args.box_tokens;
        let part = self.rank * box_tokens;
        let mut ring = RestartingState::<STAGES>::PRODUCER;
        let mut schedule = self.schedule();
        let mut ahead = self.ahead(&schedule);
        while let Some(work_tile) = schedule.next() {
            let Located { group, .. } = self.locate(&mut ahead, &work_tile, &schedule);
            let Group { first, tokens, .. } = group;
            let token = first + part;
            // Blocks with no tokens copy nothing, for zeros take longer than activations. What is in their
            // place makes outputs that are not stored.
            let mut boxes = 0;
            unroll!(R < CLUSTER => { boxes += u32::from(R as u32 * box_tokens < tokens); });
            let bytes = boxes * box_tokens * Prefill::LINE_BYTES as u32;
            let has_tokens = token < first + tokens;
            for column in work_tile.from..work_tile.to {
                let at = self.stage(ring.stage) + part * Prefill::LINE_BYTES as u32;
                let column = column * TILE_COLS as u32;
                // SAFETY: `run`'s. A stage that is empty here is empty in all blocks of the cluster;
                // each expects the bytes of all parts.
                unsafe {
                    let full = self.start(&ring, bytes);
                    if has_tokens && CLUSTER > 1 {
                        let all = (1 << CLUSTER) - 1;
                        copy::tensor_multicast(at, self.x, column, token, full, all);
                    } else if has_tokens {
                        copy::tensor(at, self.x, column, token, full);
                    }
                }
                ring.advance();
            }
            // SAFETY: `run`'s.
            unsafe { self.pass_sums(&mut ring, self.sum_stages(&schedule, &work_tile)) };
        }
    }
}
