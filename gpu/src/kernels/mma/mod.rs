//! Y[N, M] = X[N, K] W[M, K]^T from compressed W, for up to 64 tokens.
//!
//! ```text
//!  two producer warps     consumer groups of warps             two epilogue warps
//!
//!  tiles, offsets,  full  A fragments from bytes, codes and   sums  add over warps, then over
//!  patches; X      -----> patches, B fragments from X, mma   -----> blocks, in a fixed order;
//!  into a stage     empty  into registers, a k-block at a time      epilogue; store Y
//!                  <-----                                    <-----
//! ```
//!
//! A persistent block takes a run of the line of k-tiles ([`crate::sched::work`]). Each stage of the
//! ring holds one *k-block*: `warps_k` k-tiles, that is a tile for each warp of a consumer group and the
//! activations of their columns. Consumer groups pop stages one after the other, so that one multiplies
//! while the next one's stage is still on its way. No barrier but those of the rings stands in the way
//! of a warp, also not where a row block, which is an output tile here, ends: the epilogue warps add up
//! the last one while the others multiply the next. Where blocks share one, [`sentinel`] is how.
//!
//! Weights are asked for before all else, for no earlier kernel of the stream writes them; X and Y
//! wait for the kernel before, and so does the start of the one behind. Weights are read once and X by
//! every block, so the L2 cache is told to let go of weights first.
//!
//! The same kernel multiplies the tokens of a mixture's experts: [`problem`] says where output tiles are then.
//!
//! Budget (builder/budget.json, from the machine code): 151 instructions a tile and warp of `2x4x2` at
//! N = 8, also for experts, 148 of `1x8x2`; 2.4 for each of a lane's 64 weights, where 132 SMs at 3 TB/s leave 13.6 issue
//! slots.

pub mod fetch;
pub mod problem;
pub mod tile;

use self::{
    problem::{Experts, Problem, Single},
    tile::{Patches, Tile},
};
use super::{
    epilogue::Epilogue,
    fixup::{self, sentinel},
};
use crate::{
    arch::{barrier, copy, grid, math, memory, mma, thread},
    args::{GemmArgs, GroupedArgs},
    launch::Gemm,
    layout::*,
    sched::{
        pipeline::PipelineState,
        work::{Cursor, StreamK, WorkTile, WorkTiles},
    },
};

/// k-blocks behind the first ring that are brought to the L2 cache, to keep memory busy while the
/// block waits for the kernel before it. More of them slow that kernel's last blocks down, which
/// long runs make up for.
const AHEAD: u32 = 2;
const AHEAD_OF_LONG: u32 = 3;
/// k-blocks of a long run.
const LONG: u32 = 20;

/// The kernel of one [`Gemm`] shape.
///
/// # Safety
/// `args` describe a compressed matrix and buffers as the host's `zipgemm` checks; the launch is
/// that of the shape.
#[inline(always)]
pub unsafe fn zipgemm<
    const N_TILES: usize,
    const WARPS_M: usize,
    const WARPS_K: usize,
    const CONSUMER_GROUPS: usize,
    const STAGES: usize,
    const SUM_STAGES: usize,
>(
    args: &GemmArgs,
) {
    let problem = Single::new(args);
    let block = Block::<_, N_TILES, WARPS_M, WARPS_K, CONSUMER_GROUPS, STAGES, SUM_STAGES>::new(
        problem, true,
    );
    // SAFETY: the caller's promise, passed on.
    unsafe { block.run() }
}

/// The kernel of one [`Gemm`] shape for the tokens of a mixture's experts: Y[t] = X[t] W[e(t)]^T, for all experts that
/// have tokens. Output tiles of all of them make one line of k-tiles, so blocks have the same work, however tokens are
/// dealt. Which there are the kernel reads from what routing has left; nothing waits for the host.
///
/// # Safety
/// As [`zipgemm`], of the matrices of all experts; routing has written what `args` point to.
#[inline(always)]
pub unsafe fn zipgemm_grouped<
    const N_TILES: usize,
    const WARPS_M: usize,
    const WARPS_K: usize,
    const CONSUMER_GROUPS: usize,
    const STAGES: usize,
    const SUM_STAGES: usize,
>(
    args: &GroupedArgs,
) {
    let problem = Experts::<N_TILES>::new(args);
    let block = Block::<_, N_TILES, WARPS_M, WARPS_K, CONSUMER_GROUPS, STAGES, SUM_STAGES>::new(
        problem,
        !args.is_batch_invariant,
    );
    // SAFETY: the caller's promise, passed on.
    unsafe { block.run() }
}

