//! Y[N, M] = X[N, K] W[M, K]^T from compressed W, for many tokens, with `wgmma`.
//!
//! ```text
//!  two warps that copy        two warpgroups that multiply
//!
//!  tiles, patches       full  patches into the table of bases;
//!  X, by tensor copies ----->  A fragments from bytes, words and bases;   output tile:
//!  into a stage         empty  wgmma: A in registers, X by descriptor --> epilogue, transpose,
//!                      <-----                                             store Y
//! ```
//!
//! An output tile is 128 features by `2 * SUMS` tokens. A warp decodes one band of one strip: 16
//! features by 64 columns of each unit, the A operands of four `wgmma` by which its warpgroup
//! multiplies 64 features by all tokens of the tile. The blocks of a cluster take the same tokens
//! and different features; each copies a part of the activations to all of them.
//!
//! Clusters are persistent. Each takes whole output tiles, in an order that lets the activations
//! of those under way stay in the L2 cache; what does not go into the number of clusters is shared
//! along K ([`crate::work`]), and sums are handed over as they lie in registers.
//!
//! Budget of a unit at 256 tokens: 1024 cycles of the tensor cores, for which each scheduler
//! issues some 190 instructions for each of its two warps; 44 KB into shared memory, 28 KB of them
//! from the L2 cache for each block of a cluster of two.

use core::ops::Range;

use super::{epilogue::Epilogue, ring::Ring};
use crate::{
    arch::{
        barrier, cluster, copy, grid, memory, mma, thread,
        wgmma::{self, Accumulator},
    },
    args::PrefillArgs,
    decode,
    launch::{Gemm, Prefill},
    layout::*,
    work::{Segment, Segments, Work},
};

/// k-steps that the tensor cores work on, or have before them, while a warp decodes the next.
const IN_FLIGHT: u32 = 2;
/// Token blocks whose activations are to stay in the L2 cache.
const TOKEN_BLOCKS: u32 = 8;
/// Sums that a thread has of the 64 tokens which leave a tile at a time, and fours of them.
const CHUNK: usize = Prefill::CHUNK_TOKENS / 2;
const FOURS: usize = CHUNK / 4;
/// Registers of a thread that multiplies, and of one that copies; `.maxntid` gives each 168.
const REGISTERS: (u32, u32) = (232, 40);

/// Runs `$body` for each of a thread's sums of a chunk, `$at` their index.
macro_rules! each_sum {
    ($at:ident => $body:block) => {
        unroll!(J < 8 => {
            unroll!(P < 4 => {
                const $at: usize = 4 * J + P;
                $body
            });
        });
    };
}

/// Feature and token of a chunk's sum, from the thread's first ones on, see [`Accumulator`].
const fn feature_of(at: usize) -> usize {
    at % 4 / 2 * 8
}
const fn token_of(at: usize) -> u32 {
    (at / 4 * 8 + at % 2) as u32
}

/// The kernel of one [`Prefill`] shape of `2 * SUMS` tokens.
///
/// # Safety
/// `args` describe a compressed matrix and buffers as the host's `zipgemm_prefill_raw` checks; `x`
/// is the generic address of their tensor map; the launch is that of the shape.
#[inline(always)]
pub unsafe fn prefill<const SUMS: usize, const STAGES: usize, const CLUSTER: usize>(
    args: &PrefillArgs,
    x: u64,
) where
    [f32; SUMS]: Accumulator,
{
    let block = Block::<SUMS, STAGES, CLUSTER>::new(args, x);
    // SAFETY: the caller's promise, passed on.
    unsafe { block.run() }
}

/// A thread's view of its block.
struct Block<'a, const SUMS: usize, const STAGES: usize, const CLUSTER: usize> {
    args: &'a PrefillArgs,
    x: u64,
    shared: u32,
    lane: u32,
    warp: u32,
    /// Place of the block in its cluster, and of the cluster in the grid.
    rank: u32,
    cluster: u32,
    /// Strips of the matrix.
    strips: u32,
    schedule: Schedule,
}

