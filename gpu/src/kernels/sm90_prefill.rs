//! Y[N, M] = X[N, K] W[M, K]^T from compressed W, for many tokens, with `wgmma`.
//!
//! ```text
//!  two warps that copy                      two warpgroups that multiply
//!
//!  tiles; X, by tensor copies         full  A fragments from bytes, words and bases;  output tile:
//!  into a stage --------------------------> wgmma: A in registers, X by descriptor -> epilogue,
//!                                     empty                                           transpose,
//!  two warps that write tables     <-------                                           store Y
//!
//!  patches, read ahead: the base of
//!  each weight into a table -------------->
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
//! Every lane arrives at barriers for what it has read or written itself. Between the barrier that
//! frees a table and the one that fills it there are stores only: all else is done before.
//!
//! Budget of a unit at 256 tokens: 1024 cycles of the tensor cores, for which each scheduler
//! issues some 150 instructions for each of its two warps; 43 KB into shared memory, 27 KB of them
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
    schedule::{Cursor, Place, Schedule, Tiles},
};

/// k-steps that the tensor cores work on, or have before them, while a warp decodes the next.
const IN_FLIGHT: u32 = 2;
/// Sums that a thread has of the 64 tokens which leave a tile at a time, and fours of them.
const CHUNK: usize = Prefill::CHUNK_TOKENS / 2;
const FOURS: usize = CHUNK / 4;
/// Registers of a thread that multiplies, and of one that does not; `.maxntid` gives each 168. There
/// are no more: who asks for what others do not give up waits forever.
const REGISTERS: (u32, u32) = (216, 72);
const _: () = assert!(
    REGISTERS.0 * Prefill::WARPS as u32 + REGISTERS.1 * Prefill::HELPERS as u32
        <= 168 * (Prefill::WARPS + Prefill::HELPERS) as u32
);

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
    /// Clusters of the grid.
    clusters: u32,
}

/// What a lane needs to make its A fragments of a unit: bytes of each half, and bitmap words.
struct Operands {
    bytes: [[u32; 4]; 2],
    words: [u32; LANE_WORDS],
}

/// The patches of a tile: a pair of them for each lane, from wherever in four bytes they start.
#[derive(Clone, Copy, Default)]
struct Patches {
    from: u32,
    to: u32,
    /// The lane's pair.
    pair: u32,
}

/// Patches that can be stored as they are: those of a [`Patches`], for one table.
#[derive(Clone, Copy)]
struct Ready {
    /// Where the lane's two bases go; out of the way if they are none of the tile's.
    at: [u32; 2],
    /// The bases.
    bases: [u16; 2],
    /// Patches of the tile that no lane has: from here on, every so-many-th pair.
    more: u32,
    to: u32,
}

impl Patches {
    /// Patches of a tile that the lanes of a warp have in registers.
    const HELD: u32 = 2 * LANES as u32;

    /// Index of the lane's first.
    #[inline(always)]
    fn first(&self, lane: u32) -> u32 {
        (self.from & !1) + 2 * lane
    }

    /// Asks for those from `from` to `to`.
    #[inline(always)]
    unsafe fn load(all: *const u16, [from, to]: [u32; 2], lane: u32) -> Self {
        let mut patches = Self { from, to, pair: 0 };
        let first = patches.first(lane);
        // SAFETY: there is one at `from`, `first` or behind it; sections of patches start and end
        // at multiples of four bytes.
        unsafe {
            let pair = all.add(first as usize).cast();
            patches.pair = memory::load_global_u32_if(pair, from < to && first < to);
        }
        patches
    }

    /// Works out where in `table` they go, those that do not belong there to `nowhere`.
    #[inline(always)]
    fn ready(&self, lane: u32, table: u32, nowhere: u32) -> Ready {
        let first = self.first(lane);
        let own = |index: u32| index.wrapping_sub(self.from) < self.to - self.from;
        let patches = [Patch(self.pair as u16), Patch((self.pair >> 16) as u16)];
        let at = |i: usize| match own(first + i as u32) {
            true => place(table, patches[i]),
            false => nowhere,
        };
        Ready {
            at: [at(0), at(1)],
            bases: patches.map(Patch::base),
            more: first + Self::HELD,
            to: self.to,
        }
    }
}