/// Most rows of activations that a lane looks after, and room for as many as [`unroll!`] may name.
const MOST_ROWS: usize = 8;

/// Rows of activations that come by a bulk copy each, so that rows which are not there cost nothing. More come by all
/// lanes, 16 bytes at a time: since eight came by bulk copies of 512 bytes, eight tokens took 8 % longer. Experts, most
/// of which have few tokens, were not compared.
const BULK_ROWS: u32 = 2;

/// Most *fours*, sums of four rows and one token, that an epilogue thread has of eight tokens.
const FOURS_AT_MOST: usize = 8;

/// What a lane copies of a k-block: the tiles of one strip, and their patches.
#[derive(Clone, Copy, Default)]
struct Share {
    /// The first tile.
    tile: u32,
    /// How many there are, perhaps none.
    tiles: u32,
    /// Their patches, from and to.
    patches: [u32; 2],
}

/// A thread's view of its block.
struct Block<
    'a,
    P: Problem<'a>,
    const N_TILES: usize,
    const WARPS_M: usize,
    const WARPS_K: usize,
    const CONSUMER_GROUPS: usize,
    const STAGES: usize,
    const SUM_STAGES: usize,
> {
    problem: P,
    args: &'a GemmArgs,
    shared: u32,
    lane: u32,
    warp: u32,
    block: u32,
    /// Tiles along K.
    k_tiles: u32,
    work: StreamK,
    work_tiles: WorkTiles,
}

impl<
    'a,
    P: Problem<'a>,
    const N_TILES: usize,
    const WARPS_M: usize,
    const WARPS_K: usize,
    const CONSUMER_GROUPS: usize,
    const STAGES: usize,
    const SUM_STAGES: usize,
