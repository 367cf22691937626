//! Y[N, M] = X[N, K] W[M, K]^T from compressed W, for many tokens, with `wgmma`.
//!
//! ```text
//!  two producer warps                       two consumer warpgroups
//!
//!  tiles; X, by tensor copies; sums   full  A fragments from bytes, codes, patches;   output tile:
//!  of other clusters, into a stage ------->  wgmma: A in registers, X by descriptor -> add others'
//!                                     empty                                           sums, epilogue,
//!  two outlier warps                  full                                            transpose,
//!                                   ------->                                          store Y; or
//!  patches, read ahead: their high    empty                                           store sums for
//!  bytes into a table               <-------                                          another cluster
//! ```
//!
//! An output tile is 128 features by `2 * SUMS` tokens. A warp decodes one band of one strip: 16
//! features by 64 columns of each k-tile, the A operands of four `wgmma` by which its warpgroup
//! multiplies 64 features by all tokens of the tile. The blocks of a cluster take the same tokens
//! and different features; each copies a part of the activations to all of them.
//!
//! Clusters are persistent. Each takes whole output tiles, in an order that lets the activations
//! of those under way stay in the L2 cache; what does not go into the number of clusters is shared
//! along K ([`crate::sched::schedule`]). Partial sums are stored as they lie in registers, and counted
//! ([`counted`](super::fixup::counted)); they come to the cluster that finishes the tile by bulk copies
//! through its ring, behind its own k-tiles. A work tile begins with the ring's first stage, so that
//! addresses of stages are constants. The warp that copies dense tiles describes each work tile to those
//! that multiply.
//!
//! The same kernel multiplies the tokens of a mixture's experts, a group of them a tile: [`problem`] says where output
//! tiles are then. Nothing is shared along K, so no sums pass between clusters. With few tokens it can gate: an output
//! tile is then 64 features of the gate, which the first warpgroup has, and the 64 that they are multiplied by, which the
//! second has; rounded sums of both meet in shared memory.
//!
//! Every lane arrives at barriers for what it has read or written itself. Between the barrier that
//! frees a table and the one that fills it the source has stores only: all else is done before
//! (`ptxas` moves some selects there). A warp that multiplies has all it needs of a k-tile's table in
//! registers, and frees it, halfway through the k-tile.
//!
//! Budget of a k-tile at 256 tokens: 1024 cycles of the tensor cores, for which each scheduler
//! issues some 85 instructions for each of its two warps; 43 KB into shared memory, 27 KB of them
//! from the L2 cache for each block of a cluster of two.

mod ahead;
mod multiply;
mod output;
mod patches;
mod problem;
mod stages;
mod tables;
mod work_tiles;

use core::{mem::offset_of, ops::Range};

use crate::{
    arch::{barrier, cluster, copy, memory, thread, wgmma::Accumulator},
    args::{Group, GroupedPrefillArgs, PrefillArgs},
    launch::Prefill,
    layout::*,
    sched::{
        pipeline::RestartingState,
        schedule::{Cursor, Decomposition, OutputTiles, Place, Schedule},
        work::WorkTile,
    },
};

use self::problem::{Experts, Problem, Single};

/// Registers of a thread that multiplies, and of one that does not; `.maxntid` gives each 168. There
/// are no more: who asks for what others do not give up waits forever.
const REGISTERS: (u32, u32) = (216, 72);
const _: () = assert!(
    REGISTERS.0 * Prefill::WARPS as u32 + REGISTERS.1 * Prefill::PRODUCER_WARPS as u32
        <= 168 * (Prefill::WARPS + Prefill::PRODUCER_WARPS) as u32
);

/// The kernel of one [`Prefill`] shape of `2 * SUMS` tokens.
///
/// # Safety
/// `args` describe a compressed matrix and buffers as the host's `zipgemm_prefill_raw` checks; `maps`
/// is the generic address of their tensor maps; the launch is that of the shape.
#[inline(always)]
pub unsafe fn prefill<const SUMS: usize, const STAGES: usize, const CLUSTER: usize>(
    args: &PrefillArgs,
    maps: u64,
) where
    [f32; SUMS]: Accumulator,
{
    let block = Block::<_, SUMS, STAGES, CLUSTER>::new(Single, args, maps);
    // SAFETY: the caller's promise, passed on.
    unsafe { block.run() }
}

/// The same for the tokens of a mixture's experts, in the order of experts, of which each group is a token block.
///
/// # Safety
/// As [`prefill`], of the matrices of all experts; routing has written what `args` point to, and what kernels ahead of
/// the one ahead of this one have written is there.
#[inline(always)]
pub unsafe fn prefill_grouped<const SUMS: usize, const STAGES: usize, const CLUSTER: usize>(
    args: &GroupedPrefillArgs,
    maps: u64,
) where
    [f32; SUMS]: Accumulator,
{
    let problem = Experts::new(args);
    let block = Block::<_, SUMS, STAGES, CLUSTER>::new(problem, &args.prefill, maps);
    // SAFETY: the caller's promise, passed on.
    unsafe { block.run() }
}