impl Ready {
    /// None at all.
    #[inline(always)]
    fn none(nowhere: u32) -> Self {
        Self {
            at: [nowhere; 2],
            bases: [0; 2],
            more: 0,
            to: 0,
        }
    }

    /// Whether there are patches that no lane has. The same in all lanes, and seldom.
    #[inline(always)]
    fn is_long(&self, lane: u32) -> bool {
        self.more.wrapping_sub(2 * lane) < self.to
    }

    /// Stores the patched bases.
    #[inline(always)]
    unsafe fn store(&self, table: u32, all: *const u16, lane: u32) {
        // SAFETY: inside the table; pairs are in the section, which ends at a multiple of four bytes.
        unsafe {
            memory::store_u16(self.at[0], self.bases[0]);
            memory::store_u16(self.at[1], self.bases[1]);
            if self.is_long(lane) {
                let mut index = self.more;
                while index < self.to {
                    let pair = memory::load_global_u32(all.add(index as usize).cast());
                    let (a, b) = (Patch(pair as u16), Patch((pair >> 16) as u16));
                    memory::store_u16(place(table, a), a.base());
                    memory::store_u16_if(place(table, b), b.base(), index + 1 < self.to);
                    index += Patches::HELD;
                }
            }
        }
    }

    /// Puts the matrix's `base` back.
    #[inline(always)]
    unsafe fn restore(&self, table: u32, base: u32, lane: u32) {
        // SAFETY: inside the table.
        unsafe {
            memory::store_u16(self.at[0], base as u16);
            memory::store_u16(self.at[1], base as u16);
            if self.is_long(lane) {
                for i in 0..Prefill::STRIP_TABLE_BYTES as u32 / 512 {
                    memory::store_u32x4(table + 512 * i + 16 * lane, [base; 4]);
                }
            }
        }
    }
}