> Block<'a, P, N_TILES, WARPS_M, WARPS_K, CONSUMER_GROUPS, STAGES, SUM_STAGES>
{
    const SHAPE: Gemm = Gemm {
        n_tiles: N_TILES,
        warps_m: WARPS_M,
        warps_k: WARPS_K,
        consumer_groups: CONSUMER_GROUPS,
        stages: STAGES,
        sum_stages: SUM_STAGES,
        blocks: 1,
    };
    const WARPS: u32 = Self::SHAPE.warps() as u32;
    /// k-blocks of which the lanes that copy weights look after a strip each.
    const BATCH: u32 = LANES as u32 / WARPS_M as u32;
    const ROWS: u32 = Self::SHAPE.rows() as u32;

    /// With `shares`, blocks share output tiles along K.
    #[inline(always)]
    fn new(problem: P, shares: bool) -> Self {
        let args = problem.gemm();
        let k_tiles = args.k.div_ceil(TILE_COLS as u32);
        // SAFETY: every thread has a place in the grid.
        let (block, blocks) = unsafe { (thread::block() as u32, thread::blocks() as u32) };
        let tiles = problem.tiles::<WARPS_M>();
        let work = match shares {
            true => StreamK::new(tiles * k_tiles, blocks),
            false => StreamK::whole(tiles, blocks, k_tiles),
        };
        let (shared, work_tiles) = (memory::shared(), work.work_tiles(block, k_tiles));
        let groups = shared + Self::SHAPE.groups_at() as u32;
        Self {
            problem: problem.of_run::<WARPS_M>(work_tiles.first_tile(), groups),
            args,
            shared,
            lane: thread::lane(),
            warp: thread::warp(),
            block,
            k_tiles,
            work,
            work_tiles,
        }
    }

    #[inline(always)]
    fn stage(&self, stage: u32) -> u32 {
        self.shared + stage * Self::SHAPE.stage_bytes() as u32
    }

    #[inline(always)]
    fn full(&self, stage: u32) -> u32 {
        self.shared + Self::SHAPE.barriers_at() as u32 + 16 * stage
    }

    #[inline(always)]
    fn empty(&self, stage: u32) -> u32 {
        self.full(stage) + 8
    }

    #[inline(always)]
    fn sums_full(&self, stage: u32) -> u32 {
        self.full(STAGES as u32 + stage)
    }

    #[inline(always)]
    fn sums_empty(&self, stage: u32) -> u32 {
        self.empty(STAGES as u32 + stage)
    }

    #[inline(always)]
    fn sums(&self, stage: u32) -> u32 {
        self.shared + (Self::SHAPE.sums_at() + stage as usize * Self::SHAPE.sums_bytes()) as u32
    }

    /// The warp's patch table.
    #[inline(always)]
    fn table(&self) -> u32 {
        self.shared + Self::SHAPE.tables_at() as u32 + self.warp * Gemm::TABLE_BYTES as u32
    }

    #[inline(always)]
    unsafe fn run(&self) {
        // SAFETY: addresses lie in the block's shared memory by the shape's arithmetic; global
        // ranges are the caller's promise.
        unsafe {
            let mut first = (Cursor::new(self.work_tiles), Share::default());
            if self.warp == Self::WARPS {
                // Weights are on their way before anything else happens.
                self.problem.load(self.lane);
                if self.lane == 0 {
                    self.init_barriers();
                }
                thread::sync_warp();
                first = self.start_weights();
            }
            thread::sync_block();
            // Asked anew, or the compiler would make a barrier for each role.
            let warp = thread::opaque(self.warp);
            if warp < Self::WARPS {
                self.multiply();
            } else if warp == Self::WARPS {
                self.copy_weights(first);
            } else if warp == Self::WARPS + 1 {
                self.copy_activations();
            } else {
                self.write();
            }
        }
    }

    #[inline(always)]
    unsafe fn init_barriers(&self) {
        // SAFETY: `run`'s.
        unsafe {
            for stage in 0..STAGES as u32 {
                barrier::init(
                    self.full(stage),
                    LANES as u32 + fetch::arrivals::<WARPS_M>(),
                );
                // Here and below every lane arrives for itself, which racecheck understands.
                barrier::init(self.empty(stage), (WARPS_M * WARPS_K * LANES) as u32);
            }
            for stage in 0..SUM_STAGES as u32 {
                barrier::init(self.sums_full(stage), Self::WARPS * LANES as u32);
                barrier::init(
                    self.sums_empty(stage),
                    (Gemm::EPILOGUE_WARPS * LANES) as u32,
                );
            }
        }
        barrier::fence_init();
    }

    /// Fills the ring with weights, which never depend on an earlier kernel of the stream, and
    /// says what this lane copies next.
    #[inline(always)]
    unsafe fn start_weights(&self) -> (Cursor<WARPS_K>, Share) {
        let (strip, slot) = (self.lane % WARPS_M as u32, self.lane / WARPS_M as u32);
        let own = Cursor::<WARPS_K>::new(self.work_tiles).after(slot);
        let share = self.share(&own, strip);
        let ahead = match self.work_tiles.left() >= LONG * WARPS_K as u32 {
            true => AHEAD_OF_LONG,
            false => AHEAD,
        };
        // SAFETY: `run`'s.
        unsafe {
            if fetch::ALONE && slot < STAGES as u32 {
                self.copy_dense(share, strip, slot);
            } else if fetch::ALONE && slot < STAGES as u32 + ahead {
                let dense = self.args.dense.add(share.tile as usize * TILE_BYTES);
                copy::prefetch_bulk(dense, share.tiles * TILE_BYTES as u32);
            }
        }
        (own, share)
    }

    /// Keeps the ring full of weights.
    ///
    /// Each lane looks after one strip of one k-block in [`Self::BATCH`], so that what it must read
    /// of the offsets is there long before its stage is due.
    #[inline(always)]
    unsafe fn copy_weights(&self, (mut own, mut share): (Cursor<WARPS_K>, Share)) {
        let k_blocks = self.work_tiles.k_blocks(WARPS_K as u32);
        let (strip, slot) = (self.lane % WARPS_M as u32, self.lane / WARPS_M as u32);
        // SAFETY: `run`'s.
        unsafe {
            let mut ring = PipelineState::<STAGES>::PRODUCER;
            let mut k_block = 0;
            while k_block < k_blocks {
                let next = own.after(Self::BATCH);
                let next_share = self.share(&next, strip);
                for now in 0..Self::BATCH.min(k_blocks - k_block) {
                    barrier::wait(self.empty(ring.stage), ring.parity);
                    if !fetch::ALONE {
                        // All lanes copy the k-block, each a part of one strip.
                        let strip = fetch::strip::<WARPS_M>(self.lane);
                        let holder = now * WARPS_M as u32 + strip;
                        let of_holder = |value| thread::shuffle(value, holder);
                        let share = Share {
                            tile: of_holder(share.tile),
                            tiles: of_holder(share.tiles),
                            patches: share.patches.map(of_holder),
                        };
                        self.copy_dense(share, strip, ring.stage);
                        self.copy_patches(share, strip, ring.stage);
                        copy::arrive_after_chunks(self.full(ring.stage));
                    } else if slot == now {
                        if k_block >= STAGES as u32 {
                            self.copy_dense(share, strip, ring.stage);
                        }
                        self.copy_patches(share, strip, ring.stage);
                        barrier::arrive(self.full(ring.stage));
                    }
                    ring.advance();
                    k_block += 1;
                }
                (own, share) = (next, next_share);
            }
        }
    }

    /// Keeps the ring full of activations.
    #[inline(always)]
    unsafe fn copy_activations(&self) {
        grid::wait_dependencies();
        grid::launch_dependents();
        let mut at = Cursor::<WARPS_K>::new(self.work_tiles);
        let mut ring = PipelineState::<STAGES>::PRODUCER;
        // Of the output tile of `at`: how many tokens there are, and the rows of this lane's.
        let (mut of, mut n, mut rows) = (u32::MAX, 0, [0; MOST_ROWS]);
        loop {
            let (output_tile, col, tiles) = at.k_block();
            if tiles == 0 {
                break;
            }
            if output_tile != of {
                let (first, count) = self.problem.tokens::<WARPS_M>(output_tile);
                (of, n) = (output_tile, count);
                unroll!(I < Self::LANE_ROWS => {
                    let token = (I * LANES) as u32 + self.lane;
                    rows[I] = if token < n { self.problem.row(first + token) } else { 0 };
                });
            }
            // SAFETY: `run`'s.
            unsafe {
                barrier::wait(self.empty(ring.stage), ring.parity);
                self.copy_x(n, &rows, col, tiles, ring.stage);
            }
            at = at.after(1);
            ring.advance();
        }
    }

    /// This lane's share of a k-block, of which it has one strip.
    #[inline(always)]
    fn share(&self, cursor: &Cursor<WARPS_K>, strip: u32) -> Share {
        let (output_tile, col, tiles) = cursor.k_block();
        if tiles == 0 {
            return Share::default();
        }
        let Some(strip) = self.problem.strip::<WARPS_M>(output_tile, strip) else {
            return Share::default();
        };
        let tile = strip * self.k_tiles + col;
        // SAFETY: there is one offset more than there are tiles.
        let patches = unsafe {
            let offsets = self.args.offsets.add(tile as usize);
            [
                memory::load_global_u32(offsets),
                memory::load_global_u32(offsets.add(tiles as usize)),
            ]
        };
        Share {
            tile,
            tiles,
            patches,
        }
    }

    /// Starts this lane's part in the copies of a strip's tiles and patch offsets.
    #[inline(always)]
    unsafe fn copy_dense(&self, Share { tile, tiles, .. }: Share, strip: u32, stage: u32) {
        if tiles == 0 {
            return;
        }
        let (at, full) = (self.stage(stage), self.full(stage));
        let dense_at = at + strip * (WARPS_K * TILE_BYTES) as u32;
        let dense_bytes = tiles * TILE_BYTES as u32;
        let offset_bytes = 4 * Self::SHAPE.offset_words() as u32;
        let offsets_at = at + Self::SHAPE.offsets_at() as u32 + strip * offset_bytes;
        // SAFETY: `run`'s; the section of offsets is padded, so that whole groups of 16 bytes can
        // be read.
        unsafe {
            let dense = self.args.dense.add(tile as usize * TILE_BYTES);
            let most = (WARPS_K * TILE_BYTES) as u32;
            fetch::start::<WARPS_M>(dense_at, dense, dense_bytes, most, full);
            let offsets = self.args.offsets.add((tile & !3) as usize).cast();
            fetch::start::<WARPS_M>(offsets_at, offsets, offset_bytes, offset_bytes, full);
        }
    }

    /// Starts this lane's part in the copy of a strip's patches, as many as a stage has room for.
    #[inline(always)]
    unsafe fn copy_patches(&self, share: Share, strip: u32, stage: u32) {
        let [from, to] = share.patches;
        if from == to {
            return;
        }
        let room = Self::SHAPE.patch_room() as u32;
        let first = from & !7;
        let bytes = 2 * (to.next_multiple_of(8) - first).min(room);
        let at = self.stage(stage) + Self::SHAPE.patches_at() as u32 + 2 * strip * room;
        // SAFETY: `run`'s; the section of patches is padded like that of offsets.
        unsafe {
            let patches = self.args.patches.add(first as usize).cast();
            fetch::start::<WARPS_M>(at, patches, bytes, 2 * room, self.full(stage));
        }
    }

    /// Where an activation is.
    #[inline(always)]
    fn x(&self, row: u32, column: u32) -> *const u16 {
        let index = row as usize * self.args.x_stride as usize + column as usize;
        self.args.x.wrapping_add(index)
    }

    /// Brings a k-block's activations to the L2 cache, without any promise about what they hold.
    #[inline(always)]
    fn prefetch_x(&self, cursor: &Cursor<WARPS_K>) {
        let (output_tile, col, tiles) = cursor.k_block();
        if P::GROUPED {
            // Where they are is not known as early.
            return;
        }
        let (first, n) = self.problem.tokens::<WARPS_M>(output_tile);
        let mut index = self.lane;
        while index < WARPS_K as u32 * n {
            let (token, tile) = (index / WARPS_K as u32, index % WARPS_K as u32);
            if tile < tiles {
                let column = (col + tile) * TILE_COLS as u32;
                copy::prefetch(self.x(self.problem.row(first + token), column).cast());
            }
            index += LANES as u32;
        }
    }

    /// Rows of activations that a lane looks after.
    const LANE_ROWS: usize = (8 * N_TILES).div_ceil(LANES);

    /// Starts the copies of the activations of `n` tokens, whose rows the lanes have, from k-tile `col` on. Columns past
    /// K become zeros. What is there for tokens past the last one has no part in the sums of others, and sums of its
    /// own are not stored.
    #[inline(always)]
    unsafe fn copy_x(&self, n: u32, rows: &[u32; MOST_ROWS], col: u32, tiles: u32, stage: u32) {
        const CHUNK: u32 = 8;
        let k = self.args.k;
        let (at, full) = (
            self.stage(stage) + Self::SHAPE.x_at() as u32,
            self.full(stage),
        );
        let stride = Self::SHAPE.x_stride() as u32;
        let first = col * TILE_COLS as u32;
        let is_aligned = self.args.x_stride % CHUNK == 0 && self.args.x as u64 % 16 == 0;
        // SAFETY: `run`'s.
        unsafe {
            let is_bulk = P::GROUPED || n <= BULK_ROWS;
            if fetch::ALONE && is_bulk && is_aligned && k % TILE_COLS as u32 == 0 {
                let bytes = 2 * TILE_COLS as u32 * tiles;
                unroll!(I < Self::LANE_ROWS => {
                    let token = (I * LANES) as u32 + self.lane;
                    if token < n {
                        let from = self.x(rows[I], first).cast();
                        barrier::expect(full, bytes);
                        copy::bulk(at + token * stride, from, bytes, full, copy::Keep::as_usual());
                    }
                });
                barrier::arrive(full);
            } else if is_aligned {
                let chunks = (WARPS_K * TILE_COLS) as u32 / CHUNK;
                unroll!(I < Self::LANE_ROWS => {
                    let count = (8 * N_TILES - I * LANES).min(LANES) as u32;
                    // As many for any number of tokens, so that the compiler unrolls it: one warp copies for all others.
                    for i in 0..count * chunks / LANES as u32 {
                        let index = i * LANES as u32 + self.lane;
                        let (in_share, c) = (index / chunks, index % chunks * CHUNK);
                        let token = (I * LANES) as u32 + in_share;
                        let row = if P::GROUPED { thread::shuffle(rows[I], in_share) } else { token };
                        if token < n {
                            let columns = k.saturating_sub(first + c).min(CHUNK);
                            let from = self.x(row, first + c).cast();
                            copy::chunk(at + token * stride + 2 * c, from, 2 * columns);
                        }
                    }
                });
                copy::arrive_after_chunks(full);
            } else {
                unroll!(I < Self::LANE_ROWS => {
                    let mut token = (I * LANES) as u32;
                    while token < n.min(((I + 1) * LANES) as u32) {
                        let row = thread::shuffle(rows[I], token % LANES as u32);
                        let mut c = self.lane;
                        while c < (WARPS_K * TILE_COLS) as u32 {
                            let mut value = 0;
                            if first + c < k {
                                value = *self.x(row, first + c);
                            }
                            memory::store_u16(at + token * stride + 2 * c, value);
                            c += LANES as u32;
                        }
                        token += 1;
                    }
                });
                barrier::arrive(full);
            }
        }
    }

    /// Multiplies this warp's tile of every k-block of its consumer group.
    #[inline(always)]
    unsafe fn multiply(&self) {
        let group_warps = (WARPS_M * WARPS_K) as u32;
        let (group, warp) = (self.warp / group_warps, self.warp % group_warps);
        let (strip, k_warp) = (warp % WARPS_M as u32, warp / WARPS_M as u32);
        let x_row = self.lane % 8 * Self::SHAPE.x_stride() as u32 + self.lane / 8 * 16;
        let x_at = Self::SHAPE.x_at() as u32 + k_warp * (2 * TILE_COLS) as u32 + x_row;
        let dense_at = (strip * WARPS_K as u32 + k_warp) * TILE_BYTES as u32;
        // SAFETY: `run`'s; the table is the warp's.
        let window = unsafe {
            let window = Window::new(super::base(self.args.dense));
            tile::clear_table(window, self.table(), self.lane);
            window
        };
        let mut work_tiles = self.work_tiles;
        let mut ring = PipelineState::<STAGES> {
            stage: group,
            parity: 0,
        };
        let mut sums = PipelineState::<SUM_STAGES>::PRODUCER;
        // The group's next k-block, counted from where the work tile starts.
        let mut k_block = group;
        while let Some(WorkTile {
            tile: output_tile,
            from,
            to,
        }) = work_tiles.next()
        {
            let matrix_strip = self.problem.strip::<WARPS_M>(output_tile, strip);
            let k_blocks = (to - from).div_ceil(WARPS_K as u32);
            let mut acc = [[[0f32; 4]; N_TILES]; BANDS];
            while k_block < k_blocks {
                let col = from + k_block * WARPS_K as u32 + k_warp;
                // SAFETY: `run`'s.
                unsafe {
                    barrier::wait(self.full(ring.stage), ring.parity);
                    let stage = self.stage(ring.stage);
                    if let Some(matrix_strip) = matrix_strip
                        && col < to
                    {
                        let tile = matrix_strip * self.k_tiles + col;
                        let patches = self.patches(stage, strip, k_warp, tile);
                        let place = Tile {
                            dense: stage + dense_at,
                            x: stage + x_at,
                            x_stride: Self::SHAPE.x_stride() as u32,
                            table: self.table(),
                        };
                        tile::multiply(window, &place, &patches, &mut acc);
                    }
                    barrier::arrive(self.empty(ring.stage));
                }
                ring.skip(CONSUMER_GROUPS);
                k_block += CONSUMER_GROUPS as u32;
            }
            k_block -= k_blocks;
            let part = group * WARPS_K as u32 + k_warp;
            // SAFETY: `run`'s.
            unsafe { self.push_sums(window, strip, part, &mut sums, &acc) };
        }
    }

    /// The patches of a tile.
    #[inline(always)]
    unsafe fn patches(&self, stage: u32, strip: u32, k_warp: u32, tile: u32) -> Patches {
        let offsets =
            stage + Self::SHAPE.offsets_at() as u32 + 4 * strip * Self::SHAPE.offset_words() as u32;
        // The first tile's patches start in the stage's first 16 bytes of patches.
        let k_block = (tile - k_warp) & 3;
        let room = Self::SHAPE.patch_room() as u32;
        let patches = stage + Self::SHAPE.patches_at() as u32 + 2 * strip * room;
        // SAFETY: `run`'s.
        unsafe {
            let block_first = memory::load_u32(offsets + 4 * k_block) & !7;
            let first = memory::load_u32(offsets + 4 * (k_block + k_warp));
            let last = memory::load_u32(offsets + 4 * (k_block + k_warp) + 4);
            Patches {
                count: last - first,
                staged: last - block_first <= room,
                shared: patches + 2 * (first - block_first),
                global: self.args.patches.add(first as usize),
            }
        }
    }

    /// Pushes the warp's sums to the epilogue warps, eight tokens at a time.
    #[inline(always)]
    unsafe fn push_sums(
        &self,
        window: Window,
        strip: u32,
        part: u32,
        ring: &mut PipelineState<SUM_STAGES>,
        acc: &[[[f32; 4]; N_TILES]; BANDS],
    ) {
        let stride = Self::SHAPE.sums_stride() as u32;
        let unscale = window.unscale();
        let row = strip * TILE_ROWS as u32 + self.lane / 4;
        let token = part * 8 + 2 * (self.lane % 4);
        unroll!(J < N_TILES => {
            // SAFETY: `run`'s.
            unsafe {
                barrier::wait(self.sums_empty(ring.stage), ring.parity);
                let at = self.sums(ring.stage) + 4 * (token * stride + row);
                for (band, acc) in acc.iter().enumerate() {
                    let at = at + (4 * BAND_ROWS * band) as u32;
                    let [a, b, c, d] = acc[J].map(|sum| sum * unscale);
                    memory::store_f32(at, a);
                    memory::store_f32(at + 4 * stride, b);
                    memory::store_f32(at + 32, c);
                    memory::store_f32(at + 4 * stride + 32, d);
                }
                barrier::arrive(self.sums_full(ring.stage));
            }
            ring.advance();
        });
    }

    /// Adds up what the warps push, and writes the output, or stores it as partial sums for a later block.
    #[inline(always)]
    unsafe fn write(&self) {
        // There is nothing else to do yet.
        let mut ahead = Cursor::<WARPS_K>::new(self.work_tiles);
        for _ in 0..STAGES {
            self.prefetch_x(&ahead);
            ahead = ahead.after(1);
        }
        // This thread's own wait: it writes, and perhaps reads, what earlier kernels have written.
        grid::wait_dependencies();
        let thread = (self.warp - Self::WARPS - 2) * LANES as u32 + self.lane;
        let mut work_tiles = self.work_tiles;
        let mut ring = PipelineState::<SUM_STAGES>::CONSUMER;
        while let Some(work_tile) = work_tiles.next() {
            let mut own = None;
            let (output, features, tokens, first_row) =
                self.problem.output::<WARPS_M>(work_tile.tile, &mut own);
            let epilogue = Epilogue::new(output, features, tokens);
            let finishes = work_tile.to == self.k_tiles;
            let peers = if work_tile.from > 0 && finishes {
                let output_tile_start = work_tile.tile * self.k_tiles;
                self.work.block_of(output_tile_start)..self.block
            } else {
                0..0
            };
            let mut bias = [0; 4];
            unroll!(E < 4 => {
                if !P::GROUPED {
                    // SAFETY: `run`'s.
                    bias[E] = unsafe { epilogue.bias::<E>(first_row + Self::row(thread)) };
                }
            });
            let mut first = 0;
            while first < N_TILES as u32 {
                let mut sums = [[[0f32; 4]; FOURS_AT_MOST]; N_TILES];
                let mut old = [[[0; 4]; FOURS_AT_MOST]; N_TILES];
                // SAFETY: `run`'s.
                unsafe {
                    // While this block's warps multiply.
                    for block in peers.clone() {
                        self.reduce(block, first, thread, &mut sums);
                    }
                    if !P::GROUPED && finishes && epilogue.accumulates() {
                        unroll!(J < Self::AT_ONCE => {
                            let j = first + J as u32;
                            old[J] = if epilogue.is_f32() {
                                Self::old::<true>(&epilogue, j, first_row, thread)
                            } else {
                                Self::old::<false>(&epilogue, j, first_row, thread)
                            };
                        });
                    }
                    unroll!(J < Self::AT_ONCE => {
                        let j = first + J as u32;
                        barrier::wait(self.sums_full(ring.stage), ring.parity);
                        unroll!(I < Self::fours() => {
                            let (token, row) = Self::four(I, thread);
                            if token < 8 {
                                let part = self.sums(ring.stage) + 4 * (token * Self::SHAPE.sums_stride() as u32 + row);
                                for index in 0..Self::SHAPE.parts() as u32 {
                                    let part = part + 4 * index * 8 * Self::SHAPE.sums_stride() as u32;
                                    fixup::add(&mut sums[J][I], memory::load_u32x4(part).map(f32::from_bits));
                                }
                            }
                        });
                        barrier::arrive(self.sums_empty(ring.stage));
                        ring.advance();
                        let is_gated = WARPS_M > 1 && self.args.is_gated && finishes;
                        if is_gated {
                            unroll!(I < Self::fours() => {
                                let [a, b, c, d] = sums[J][I];
                                let own = [mma::to_bf16_pair(a, b), mma::to_bf16_pair(c, d)];
                                // Of the same four features in the second half, from the thread that has them.
                                let up = own.map(|pair| thread::shuffle(pair, self.lane ^ (Self::ROWS / 8)));
                                let [[a, b], [c, d]] = [math::gated(own[0], up[0]), math::gated(own[1], up[1])];
                                sums[J][I] = [a, b, c, d];
                            });
                        }
                        unroll!(I < Self::fours() => {
                            let (mut token, row) = Self::four(I, thread);
                            if is_gated && row >= Self::ROWS / 2 {
                                // It has no outputs.
                                token = 8;
                            }
                            if token < 8 {
                                if finishes {
                                    let (token, row) = (8 * j + token, first_row + row);
                                    epilogue.store_four(token, row, sums[J][I], bias, old[J][I]);
                                } else {
                                    self.store_partial(Self::place(j, token, row), sums[J][I]);
                                }
                            }
                        });
                    });
                }
                first += Self::AT_ONCE as u32;
            }
        }
    }

    /// Eights of tokens for whose sums an epilogue thread has registers at a time: all, or one. The
    /// portable blocks share an SM.
    const AT_ONCE: usize = {
        let most = if cfg!(zipserv_sm = "90a") { 16 } else { 8 };
        if N_TILES * Self::fours() <= most {
            N_TILES
        } else {
            1
        }
    };

    #[inline(always)]
    const fn fours() -> usize {
        let fours = (Self::SHAPE.rows() * 8 / 4).div_ceil(Gemm::EPILOGUE_WARPS * LANES);
        assert!(fours <= FOURS_AT_MOST);
        fours
    }

    /// Token (of eight, or past them) and first row of an epilogue thread's `i`-th four.
    #[inline(always)]
    fn four(i: usize, thread: u32) -> (u32, u32) {
        let index = (i * Gemm::EPILOGUE_WARPS * LANES) as u32 + thread;
        (index / (Self::ROWS / 4), Self::row(thread))
    }

    /// First row of each of an epilogue thread's fours.
    #[inline(always)]
    fn row(thread: u32) -> u32 {
        const { assert!((Gemm::EPILOGUE_WARPS * LANES).is_multiple_of(Self::SHAPE.rows() / 4)) };
        thread % (Self::ROWS / 4) * 4
    }

    /// Starts to load an epilogue thread's old outputs of the `j`-th eight tokens.
    #[inline(always)]
    unsafe fn old<const F32: bool>(
        epilogue: &Epilogue,
        j: u32,
        first_row: u32,
        thread: u32,
    ) -> [[u32; 4]; FOURS_AT_MOST] {
        let mut old = [[0; 4]; FOURS_AT_MOST];
        unroll!(I < Self::fours() => {
            let (token, row) = Self::four(I, thread);
            if token < 8 {
                unroll!(E < 4 => {
                    // SAFETY: `write`'s.
                    old[I][E] = unsafe { epilogue.old::<F32, E>(8 * j + token, first_row + row) };
                });
            }
        });
        old
    }

    /// Place of a four in the partial sums of a block, in floats.
    #[inline(always)]
    fn place(j: u32, token: u32, row: u32) -> u32 {
        (j * 8 + token) * Self::ROWS + row
    }

    /// Where `block` stores partial sums, `place` of [`Gemm::partial_bytes`].
    #[inline(always)]
    fn partial(&self, block: u32, place: u32) -> *mut f32 {
        let index = block as usize * (Self::SHAPE.partial_bytes() / 4) + place as usize;
        self.args.partials.wrapping_add(index)
    }

    /// Stores partial sums for a later block, see [`sentinel`].
    #[inline(always)]
    unsafe fn store_partial(&self, place: u32, sum: [f32; 4]) {
        // SAFETY: the workspace has room for every block of the launch.
        unsafe { sentinel::store(self.partial(self.block, place), sum) }
    }

    /// Reduces the partial sums of an earlier block, of the eights of tokens from `first` on. That
    /// blocks start in order, so that the one waited for runs or has run, is assumed: CUDA does not
    /// promise it.
    #[inline(always)]
    unsafe fn reduce(
        &self,
        block: u32,
        first: u32,
        thread: u32,
        sums: &mut [[[f32; 4]; FOURS_AT_MOST]; N_TILES],
    ) {
        let from = |j: usize, i: usize| {
            let (token, row) = Self::four(i, thread);
            (token < 8).then(|| self.partial(block, Self::place(first + j as u32, token, row)))
        };
        let mut parts = [[[0u32; 4]; FOURS_AT_MOST]; N_TILES];
        // SAFETY: the workspace has room for every block of the launch.
        unsafe {
            // All are in flight before the first is looked at.
            unroll!(J < Self::AT_ONCE => {
                unroll!(I < Self::fours() => {
                    if let Some(from) = from(J, I) {
                        parts[J][I] = sentinel::load(from);
                    }
                });
            });
            unroll!(J < Self::AT_ONCE => {
                unroll!(I < Self::fours() => {
                    if let Some(from) = from(J, I) {
                        while parts[J][I].map(|sum| sum == Gemm::EMPTY) != [false; 4] {
                            parts[J][I] = sentinel::load(from);
                        }
                        fixup::add(&mut sums[J][I], parts[J][I].map(f32::from_bits));
                        sentinel::clear(from);
                    }
                });
            });
        }
    }
}