/// What a cluster has to do: its run of the split tiles, then every so-many-th of the whole ones.
#[derive(Clone, Copy)]
struct Schedule {
    segments: Segments,
    next: u32,
    /// Whole output tiles, before those that are split.
    whole: u32,
    clusters: u32,
    tile_cols: u32,
    /// Row blocks of all blocks of a cluster, and token blocks, that the output consists of.
    row_groups: u32,
    token_blocks: u32,
    work: Work,
}

/// A share of one output tile: the units `from..to` along K.
#[derive(Clone, Copy, Default)]
struct Share {
    /// Index of the output tile in the order in which clusters take them.
    tile: u32,
    row_group: u32,
    token_block: u32,
    from: u32,
    to: u32,
}

impl Schedule {
    #[inline(always)]
    fn new(args: &PrefillArgs, rows: u32, tokens: u32, clusters: u32, cluster: u32) -> Self {
        let tile_cols = args.k.div_ceil(TILE_COLS as u32);
        let row_groups = args.m.div_ceil(rows);
        let token_blocks = args.n.div_ceil(tokens);
        let work = Work::new(args.split * tile_cols, clusters);
        Self {
            segments: work.segments(cluster, tile_cols),
            next: cluster,
            whole: row_groups * token_blocks - args.split,
            clusters,
            tile_cols,
            row_groups,
            token_blocks,
            work,
        }
    }

    #[inline(always)]
    fn next(&mut self) -> Option<Share> {
        let Segment {
            row_block: tile,
            from,
            to,
        } = match self.segments.next() {
            Some(segment) => Segment {
                row_block: self.whole + segment.row_block,
                ..segment
            },
            None if self.next < self.whole => {
                let tile = self.next;
                self.next += self.clusters;
                Segment {
                    row_block: tile,
                    from: 0,
                    to: self.tile_cols,
                }
            }
            None => return None,
        };
        // Some token blocks at a time; for them all rows; of a row group all these tokens.
        let column = tile
            .checked_div(TOKEN_BLOCKS * self.row_groups)
            .unwrap_or(0);
        let width = (self.token_blocks - column * TOKEN_BLOCKS).min(TOKEN_BLOCKS);
        let place = tile - column * TOKEN_BLOCKS * self.row_groups;
        let row_group = place.checked_div(width).unwrap_or(0);
        Some(Share {
            tile,
            row_group,
            token_block: column * TOKEN_BLOCKS + place - row_group * width,
            from,
            to,
        })
    }

    /// The clusters before `cluster` that have sums of a share which it finishes.
    #[inline(always)]
    fn before(&self, share: &Share, cluster: u32) -> Range<u32> {
        if share.from > 0 && share.to == self.tile_cols {
            let start = (share.tile - self.whole) * self.tile_cols;
            self.work.block_of(start)..cluster
        } else {
            0..0
        }
    }
}

/// The unit that a warp copies next.
#[derive(Clone, Copy)]
struct Cursor {
    schedule: Schedule,
    share: Share,
}

impl Cursor {
    #[inline(always)]
    fn new(mut schedule: Schedule) -> Self {
        let share = schedule.next().unwrap_or_default();
        Self { schedule, share }
    }

    #[inline(always)]
    fn is_done(&self) -> bool {
        self.share.from == self.share.to
    }

    #[inline(always)]
    fn advance(&mut self) {
        self.share.from += 1;
        if self.share.from >= self.share.to {
            self.share = self.schedule.next().unwrap_or_default();
        }
    }
}

/// The patches of the tile that a warp's band lies in.
struct Patches {
    band: u16,
    count: u32,
    /// This lane's patch, any if it has none.
    own: Patch,
    /// Address of the first patch in the stage, and how many of them are there.
    staged: u32,
    room: u32,
    /// All of them, in global memory.
    all: *const u16,
}