/// Where a patch's base goes.
#[inline(always)]
fn place(table: u32, patch: Patch) -> u32 {
    table + 2 * u32::from(patch.position())
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
            lane: thread::fixed_lane(),
            warp: thread::warp(),
            rank: if CLUSTER > 1 { cluster::rank() } else { 0 },
            cluster,
            strips: args.m.div_ceil(TILE_ROWS as u32),
            clusters: blocks / CLUSTER as u32,
        }
    }

    /// What the cluster has to do. Each role works it out for itself, after the roles have taken
    /// different numbers of registers.
    #[inline(always)]
    fn schedule(&self) -> Schedule {
        let cluster = thread::opaque(self.cluster);
        let tile_cols = self.args.k.div_ceil(TILE_COLS as u32);
        Schedule::new(
            self.tiles(),
            tile_cols,
            self.args.split,
            self.clusters,
            cluster,
        )
    }

    #[inline(always)]
    fn cursor(&self) -> Cursor {
        Cursor::new(self.schedule(), self.tiles())
    }

    #[inline(always)]
    fn tiles(&self) -> Tiles {
        let rows = (Prefill::ROWS * CLUSTER) as u32;
        Tiles::new(self.args.m, self.args.n, rows, Self::SHAPE.tokens as u32)
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

    /// Bases of a unit's weights. They count as a part of its stage when that becomes full.
    #[inline(always)]
    fn table(&self, table: u32) -> u32 {
        self.shared + (Self::SHAPE.tables_at() + table as usize * Prefill::TABLE_BYTES) as u32
    }

    /// Two bytes of this thread's own, if it writes tables, that nothing reads.
    #[inline(always)]
    fn nowhere(&self) -> u32 {
        let thread = self.warp * LANES as u32 + self.lane;
        self.shared + Self::SHAPE.nowhere_at() as u32 + 4 * (thread - Self::WARPS * LANES as u32)
    }

    #[inline(always)]
    fn table_empty(&self, table: u32) -> u32 {
        self.full(STAGES as u32) + 8 * table
    }

    /// Which of its row group's row blocks is the block's own.
    #[inline(always)]
    fn row_block(&self, place: Place) -> u32 {
        place.row_group * CLUSTER as u32 + self.rank
    }

    #[inline(always)]
    unsafe fn run(&self) {
        grid::launch_dependents();
        // SAFETY: addresses lie in the block's shared memory by the shape's arithmetic; global
        // ranges are the caller's promise.
        unsafe {
            if self.warp == Self::WARPS && self.lane == 0 {
                for stage in 0..STAGES as u32 {
                    barrier::init(self.full(stage), Self::FILLERS);
                    barrier::init(self.empty(stage), Self::EMPTIERS);
                }
                for table in 0..Prefill::TABLES as u32 {
                    barrier::init(self.table_empty(table), Self::WARPS * LANES as u32);
                }
                barrier::fence_init();
            }
            self.clear_tables();
            Self::sync();
            if self.warp < Self::WARPS {
                thread::grow_registers::<{ REGISTERS.0 }>();
                self.multiply();
            } else {
                thread::shrink_registers::<{ REGISTERS.1 }>();
                match self.warp - Self::WARPS {
                    helper if helper % 2 == 1 => self.write_bases(helper / 2),
                    0 => self.copy_dense(),
                    _ => self.copy_activations(),
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

    /// How long the L2 cache should keep weights: they are read once, unless other tokens need them
    /// again.
    #[inline(always)]
    fn keep(&self) -> copy::Keep {
        if self.args.n <= Self::SHAPE.tokens as u32 {
            copy::Keep::not()
        } else {
            copy::Keep::as_usual()
        }
    }

    /// Keeps the ring full of dense tiles. Weights never depend on an earlier kernel of the stream.
    #[inline(always)]
    unsafe fn copy_dense(&self) {
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

    /// Fills the tables with the matrix's base.
    #[inline(always)]
    unsafe fn clear_tables(&self) {
        const BYTES: u32 = (Prefill::TABLES * Prefill::TABLE_BYTES) as u32;
        let base = decode::base_pair(self.args.base as u8);
        let mut at = 16 * (self.warp * LANES as u32 + self.lane);
        while at < BYTES {
            // SAFETY: inside the tables.
            unsafe { memory::store_u32x4(self.table(0) + at, [base; 4]) };
            at += 16 * Prefill::THREADS as u32;
        }
    }

    /// Keeps the tables of bases one unit or two ahead of the warps that multiply: puts the base of
    /// each patched weight in its place, and the matrix's base back when the unit is done with.
    /// The warp does so for one half of the strips, or more, if there are fewer such warps.
    ///
    /// Nothing waits for memory: a lane asks for the patch range of one strip of every sixteenth
    /// unit, sixteen units ahead, and all of them for patches some units ahead.
    #[inline(always)]
    unsafe fn write_bases(&self, patcher: u32) {
        /// Strips of a warp, and units whose ranges its lanes hold.
        const STRIPS: usize = Prefill::STRIPS / Prefill::PATCHERS;
        const UNITS: usize = LANES / STRIPS;
        const TABLES: usize = Prefill::TABLES;
        const { assert!(TABLES == 2 && UNITS.is_multiple_of(TABLES) && STAGES > TABLES) };

        let (all, lane, nowhere) = (self.args.patches, self.lane, self.nowhere());
        let base = decode::base_pair(self.args.base as u8);
        let first_strip = patcher * STRIPS as u32;
        let own_strip = first_strip + lane % STRIPS as u32;
        let table = |table: usize, strip: usize| {
            self.table(table as u32)
                + (first_strip + strip as u32) * Prefill::STRIP_TABLE_BYTES as u32
        };
        let mut left = self.schedule().units();
        let mut ahead = self.cursor();
        ahead.skip(lane / STRIPS as u32);
        let mut ranges = self.patch_range(&ahead, own_strip);
        self.prefetch_patches(ranges);
        ahead.skip(UNITS as u32);
        let mut next_ranges = self.patch_range(&ahead, own_strip);
        // The lane with the range that is due next.
        let mut due = 0;
        let ask = |ranges: [u32; 2], due: &mut u32| {
            let mut patches = [Patches::default(); STRIPS];
            unroll!(S < STRIPS => {
                let range = ranges.map(|end| thread::shuffle(end, *due + S as u32));
                // SAFETY: `run`'s.
                patches[S] = unsafe { Patches::load(all, range, lane) };
            });
            *due = (*due + STRIPS as u32) % LANES as u32;
            patches
        };
        // Of the units to come, one is ready, and the patches of two more are on their way.
        let mut coming = [[Patches::default(); STRIPS]; TABLES];
        unroll!(T < TABLES => { coming[T] = ask(ranges, &mut due); });
        let mut ready = [Ready::none(nowhere); STRIPS];
        unroll!(S < STRIPS => { ready[S] = coming[0][S].ready(lane, table(0, S), nowhere); });
        coming[0] = ask(ranges, &mut due);
        let mut stored = [[Ready::none(nowhere); STRIPS]; TABLES];
        // No phase of a stage is passed over: it has more phases before it than there are tables.
        let mut ring = Ring::<STAGES>::FILLING;
        let mut parity = 1;
        loop {
            unroll!(T < TABLES => {
                if left == 0 {
                    return;
                }
                left -= 1;
                const NEXT: usize = (T + 1) % TABLES;
                // Between these two barriers there are stores only: the warps that multiply wait.
                // SAFETY: `run`'s.
                unsafe {
                    barrier::wait(self.table_empty(T as u32), parity);
                    unroll!(S < STRIPS => { stored[T][S].restore(table(T, S), base, lane); });
                    // One lane's patch may be where another's was.
                    thread::sync_warp();
                    unroll!(S < STRIPS => { ready[S].store(table(T, S), all, lane); });
                    barrier::arrive(self.full(ring.stage));
                }
                stored[T] = ready;
                unroll!(S < STRIPS => {
                    ready[S] = coming[NEXT][S].ready(lane, table(NEXT, S), nowhere);
                });
                coming[NEXT] = ask(ranges, &mut due);
                // All of these ranges have been used.
                if NEXT == TABLES - 1 && due == 0 {
                    ranges = next_ranges;
                    self.prefetch_patches(ranges);
                    ahead.skip(UNITS as u32);
                    next_ranges = self.patch_range(&ahead, own_strip);
                }
                ring.advance();
            });
            parity ^= 1;
        }
    }

    /// The unit's tile in a strip of the row block. Below the matrix the last strip stands in:
    /// what comes of it is not stored.
    #[inline(always)]
    fn tile(&self, unit: &Cursor, strip: u32) -> usize {
        let strip = (self.row_block(unit.place) * Self::STRIPS + strip).min(self.strips - 1);
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

    /// Brings patches to the L2 cache, as many as one line holds.
    #[inline(always)]
    fn prefetch_patches(&self, [from, _]: [u32; 2]) {
        copy::prefetch(self.args.patches.wrapping_add(from as usize).cast());
    }

    /// Keeps the ring full of activations: this block's part of them, to all of the cluster.
    #[inline(always)]
    unsafe fn copy_activations(&self) {
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

    /// Multiplies the warp's band of every unit, and finishes output tiles.
    #[inline(always)]
    unsafe fn multiply(&self) {
        let mut schedule = self.schedule();
        let mut ring = Ring::<STAGES>::EMPTYING;
        let mut table = 0;
        while let Some(share) = schedule.next() {
            let mut acc = <[f32; SUMS]>::ZERO;
            let mut units = share.to - share.from;
            let mut first = true;
            // Twice, for a jump back takes as long as a sixth of a unit's instructions.
            'share: loop {
                unroll!(_U < 2 => {
                // SAFETY: `run`'s; the stage is full, and stays so until it is released.
                let Operands {
                    bytes: [[a, b, c, d], [e, f, g, h]],
                    words,
                } = unsafe {
                    barrier::wait(self.full(ring.stage), ring.parity);
                    self.operands(ring.stage)
                };
                let last = ring.last();
                let x = wgmma::swizzled_rows(self.stage(ring.stage));
                let table_empty = self.table_empty(table);
                let table_at = self.bases(table);
                macro_rules! kstep {
                    ($s:literal, $bytes:expr, $bases:expr) => {
                        let bases = $bases;
                        // Until then the registers of the fragment are the last unit's.
                        wgmma::wait::<IN_FLIGHT>();
                        if $s == IN_FLIGHT {
                            self.release(last, !first);
                        }
                        let fragment = decode::kstep::<$s>($bytes, words, bases);
                        acc.multiply(fragment, wgmma::kstep(x, $s));
                        wgmma::commit();
                    };
                }
                // SAFETY: `run`'s; the stage is full, and stays so until it is released.
                unsafe {
                    kstep!(0, [a, b], memory::load_u32x4(table_at));
                    kstep!(1, [c, d], memory::load_u32x4(table_at + 512));
                    kstep!(2, [e, f], memory::load_u32x4(table_at + 2 * 512));
                    kstep!(3, [g, h], memory::load_u32x4(table_at + 3 * 512));
                    barrier::arrive(table_empty);
                }
                ring.advance();
                table = (table + 1) % Prefill::TABLES as u32;
                first = false;
                units -= 1;
                if units == 0 {
                    break 'share;
                }
                });
            }
            acc.finish();
            // SAFETY: `run`'s.
            unsafe {
                self.release(ring.last(), true);
                // What is worked out for this must not take up registers before.
                let this = Self {
                    shared: thread::opaque(self.shared),
                    lane: thread::opaque(self.lane),
                    warp: thread::opaque(self.warp),
                    rank: thread::opaque(self.rank),
                    ..*self
                };
                let place = this.tiles().place(thread::opaque(share.tile));
                if share.to < schedule.tile_cols {
                    this.hand_over(place, &acc);
                } else {
                    this.store(
                        place,
                        schedule.before(thread::opaque(self.args.split), &share, self.cluster),
                        &acc,
                    );
                }
            }
        }
    }

    /// Where this lane's bases start in a table, 16 bytes a k-step.
    #[inline(always)]
    fn bases(&self, table: u32) -> u32 {
        const BAND: u32 = (Prefill::STRIP_TABLE_BYTES / BANDS) as u32;
        self.table(table) + self.warp * BAND + 16 * self.lane
    }

    /// Loads what the lane needs to make its A fragments of the unit in a full stage.
    #[inline(always)]
    unsafe fn operands(&self, stage: u32) -> Operands {
        let dense_at = Self::SHAPE.dense_at() as u32 + self.warp * BAND_BYTES as u32;
        let dense = self.stage(stage) + dense_at;
        // SAFETY: `run`'s.
        unsafe {
            let bytes = |half: usize| {
                memory::load_u32x4(dense + (half * HALF_BYTES) as u32 + 16 * self.lane)
            };
            let word = |w: usize| {
                memory::load_u32(dense + (BITMAPS_AT + w * BITMAP_BYTES) as u32 + 4 * self.lane)
            };
            Operands {
                words: [word(0), word(1), word(2)],
                bytes: [bytes(0), bytes(1)],
            }
        }
    }

    /// Who arrives when a stage is full: each lane that writes bases, for what it has written, and
    /// the two lanes that start copies.
    const FILLERS: u32 = 2 + (Prefill::PATCHERS * LANES) as u32;
    /// Who arrives when a stage is empty: each lane that multiplies, for what it has read, and a lane
    /// of each such warp of the other blocks, whose activations come with this block's.
    const EMPTIERS: u32 = Self::WARPS * (LANES + CLUSTER - 1) as u32;

    /// Tells all who fill stages, if `really`, that this warp has done with one.
    #[inline(always)]
    unsafe fn release(&self, stage: u32, really: bool) {
        // SAFETY: `run`'s.
        unsafe {
            barrier::arrive_if(self.empty(stage), really);
            if CLUSTER > 1 {
                let other = self.lane < CLUSTER as u32 && self.lane != self.rank;
                cluster::arrive_if(self.empty(stage), self.lane, really && other);
            }
        }
    }

    /// First token of the `chunk`-th 64 of an output tile, if there is one.
    #[inline(always)]
    fn chunk(&self, place: Place, chunk: usize) -> Option<u32> {
        let first = place.token_block * Self::SHAPE.tokens as u32;
        let first = first + (chunk * Prefill::CHUNK_TOKENS) as u32;
        (first < self.args.n).then_some(first)
    }

    /// Where a block of `cluster` with this one's rank leaves this thread's first four sums. The next
    /// ones are [`Self::FOUR`] floats away.
    #[inline(always)]
    fn partial(&self, cluster: u32) -> *mut f32 {
        let block = (cluster * CLUSTER as u32 + self.rank) as usize;
        let thread = (self.warp * LANES as u32 + self.lane) as usize;
        let index = block * (Self::SHAPE.partial_bytes() / 4) + 4 * thread;
        self.args.partials.wrapping_add(index)
    }

    const FOUR: usize = 4 * Prefill::WARPS * LANES;

    /// Leaves sums to a later cluster. Each float is its own flag: the place is empty as long as it
    /// holds a pattern that no sum has.
    #[inline(always)]
    unsafe fn hand_over(&self, place: Place, acc: &[f32; SUMS]) {
        let flag = |sum: f32| match sum.to_bits() {
            Gemm::EMPTY => f32::NAN.to_bits(),
            bits => bits,
        };
        let to = self.partial(self.cluster);
        unroll!(C < SUMS / CHUNK => {
            if self.chunk(place, C).is_some() {
                unroll!(F < FOURS => {
                    const FOUR: usize = FOURS * C + F;
                    let sums = [acc[4 * FOUR], acc[4 * FOUR + 1], acc[4 * FOUR + 2], acc[4 * FOUR + 3]];
                    // SAFETY: the workspace has room for every block of the launch.
                    unsafe { memory::publish_u32x4(to.wrapping_add(FOUR * Self::FOUR), sums.map(flag)) }
                });
            }
        });
    }

    /// Earlier clusters whose sums of a chunk are asked for at a time: as many as there are registers
    /// for, and those of chunks that have been stored are free.
    #[inline(always)]
    const fn wide(chunk: usize) -> usize {
        const MOST: usize = 3;
        let wide = 1 + (128 - SUMS) / CHUNK + chunk;
        if wide < MOST { wide } else { MOST }
    }

    /// Waits for a chunk of sums of up to [`Self::wide`] earlier clusters, adds them in order, and
    /// leaves their places empty for the next launch. Clusters start in order, so that those waited
    /// for run or have run.
    #[inline(always)]
    unsafe fn take_over(&self, clusters: Range<u32>, chunk: usize, sums: &mut [f32; CHUNK]) {
        // Loads of all of them are under way together. (What is past `wide` is never there.)
        let mut parts = [[[0; 4]; FOURS]; 8];
        let from = |w: usize, f: usize| {
            let from = self.partial(clusters.start + w as u32);
            from.wrapping_add((FOURS * chunk + f) * Self::FOUR)
        };
        // SAFETY: the workspace has room for every block of the launch.
        unsafe {
            loop {
                let mut missing = false;
                unroll!(W < Self::wide(chunk) => {
                    if clusters.start + (W as u32) < clusters.end {
                        unroll!(F < FOURS => { parts[W][F] = memory::observe_u32x4(from(W, F)); });
                    }
                });
                unroll!(W < Self::wide(chunk) => {
                    unroll!(F < FOURS => {
                        let [a, b, c, d] = parts[W][F].map(|sum| sum == Gemm::EMPTY);
                        missing |= a | b | c | d;
                    });
                });
                if !missing {
                    break;
                }
            }
            unroll!(W < Self::wide(chunk) => {
                if clusters.start + (W as u32) < clusters.end {
                    unroll!(F < FOURS => {
                        unroll!(I < 4 => { sums[4 * F + I] += f32::from_bits(parts[W][F][I]); });
                        memory::publish_u32x4(from(W, F), [Gemm::EMPTY; 4]);
                    });
                }
            });
        }
    }

    /// Finishes an output tile, 64 tokens at a time: adds what earlier clusters have of it, then
    /// what the epilogue adds, and stores. All this is done as sums lie in registers, by which a
    /// warp reads and writes sectors of eight features of four tokens; only BF16 outputs, where
    /// those would be half sectors, leave by way of shared memory.
    #[inline(always)]
    unsafe fn store(&self, place: Place, before: Range<u32>, acc: &[f32; SUMS]) {
        let epilogue = Epilogue::new(&self.args.output, self.args.m, self.args.n);
        let group_feature = self.row_block(place) * Prefill::ROWS as u32 + 64 * (self.warp / 4);
        let feature = group_feature + 16 * (self.warp % 4) + self.lane / 4;
        if epilogue.has_bias() || epilogue.accumulates() {
            // This thread's own wait: it reads what the kernel before may have written.
            grid::wait_dependencies();
        }
        unroll!(C < SUMS / CHUNK => {
            if let Some(first) = self.chunk(place, C) {
                let mut sums = [0.0; CHUNK];
                unroll!(F < FOURS => {
                    unroll!(I < 4 => { sums[4 * F + I] = acc[CHUNK * C + 4 * F + I]; });
                });
                let token = first + 2 * (self.lane % 4);
                // SAFETY: `run`'s.
                unsafe {
                    let mut left = before.clone();
                    while !left.is_empty() {
                        let end = left.end.min(left.start + Self::wide(C) as u32);
                        self.take_over(left.start..end, C, &mut sums);
                        left.start = end;
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