/// A thread's view of its block.
struct Block<'a, P, const SUMS: usize, const STAGES: usize, const CLUSTER: usize> {
    problem: P,
    args: &'a PrefillArgs,
    /// The tensor maps of activations and dense tiles.
    x: u64,
    tiles: u64,
    shared: u32,
    lane: u32,
    warp: u32,
    /// Place of the block in its cluster, and of the cluster in the grid.
    rank: u32,
    cluster: u32,
    /// Shared memory of the cluster's block at whose *empty* barriers this lane arrives: the lane's number says which.
    heard: u32,
    /// Strips of the matrix, or of an expert's.
    strips: u32,
    /// Clusters of the grid.
    clusters: u32,
}

impl<'a, P: Problem, const SUMS: usize, const STAGES: usize, const CLUSTER: usize>
    Block<'a, P, SUMS, STAGES, CLUSTER>
where
    [f32; SUMS]: Accumulator,
{
    pub(super) const SHAPE: Prefill = Prefill {
        tokens: 2 * SUMS,
        stages: STAGES,
        cluster: CLUSTER,
    };
    pub(super) const WARPS: u32 = Prefill::WARPS as u32;
    pub(super) const STRIPS: u32 = Prefill::STRIPS as u32;
    pub(super) const FEW_TOKENS: bool = Self::SHAPE.has_few_tokens();
    /// Parts of an output tile if outputs are gated: the warpgroups have one each.
    pub(super) const HALVES: u32 = 2;

    #[inline(always)]
    fn new(problem: P, args: &'a PrefillArgs, maps: u64) -> Self {
        // SAFETY: every thread has a place in the grid.
        let (block, blocks) = unsafe { (thread::block() as u32, thread::blocks() as u32) };
        let cluster = block / CLUSTER as u32;
        let (shared, lane) = (memory::shared(), thread::fixed_lane());
        let rank = if CLUSTER > 1 { cluster::rank() } else { 0 };
        let heard = if CLUSTER > 1 {
            cluster::map(shared, lane % CLUSTER as u32)
        } else {
            shared
        };
        Self {
            problem,
            args,
            x: maps + offset_of!(PrefillArgs, x) as u64,
            tiles: maps + offset_of!(PrefillArgs, tiles) as u64,
            shared,
            lane,
            warp: thread::warp(),
            rank,
            heard,
            cluster,
            strips: args.m.div_ceil(TILE_ROWS as u32),
            clusters: blocks / CLUSTER as u32,
        }
    }

    /// What the cluster has to do. Each role works it out for itself, after the roles have taken
    /// different numbers of registers.
    #[inline(always)]
    pub(super) fn schedule(&self) -> Schedule {
        let cluster = thread::opaque(self.cluster);
        let k_tiles = self.args.k.div_ceil(TILE_COLS as u32);
        Schedule::new(
            self.tiles(),
            k_tiles,
            self.problem.decomposition(self.args),
            self.clusters,
            cluster,
        )
    }

    #[inline(always)]
    pub(super) fn cursor(&self) -> Cursor {
        Cursor::new(self.schedule(), self.tiles())
    }

    #[inline(always)]
    pub(super) fn tiles(&self) -> OutputTiles {
        let rows = (Prefill::ROWS * CLUSTER) as u32;
        self.problem
            .tiles(self.args, rows, Self::SHAPE.tokens as u32)
    }

    /// Expert and tokens of the output tile at `place`; behind those there may be others of no group.
    #[inline(always)]
    pub(super) fn group(&self, place: Place) -> Group {
        self.problem
            .group(self.args, place.token_block, Self::SHAPE.tokens as u32)
    }

    #[inline(always)]
    pub(super) fn stage(&self, stage: u32) -> u32 {
        self.shared + stage * Self::SHAPE.stage_bytes() as u32
    }

    #[inline(always)]
    pub(super) fn full(&self, stage: u32) -> u32 {
        self.shared + Self::SHAPE.barriers_at() as u32 + 16 * stage
    }

    #[inline(always)]
    pub(super) fn empty(&self, stage: u32) -> u32 {
        self.full(stage) + 8
    }

    /// What codes leave out of a k-tile's high bytes.
    #[inline(always)]
    pub(super) fn table(&self, table: u32) -> u32 {
        self.shared + (Self::SHAPE.tables_at() + table as usize * Prefill::TABLE_BYTES) as u32
    }

    #[inline(always)]
    pub(super) fn table_full(&self, table: u32) -> u32 {
        self.full(STAGES as u32 + table)
    }

    #[inline(always)]
    pub(super) fn table_empty(&self, table: u32) -> u32 {
        self.empty(STAGES as u32 + table)
    }

    /// Earlier clusters whose sums are added to those of a work tile, which is the last of its output tile.
    #[inline(always)]
    pub(super) fn peers(&self, schedule: &Schedule, work_tile: &WorkTile) -> Range<u32> {
        if P::GROUPED {
            return 0..0;
        }
        let Decomposition {
            shared_tiles,
            k_tiles_per_split,
        } = self.args.decomposition;
        let decomposition = Decomposition {
            shared_tiles: thread::opaque(shared_tiles),
            k_tiles_per_split: thread::opaque(k_tiles_per_split),
        };
        schedule.peers(decomposition, work_tile, self.cluster)
    }

    /// How many times 64 tokens of an output tile there are.
    #[inline(always)]
    pub(super) fn chunks(&self, place: Place) -> u32 {
        let first = place.token_block * Self::SHAPE.tokens as u32;
        let tokens = (self.args.n - first).min(Self::SHAPE.tokens as u32);
        tokens.div_ceil(Prefill::CHUNK_TOKENS as u32)
    }

    /// Stages that a work tile takes for the sums of earlier clusters, behind its k-tiles.
    #[inline(always)]
    pub(super) fn sum_stages(&self, schedule: &Schedule, work_tile: &WorkTile) -> u32 {
        let peers = self.peers(schedule, work_tile);
        let place = self.tiles().place(work_tile.tile);
        (peers.end - peers.start) * self.chunks(place) * Self::SHAPE.chunk_pieces() as u32
    }

    /// Which of its row group's row blocks is the block's own.
    #[inline(always)]
    pub(super) fn row_block(&self, place: Place) -> u32 {
        place.row_group * CLUSTER as u32 + self.rank
    }

    #[inline(always)]
    unsafe fn run(&self) {
        // SAFETY: addresses lie in the block's shared memory by the shape's arithmetic; global
        // ranges are the caller's promise.
        unsafe {
            if self.warp == Self::WARPS && self.lane == 0 {
                for stage in 0..STAGES as u32 {
                    barrier::init(self.full(stage), Self::FILLERS);
                    barrier::init(self.empty(stage), Self::EMPTIERS);
                }
                for slot in 0..Prefill::WORK_TILES as u32 {
                    barrier::init(self.work_tile_full(slot), 1);
                    barrier::init(self.work_tile_empty(slot), Self::WARPS * LANES as u32);
                }
                for table in 0..Prefill::TABLES as u32 {
                    // Every lane arrives for what it has written or read.
                    barrier::init(self.table_full(table), LANES as u32);
                    barrier::init(self.table_empty(table), Self::WARPS * LANES as u32);
                }
                barrier::fence_init();
                copy::prefetch_map(self.tiles);
                copy::prefetch_map(self.x);
            }
            Self::sync();
            if self.warp < Self::WARPS {
                thread::grow_registers::<{ REGISTERS.0 }>();
                self.multiply();
            } else {
                thread::shrink_registers::<{ REGISTERS.1 }>();
                if P::GROUPED {
                    let problem = self.problem.started();
                    Self { problem, ..*self }.produce();
                } else {
                    self.produce();
                }
            }
            thread::sync_warp();
            if CLUSTER > 1 {
                // The others' arrivals need this block's barriers.
                cluster::sync();
            }
        }
    }

    /// What the warps do that do not multiply.
    #[inline(always)]
    unsafe fn produce(&self) {
        // SAFETY: `run`'s.
        unsafe {
            match self.warp - Self::WARPS {
                producer if producer % 2 == 1 => self.write_table(producer / 2),
                0 => self.copy_dense(),
                _ => self.copy_activations(),
            }
        }
    }

    /// Waits for all who share barriers.
    #[inline(always)]
    fn sync() {
        if CLUSTER > 1 {
            cluster::sync();
        } else {
            thread::sync_block();
        }
    }

    /// Whether outputs are gated. A row block then has strips of the gate's features, of the first warpgroup, and those
    /// that they are multiplied by, of the second.
    #[inline(always)]
    pub(super) fn is_gated(&self) -> bool {
        Self::FEW_TOKENS && self.args.is_gated
    }

    /// The tile of a k-tile in a strip of the row block, of an expert if there are some. Below the matrix, or its half,
    /// the last strip stands in: what comes of it is not stored.
    #[inline(always)]
    pub(super) fn tile(
        &self,
        schedule: &Schedule,
        place: Place,
        expert: u32,
        column: u32,
        strip: u32,
    ) -> usize {
        let row_block = self.row_block(place);
        let strip = if self.is_gated() {
            const { assert!(Self::STRIPS.is_multiple_of(Self::HALVES)) };
            let (strips, width) = (self.strips / Self::HALVES, Self::STRIPS / Self::HALVES);
            let half = strip / width;
            half * strips + (row_block * width + strip % width).min(strips - 1)
        } else {
            (row_block * Self::STRIPS + strip).min(self.strips - 1)
        };
        let strip = expert * self.strips + strip;
        (strip * schedule.k_tiles + column) as usize
    }
}