impl Patches {
    /// Stores the patched bases of the band in its table, or the matrix's `base` in their place.
    #[inline(always)]
    unsafe fn store(&self, bases: u32, lane: u32, restore: Option<u16>) {
        let store = |patch: Patch| {
            let position = patch.position();
            if position >> 10 == self.band {
                let at = bases + 2 * u32::from(position & 0x3FF);
                // SAFETY: inside the warp's table.
                unsafe { memory::store_u16(at, restore.unwrap_or(patch.base())) };
            }
        };
        if lane < self.count {
            store(self.own);
        }
        if self.count > LANES as u32 {
            let mut index = LANES as u32 + lane;
            while index < self.count {
                // SAFETY: the stage has `room` of the patches, and `all` has `count`.
                store(Patch(unsafe {
                    if index < self.room {
                        memory::load_u16(self.staged + 2 * index)
                    } else {
                        memory::load_global_u16(self.all.add(index as usize))
                    }
                }));
                index += LANES as u32;
            }
        }
    }
}

impl<'a, const SUMS: usize, const STAGES: usize, const CLUSTER: usize>
    Block<'a, SUMS, STAGES, CLUSTER>
where
    [f32; SUMS]: Accumulator,
{
    const SHAPE: Prefill = Prefill {
        tokens: 2 * SUMS,
        stages: STAGES,
        cluster: CLUSTER,
    };
    const WARPS: u32 = Prefill::WARPS as u32;
    const STRIPS: u32 = Prefill::STRIPS as u32;

    #[inline(always)]
    fn new(args: &'a PrefillArgs, x: u64) -> Self {
        // SAFETY: every thread has a place in the grid.
        let (block, blocks) = unsafe { (thread::block() as u32, thread::blocks() as u32) };
        let cluster = block / CLUSTER as u32;
        Self {
            args,
            x,
            shared: memory::shared(),
            lane: thread::lane(),
            warp: thread::warp(),
            rank: if CLUSTER > 1 { cluster::rank() } else { 0 },
            cluster,
            strips: args.m.div_ceil(TILE_ROWS as u32),
            schedule: Schedule::new(
                args,
                (Prefill::ROWS * CLUSTER) as u32,
                Self::SHAPE.tokens as u32,
                blocks / CLUSTER as u32,
                cluster,
            ),
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

    /// Which of its row group's row blocks is the block's own.
    #[inline(always)]
    fn row_block(&self, share: &Share) -> u32 {
        share.row_group * CLUSTER as u32 + self.rank
    }

    #[inline(always)]
    unsafe fn run(&self) {
        grid::launch_dependents();
        // SAFETY: addresses lie in the block's shared memory by the shape's arithmetic; global
        // ranges are the caller's promise.
        unsafe {
            if self.warp == Self::WARPS && self.lane == 0 {
                for stage in 0..STAGES as u32 {
                    barrier::init(self.full(stage), 2);
                    barrier::init(self.empty(stage), Self::WARPS * CLUSTER as u32);
                }
                barrier::fence_init();
            }
            Self::sync();
            if self.warp < Self::WARPS {
                thread::grow_registers::<{ REGISTERS.0 }>();
                self.multiply();
            } else {
                thread::shrink_registers::<{ REGISTERS.1 }>();
                if self.warp == Self::WARPS {
                    self.copy_weights();
                } else if self.warp == Self::WARPS + 1 {
                    self.copy_activations();
                }
            }
            thread::sync_warp();
            if CLUSTER > 1 {
                // The others' arrivals need this block's barriers.
                cluster::sync();
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

    /// Keeps the ring full of weights, which never depend on an earlier kernel of the stream. A
    /// lane looks after one strip of every eighth unit, whose patch range it asks for that long
    /// ahead.
    #[inline(always)]
    unsafe fn copy_weights(&self) {
        const TURNS: u32 = LANES as u32 / Prefill::STRIPS as u32;
        let (turn, strip) = (self.lane / Self::STRIPS, self.lane % Self::STRIPS);
        let mut unit = Cursor::new(self.schedule);
        let mut ahead = unit;
        let mut range = [0; 2];
        for now in 0..TURNS {
            if now == turn {
                range = self.patch_range(&ahead, strip);
            }
            ahead.advance();
        }
        let mut now = 0;
        let mut ring = Ring::<STAGES>::FILLING;
        while !unit.is_done() {
            // SAFETY: `run`'s.
            unsafe {
                barrier::wait(self.empty(ring.stage), ring.parity);
                if now == turn {
                    self.copy_tile(&unit, strip, range, ring.stage);
                    range = self.patch_range(&ahead, strip);
                }
                thread::sync_warp();
                if self.lane == 0 {
                    barrier::arrive(self.full(ring.stage));
                }
            }
            unit.advance();
            ahead.advance();
            ring.advance();
            now = (now + 1) % TURNS;
        }
    }

    /// The unit's tile in a strip of the row block. Below the matrix the last strip stands in:
    /// what comes of it is not stored.
    #[inline(always)]
    fn tile(&self, unit: &Cursor, strip: u32) -> usize {
        let strip = (self.row_block(&unit.share) * Self::STRIPS + strip).min(self.strips - 1);
        (strip * unit.schedule.tile_cols + unit.share.from) as usize
    }

    /// The patches of a unit's tile.
    #[inline(always)]
    fn patch_range(&self, unit: &Cursor, strip: u32) -> [u32; 2] {
        if unit.is_done() {
            return [0; 2];
        }
        // SAFETY: there is one offset more than there are tiles.
        unsafe {
            let offsets = self.args.offsets.add(self.tile(unit, strip));
            [
                memory::load_global_u32(offsets),
                memory::load_global_u32(offsets.add(1)),
            ]
        }
    }

    /// Starts the copies of a unit's tile and its patches.
    #[inline(always)]
    unsafe fn copy_tile(&self, unit: &Cursor, strip: u32, [from, to]: [u32; 2], stage: u32) {
        const ROOM: u32 = Prefill::PATCH_ROOM as u32;
        let (at, full) = (self.stage(stage), self.full(stage));
        // In whole groups of 16 bytes, to whose end the section is padded.
        let first = from & !7;
        let patch_bytes = if from < to {
            2 * (to.next_multiple_of(8) - first).min(ROOM)
        } else {
            0
        };
        // Once read, unless other tokens need them again.
        let keep = if self.args.n <= Self::SHAPE.tokens as u32 {
            copy::Keep::not()
        } else {
            copy::Keep::as_usual()
        };
        // SAFETY: `run`'s.
        unsafe {
            let range = at + Self::SHAPE.ranges_at() as u32 + 8 * strip;
            memory::store_u32(range, from);
            memory::store_u32(range + 4, to);
            barrier::expect(full, TILE_BYTES as u32 + patch_bytes);
            copy::bulk(
                at + Self::SHAPE.dense_at() as u32 + strip * TILE_BYTES as u32,
                self.args.dense.add(self.tile(unit, strip) * TILE_BYTES),
                TILE_BYTES as u32,
                full,
                keep,
            );
            if patch_bytes > 0 {
                copy::bulk(
                    at + Self::SHAPE.patches_at() as u32 + 2 * strip * ROOM,
                    self.args.patches.add(first as usize).cast(),
                    patch_bytes,
                    full,
                    keep,
                );
            }
        }
    }

    /// Keeps the ring full of activations: this block's part of them, to all of the cluster.
    #[inline(always)]
    unsafe fn copy_activations(&self) {
        grid::wait_dependencies();
        if self.lane > 0 {
            return;
        }
        let part = self.rank * Self::SHAPE.box_tokens() as u32;
        let mut unit = Cursor::new(self.schedule);
        let mut ring = Ring::<STAGES>::FILLING;
        while !unit.is_done() {
            let full = self.full(ring.stage);
            let at = self.stage(ring.stage) + part * Prefill::LINE_BYTES as u32;
            let column = unit.share.from * TILE_COLS as u32;
            let token = unit.share.token_block * Self::SHAPE.tokens as u32 + part;
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

    /// Multiplies the warp's band of every unit, and finishes output tiles.
    #[inline(always)]
    unsafe fn multiply(&self) {
        let (strip, band) = (self.warp / BANDS as u32, self.warp % BANDS as u32);
        let table = Self::SHAPE.bases_at() + self.warp as usize * Prefill::BASES_BYTES;
        let table = self.shared + table as u32;
        let bases = table + 16 * self.lane;
        let base = decode::base_pair(self.args.base as u8);
        let dense_at = strip * TILE_BYTES as u32 + band * BAND_BYTES as u32;
        let dense_at = Self::SHAPE.dense_at() as u32 + dense_at;
        for i in 0..(Prefill::BASES_BYTES / 512) as u32 {
            // SAFETY: inside the table.
            unsafe { memory::store_u32x4(bases + 512 * i, [base; 4]) };
        }
        let mut schedule = self.schedule;
        let mut ring = Ring::<STAGES>::EMPTYING;
        while let Some(share) = schedule.next() {
            let mut acc = <[f32; SUMS]>::ZERO;
            let mut last = ring.stage;
            let mut unit = share.from;
            loop {
                let stage = self.stage(ring.stage);
                let dense = stage + dense_at;
                // SAFETY: `run`'s; the stage is full, and stays so until it is released.
                unsafe {
                    barrier::wait(self.full(ring.stage), ring.parity);
                    let patches = self.patches(stage, strip, band);
                    let words = core::array::from_fn(|w| {
                        memory::load_u32(
                            dense + (BITMAPS_AT + w * BITMAP_BYTES) as u32 + 4 * self.lane,
                        )
                    });
                    let [a, b, c, d] = memory::load_u32x4(dense + 16 * self.lane);
                    let [e, f, g, h] =
                        memory::load_u32x4(dense + HALF_BYTES as u32 + 16 * self.lane);
                    // The last unit's bases have been restored.
                    thread::sync_warp();
                    patches.store(table, self.lane, None);
                    thread::sync_warp();
                    macro_rules! kstep {
                        ($s:literal, $bytes:expr) => {
                            let bases = memory::load_u32x4(bases + 512 * $s);
                            // Until then the registers of the fragment are the last unit's.
                            wgmma::wait::<IN_FLIGHT>();
                            if $s == IN_FLIGHT {
                                self.release(last, unit > share.from);
                            }
                            let fragment = decode::kstep::<$s>($bytes, words, bases);
                            acc.multiply(fragment, wgmma::swizzled_rows(stage + 32 * $s));
                            wgmma::commit();
                        };
                    }
                    kstep!(0, [a, b]);
                    kstep!(1, [c, d]);
                    kstep!(2, [e, f]);
                    kstep!(3, [g, h]);
                    thread::sync_warp();
                    patches.store(table, self.lane, Some(base as u16));
                }
                last = ring.stage;
                ring.advance();
                unit += 1;
                if unit == share.to {
                    break;
                }
            }
            acc.finish();
            // SAFETY: `run`'s.
            unsafe {
                self.release(last, true);
                if share.to < schedule.tile_cols {
                    self.hand_over(&share, &acc);
                } else {
                    self.store(&share, &acc);
                }
            }
        }
    }

    /// Tells all who fill stages, if `really`, that this warp has done with one.
    #[inline(always)]
    unsafe fn release(&self, stage: u32, really: bool) {
        thread::sync_warp();
        let really = really && self.lane < CLUSTER as u32;
        // SAFETY: `run`'s.
        unsafe {
            if CLUSTER > 1 {
                cluster::arrive_if(self.empty(stage), self.lane, really);
            } else {
                barrier::arrive_if(self.empty(stage), really);
            }
        }
    }

    /// The patches of a strip's tile.
    #[inline(always)]
    unsafe fn patches(&self, stage: u32, strip: u32, band: u32) -> Patches {
        const ROOM: u32 = Prefill::PATCH_ROOM as u32;
        let range = stage + Self::SHAPE.ranges_at() as u32 + 8 * strip;
        // SAFETY: `run`'s. A lane's patch lies in the room: its slot is below 8 + 32.
        unsafe {
            let (first, last) = (memory::load_u32(range), memory::load_u32(range + 4));
            let slot = first & 7;
            let staged = stage + Self::SHAPE.patches_at() as u32 + 2 * (strip * ROOM + slot);
            Patches {
                band: band as u16,
                count: last - first,
                own: Patch(memory::load_u16(staged + 2 * self.lane)),
                staged,
                room: ROOM - slot,
                all: self.args.patches.add(first as usize),
            }
        }
    }

    /// First token of the `chunk`-th 64 of a share, if there is one.
    #[inline(always)]
    fn chunk(&self, share: &Share, chunk: usize) -> Option<u32> {
        let first = share.token_block * Self::SHAPE.tokens as u32;
        let first = first + (chunk * Prefill::CHUNK_TOKENS) as u32;
        (first < self.args.n).then_some(first)
    }

    /// Where a block of `cluster` with this one's rank leaves four of this thread's sums.
    #[inline(always)]
    fn partial(&self, cluster: u32, four: usize) -> *mut f32 {
        const THREADS: u32 = Prefill::WARPS as u32 * LANES as u32;
        let block = (cluster * CLUSTER as u32 + self.rank) as usize;
        let thread = self.warp * LANES as u32 + self.lane;
        let at = 4 * (four as u32 * THREADS + thread) as usize;
        let index = block * (Self::SHAPE.partial_bytes() / 4) + at;
        self.args.partials.wrapping_add(index)
    }

    /// Leaves sums to a later cluster. Each float is its own flag: the place is empty as long as it
    /// holds a pattern that no sum has.
    #[inline(always)]
    unsafe fn hand_over(&self, share: &Share, acc: &[f32; SUMS]) {
        let flag = |sum: f32| match sum.to_bits() {
            Gemm::EMPTY => f32::NAN.to_bits(),
            bits => bits,
        };
        unroll!(C < SUMS / CHUNK => {
            if self.chunk(share, C).is_some() {
                unroll!(F < FOURS => {
                    const FOUR: usize = FOURS * C + F;
                    let sums = [acc[4 * FOUR], acc[4 * FOUR + 1], acc[4 * FOUR + 2], acc[4 * FOUR + 3]];
                    // SAFETY: the workspace has room for every block of the launch.
                    unsafe { memory::publish_u32x4(self.partial(self.cluster, FOUR), sums.map(flag)) }
                });
            }
        });
    }

    /// Waits for a chunk of sums of an earlier cluster, adds them, and leaves their places empty
    /// for the next launch. Clusters start in order, so that the one waited for runs or has run.
    #[inline(always)]
    unsafe fn take_over(&self, cluster: u32, chunk: usize, sums: &mut [f32; CHUNK]) {
        let mut parts = [[0; 4]; FOURS];
        let from = |f: usize| self.partial(cluster, FOURS * chunk + f);
        // SAFETY: the workspace has room for every block of the launch.
        unsafe {
            loop {
                let mut missing = false;
                unroll!(F < FOURS => { parts[F] = memory::observe_u32x4(from(F)); });
                unroll!(F < FOURS => {
                    let [a, b, c, d] = parts[F].map(|sum| sum == Gemm::EMPTY);
                    missing |= a | b | c | d;
                });
                if !missing {
                    break;
                }
            }
            unroll!(F < FOURS => {
                unroll!(I < 4 => { sums[4 * F + I] += f32::from_bits(parts[F][I]); });
                memory::publish_u32x4(from(F), [Gemm::EMPTY; 4]);
            });
        }
    }

    /// Finishes an output tile, 64 tokens at a time: adds what earlier clusters have of it, then
    /// what the epilogue adds, and stores. All this is done as sums lie in registers, by which a
    /// warp reads and writes sectors of eight features of four tokens; only BF16 outputs, where
    /// those would be half sectors, leave by way of shared memory.
    #[inline(always)]
    unsafe fn store(&self, share: &Share, acc: &[f32; SUMS]) {
        let epilogue = Epilogue::new(&self.args.output, self.args.m, self.args.n);
        let group_feature = self.row_block(share) * Prefill::ROWS as u32 + 64 * (self.warp / 4);
        let feature = group_feature + 16 * (self.warp % 4) + self.lane / 4;
        if epilogue.has_bias() || epilogue.accumulates() {
            // This thread's own wait: it reads what the kernel before may have written.
            grid::wait_dependencies();
        }
        unroll!(C < SUMS / CHUNK => {
            if let Some(first) = self.chunk(share, C) {
                let mut sums = [0.0; CHUNK];
                unroll!(F < FOURS => {
                    unroll!(I < 4 => { sums[4 * F + I] = acc[CHUNK * C + 4 * F + I]; });
                });
                let token = first + 2 * (self.lane % 4);
                // SAFETY: `run`'s.
                unsafe {
                    for cluster in self.schedule.before(share, self.cluster) {
                        self.take_over(cluster, C, &mut sums);
                    }
                    let bias = [epilogue.bias::<0>(feature), epilogue.bias::<8>(feature)];
                    let mut old = [0; CHUNK];
                    if epilogue.accumulates() {
                        if epilogue.is_f32() {
                            each_sum!(AT => {
                                old[AT] = epilogue.old::<true, { feature_of(AT) }>(token + token_of(AT), feature);
                            });
                        } else {
                            each_sum!(AT => {
                                old[AT] = epilogue.old::<false, { feature_of(AT) }>(token + token_of(AT), feature);
                            });
                        }
                    }
                    if epilogue.has_bias() {
                        each_sum!(AT => { epilogue.add_bias(&mut sums[AT], bias[feature_of(AT) / 8]); });
                    }
                    if epilogue.accumulates() {
                        each_sum!(AT => { epilogue.add_old(&mut sums[AT], old[AT]); });
                    }
                    if epilogue.is_f32() {
                        // Computed anew, or the addresses of old outputs would stay in registers.
                        let token = thread::opaque(token);
                        each_sum!(AT => {
                            epilogue.store_f32::<{ feature_of(AT) }>(token + token_of(AT), feature, sums[AT]);
                        });
                    } else {
                        self.store_bf16(&epilogue, first, group_feature, &sums);
                    }
                }
            }
        });
    }

    /// Rounds and stores 64 tokens from `first` on, and the warpgroup's features, from `feature` on.
    /// A warp puts its 16 features of each token into a line of shared memory, and reads whole lines
    /// of four tokens at a time. So no thread stores before all have read old outputs.
    /// The 16-byte pieces of a line lie in an order that keeps both free of bank conflicts.
    #[inline(always)]
    unsafe fn store_bf16(
        &self,
        epilogue: &Epilogue,
        first: u32,
        feature: u32,
        sums: &[f32; CHUNK],
    ) {
        const LINE: u32 = Prefill::LINE_BYTES as u32;
        const THREADS: u32 = 128;
        let (group, warp) = (self.warp / 4, self.warp % 4);
        let out = self.shared + Self::SHAPE.out_at() as u32 + group * Prefill::OUT_BYTES as u32;
        let piece = |token: u32, piece: u32| out + token * LINE + ((piece ^ token % 8) << 4);
        // The matrices of a store are features 0..8 and 8..16 of 8 tokens, then of the next 8.
        let (matrix, row) = (self.lane / 8, self.lane % 8);
        let to = piece(matrix / 2 * 8 + row, 2 * warp + matrix % 2);
        let thread = warp * LANES as u32 + self.lane;
        let from = piece(thread / 8, thread % 8);
        // SAFETY: inside the warpgroup's lines; the rest is `run`'s.
        unsafe {
            // The lines before have been read.
            thread::sync_threads::<THREADS>(1 + group);
            unroll!(Q < 4 => {
                let pair = |i: usize| mma::to_bf16_pair(sums[8 * Q + i], sums[8 * Q + i + 1]);
                mma::store_transposed_matrices(
                    to + Q as u32 * 16 * LINE,
                    [pair(0), pair(2), pair(4), pair(6)],
                );
            });
            thread::sync_threads::<THREADS>(1 + group);
            unroll!(Q < 4 => {
                let pairs = memory::load_u32x4(from + Q as u32 * 16 * LINE);
                let token = first + 16 * Q as u32 + thread / 8;
                epilogue.store_eight(token, feature + thread % 8 * 8, pairs);
            });
        }
    }
}
