//! Y[N, M] = X[N, K] W[M, K]^T from compressed W, for up to 64 tokens.
//!
//! ```text
//!  two warps that copy    teams of warps that multiply         two writers
//!
//!  tiles, offsets,  full  A fragments from bytes, codes and   sums  add over warps, then over
//!  patches; X      -----> patches, B fragments from X, mma   -----> blocks, in a fixed order;
//!  into a stage     empty  into registers, unit after unit          epilogue; store Y
//!                  <-----                                    <-----
//! ```
//!
//! A persistent block takes a run of the line of tiles ([`crate::work`]). Each stage of the ring
//! holds one unit: a tile for each warp of a team and the activations of their columns. Teams take
//! turns, so that one multiplies while the next one's unit is still on its way. No barrier but
//! those of the rings stands in the way of a warp, also not where a row block ends: the writers
//! add up the last one while the warps multiply the next.
//!
//! Weights are asked for before all else, for no earlier kernel of the stream writes them; X and Y
//! wait for the kernel before. Weights are read once and X by every block, so the L2 cache is told
//! to let go of weights first.
//!
//! Budget (builder/budget.json, from the machine code): 152 instructions a tile and warp at N = 8,
//! 2.4 for each of a lane's 64 weights, where 132 multiprocessors at 3 TB/s leave 13.6 issue slots.

use super::{
    epilogue::Epilogue,
    fetch,
    ring::Ring,
    tile::{self, Patches, Tile},
};
use crate::{
    arch::{barrier, copy, grid, memory, thread},
    args::GemmArgs,
    launch::Gemm,
    layout::*,
    work::{Segment, Segments, Work},
};

/// Units behind the first ring that are brought to the L2 cache, to keep memory busy while the
/// block waits for the kernel before it. More of them slow that kernel's last blocks down, which
/// long runs make up for.
const AHEAD: u32 = 2;
const AHEAD_OF_LONG: u32 = 3;
/// Units of a long run.
const LONG: u32 = 20;

/// The kernel of one [`Gemm`] shape.
///
/// # Safety
/// `args` describe a compressed matrix and buffers as the host's `zipgemm` checks; the launch is
/// that of the shape.
#[inline(always)]
pub unsafe fn zipgemm<
    const N_TILES: usize,
    const STRIPS: usize,
    const GROUPS: usize,
    const TEAMS: usize,
    const STAGES: usize,
    const SUM_STAGES: usize,
>(
    args: &GemmArgs,
) {
    let block = Block::<N_TILES, STRIPS, GROUPS, TEAMS, STAGES, SUM_STAGES>::new(args);
    // SAFETY: the caller's promise, passed on.
    unsafe { block.run() }
}

/// Most *fours*, sums of four rows and one token, that a writer's thread has of eight tokens.
const FOURS_AT_MOST: usize = 8;

/// A thread's view of its block.
struct Block<
    'a,
    const N_TILES: usize,
    const STRIPS: usize,
    const GROUPS: usize,
    const TEAMS: usize,
    const STAGES: usize,
    const SUM_STAGES: usize,
> {
    args: &'a GemmArgs,
    shared: u32,
    lane: u32,
    warp: u32,
    block: u32,
    /// Tiles along K, and strips of the matrix.
    tile_cols: u32,
    strips: u32,
    work: Work,
    segments: Segments,
}

/// A place in the block's run: a unit of up to `GROUPS` tile columns.
#[derive(Clone, Copy)]
struct Cursor<const GROUPS: usize> {
    segments: Segments,
    segment: Segment,
}

impl<const GROUPS: usize> Cursor<GROUPS> {
    /// The first unit.
    #[inline(always)]
    fn new(mut segments: Segments) -> Self {
        let segment = segments.next().unwrap_or(Segment {
            row_block: 0,
            from: 0,
            to: 0,
        });
        Self { segments, segment }
    }

    /// Row block, first tile column and number of tile columns; none past the end.
    #[inline(always)]
    fn unit(&self) -> (u32, u32, u32) {
        let Segment {
            row_block,
            from,
            to,
        } = self.segment;
        (row_block, from, (to - from).min(GROUPS as u32))
    }

    /// The unit that comes `units` later.
    #[inline(always)]
    fn after(mut self, mut units: u32) -> Self {
        loop {
            let Segment { from, to, .. } = self.segment;
            let left = (to - from).div_ceil(GROUPS as u32);
            if units < left {
                self.segment.from = from + units * GROUPS as u32;
                return self;
            }
            units -= left;
            match self.segments.next() {
                Some(segment) => self.segment = segment,
                None => {
                    self.segment.from = to;
                    return self;
                }
            }
        }
    }
}

impl<
    'a,
    const N_TILES: usize,
    const STRIPS: usize,
    const GROUPS: usize,
    const TEAMS: usize,
    const STAGES: usize,
    const SUM_STAGES: usize,
> Block<'a, N_TILES, STRIPS, GROUPS, TEAMS, STAGES, SUM_STAGES>
{
    const SHAPE: Gemm = Gemm {
        n_tiles: N_TILES,
        strips: STRIPS,
        groups: GROUPS,
        teams: TEAMS,
        stages: STAGES,
        sum_stages: SUM_STAGES,
        blocks: 1,
    };
    const WARPS: u32 = Self::SHAPE.warps() as u32;
    /// Units of which the lanes that copy weights look after a strip each.
    const BATCH: u32 = LANES as u32 / STRIPS as u32;
    const ROWS: u32 = Self::SHAPE.rows() as u32;

    #[inline(always)]
    fn new(args: &'a GemmArgs) -> Self {
        let tile_cols = args.k.div_ceil(TILE_COLS as u32);
        let strips = args.m.div_ceil(TILE_ROWS as u32);
        // SAFETY: every thread has a place in the grid.
        let (block, blocks) = unsafe { (thread::block() as u32, thread::blocks() as u32) };
        let work = Work::new(strips.div_ceil(STRIPS as u32) * tile_cols, blocks);
        Self {
            args,
            shared: memory::shared(),
            lane: thread::lane(),
            warp: thread::warp(),
            block,
            tile_cols,
            strips,
            work,
            segments: work.segments(block, tile_cols),
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
        grid::launch_dependents();
        // SAFETY: addresses lie in the block's shared memory by the shape's arithmetic; global
        // ranges are the caller's promise.
        unsafe {
            let mut first = (Cursor::new(self.segments), [0; 2]);
            if self.warp == Self::WARPS {
                // Weights are on their way before anything else happens.
                if self.lane == 0 {
                    self.init_barriers();
                }
                thread::sync_warp();
                first = self.start_weights();
            } else if self.warp < Self::WARPS {
                tile::clear_table(self.args, self.table(), self.lane);
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
                barrier::init(self.full(stage), LANES as u32 + fetch::arrivals::<STRIPS>());
                // Here and below every lane arrives for itself, which racecheck understands.
                barrier::init(self.empty(stage), (STRIPS * GROUPS * LANES) as u32);
            }
            for stage in 0..SUM_STAGES as u32 {
                barrier::init(self.sums_full(stage), Self::WARPS * LANES as u32);
                barrier::init(self.sums_empty(stage), (Gemm::WRITERS * LANES) as u32);
            }
        }
        barrier::fence_init();
    }

    /// Fills the ring with weights, which never depend on an earlier kernel of the stream, and
    /// says what this lane copies next and where its patches are.
    #[inline(always)]
    unsafe fn start_weights(&self) -> (Cursor<GROUPS>, [u32; 2]) {
        let (strip, turn) = (self.lane % STRIPS as u32, self.lane / STRIPS as u32);
        let own = Cursor::<GROUPS>::new(self.segments).after(turn);
        let range = self.patch_range(&own, strip);
        let ahead = match self.segments.columns() >= LONG * GROUPS as u32 {
            true => AHEAD_OF_LONG,
            false => AHEAD,
        };
        // SAFETY: `run`'s.
        unsafe {
            if fetch::ALONE && turn < STAGES as u32 {
                self.copy_dense(&own, strip, turn);
            } else if fetch::ALONE && turn < STAGES as u32 + ahead {
                self.prefetch_dense(&own, strip);
            }
        }
        (own, range)
    }

    /// Keeps the ring full of weights.
    ///
    /// Each lane looks after one strip of one unit in [`Self::BATCH`], so that what it must read
    /// of the offsets is there long before its turn.
    #[inline(always)]
    unsafe fn copy_weights(&self, (mut own, mut range): (Cursor<GROUPS>, [u32; 2])) {
        let units = self.segments.units(GROUPS as u32);
        let (strip, turn) = (self.lane % STRIPS as u32, self.lane / STRIPS as u32);
        // SAFETY: `run`'s.
        unsafe {
            let mut shared = Cursor::<GROUPS>::new(self.segments);
            let mut ring = Ring::<STAGES>::FILLING;
            let mut unit = 0;
            while unit < units {
                let next = own.after(Self::BATCH);
                let next_range = self.patch_range(&next, strip);
                for now in 0..Self::BATCH.min(units - unit) {
                    barrier::wait(self.empty(ring.stage), ring.parity);
                    if !fetch::ALONE {
                        // All lanes copy the unit, each a part of one strip.
                        let strip = fetch::strip::<STRIPS>(self.lane);
                        let holder = now * STRIPS as u32 + strip;
                        let range = range.map(|at| thread::shuffle(at, holder));
                        self.copy_dense(&shared, strip, ring.stage);
                        self.copy_patches(range, strip, ring.stage);
                        copy::arrive_after_chunks(self.full(ring.stage));
                        shared = shared.after(1);
                    } else if turn == now {
                        if unit >= STAGES as u32 {
                            self.copy_dense(&own, strip, ring.stage);
                        }
                        self.copy_patches(range, strip, ring.stage);
                        barrier::arrive(self.full(ring.stage));
                    }
                    ring.advance();
                    unit += 1;
                }
                (own, range) = (next, next_range);
            }
        }
    }

    /// Keeps the ring full of activations.
    #[inline(always)]
    unsafe fn copy_activations(&self) {
        grid::wait_dependencies();
        let mut unit = Cursor::<GROUPS>::new(self.segments);
        let mut ring = Ring::<STAGES>::FILLING;
        while unit.unit().2 > 0 {
            // SAFETY: `run`'s.
            unsafe {
                barrier::wait(self.empty(ring.stage), ring.parity);
                self.copy_x(unit.unit().1, ring.stage);
            }
            unit = unit.after(1);
            ring.advance();
        }
    }

    /// First of the unit's tiles in a strip of its row block, if there are any.
    #[inline(always)]
    fn first_tile(&self, cursor: &Cursor<GROUPS>, strip: u32) -> Option<u32> {
        let (row_block, col, tiles) = cursor.unit();
        let strip = row_block * STRIPS as u32 + strip;
        (tiles > 0 && strip < self.strips).then(|| strip * self.tile_cols + col)
    }

    /// The patches of the unit's tiles in a strip.
    #[inline(always)]
    fn patch_range(&self, cursor: &Cursor<GROUPS>, strip: u32) -> [u32; 2] {
        let Some(tile) = self.first_tile(cursor, strip) else {
            return [0; 2];
        };
        // SAFETY: there is one offset more than there are tiles.
        unsafe {
            let offsets = self.args.offsets.add(tile as usize);
            let tiles = cursor.unit().2 as usize;
            [
                memory::load_global_u32(offsets),
                memory::load_global_u32(offsets.add(tiles)),
            ]
        }
    }

    /// Starts this lane's part in the copies of a strip's tiles and patch offsets.
    #[inline(always)]
    unsafe fn copy_dense(&self, cursor: &Cursor<GROUPS>, strip: u32, stage: u32) {
        let Some(tile) = self.first_tile(cursor, strip) else {
            return;
        };
        let (at, full) = (self.stage(stage), self.full(stage));
        let dense_at = at + strip * (GROUPS * TILE_BYTES) as u32;
        let dense_bytes = cursor.unit().2 * TILE_BYTES as u32;
        let offset_bytes = 4 * Self::SHAPE.offset_words() as u32;
        let offsets_at = at + Self::SHAPE.offsets_at() as u32 + strip * offset_bytes;
        // SAFETY: `run`'s; the section of offsets is padded, so that whole groups of 16 bytes can
        // be read.
        unsafe {
            let dense = self.args.dense.add(tile as usize * TILE_BYTES);
            let most = (GROUPS * TILE_BYTES) as u32;
            fetch::start::<STRIPS>(dense_at, dense, dense_bytes, most, full);
            let offsets = self.args.offsets.add((tile & !3) as usize).cast();
            fetch::start::<STRIPS>(offsets_at, offsets, offset_bytes, offset_bytes, full);
        }
    }

    /// Brings a strip's tiles to the L2 cache.
    #[inline(always)]
    unsafe fn prefetch_dense(&self, cursor: &Cursor<GROUPS>, strip: u32) {
        if let Some(tile) = self.first_tile(cursor, strip) {
            // SAFETY: tiles of the matrix.
            unsafe {
                let dense = self.args.dense.add(tile as usize * TILE_BYTES);
                copy::prefetch_bulk(dense, cursor.unit().2 * TILE_BYTES as u32);
            }
        }
    }

    /// Starts this lane's part in the copy of a strip's patches, as many as a stage has room for.
    #[inline(always)]
    unsafe fn copy_patches(&self, [from, to]: [u32; 2], strip: u32, stage: u32) {
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
            fetch::start::<STRIPS>(at, patches, bytes, 2 * room, self.full(stage));
        }
    }

    /// Where an activation is.
    #[inline(always)]
    fn x(&self, token: u32, column: u32) -> *const u16 {
        let index = token as usize * self.args.x_stride as usize + column as usize;
        self.args.x.wrapping_add(index)
    }

    /// Brings a unit's activations to the L2 cache, without any promise about what they hold.
    #[inline(always)]
    fn prefetch_x(&self, cursor: &Cursor<GROUPS>) {
        let (_, col, tiles) = cursor.unit();
        let mut index = self.lane;
        while index < GROUPS as u32 * self.args.n {
            let (token, tile) = (index / GROUPS as u32, index % GROUPS as u32);
            if tile < tiles {
                copy::prefetch(self.x(token, (col + tile) * TILE_COLS as u32).cast());
            }
            index += LANES as u32;
        }
    }

    /// Starts the copies of the activations from tile column `col`. Columns past K and tokens past
    /// N become zeros.
    #[inline(always)]
    unsafe fn copy_x(&self, col: u32, stage: u32) {
        const CHUNK: u32 = 8;
        let (k, n) = (self.args.k, self.args.n);
        let (at, full) = (
            self.stage(stage) + Self::SHAPE.x_at() as u32,
            self.full(stage),
        );
        let stride = Self::SHAPE.x_stride() as u32;
        let first = col * TILE_COLS as u32;
        // SAFETY: `run`'s.
        unsafe {
            if self.args.x_stride % CHUNK == 0 && self.args.x as u64 % 16 == 0 {
                let chunks = (GROUPS * TILE_COLS) as u32 / CHUNK;
                for i in 0..(8 * N_TILES) as u32 * chunks / LANES as u32 {
                    let index = i * LANES as u32 + self.lane;
                    let (token, c) = (index / chunks, index % chunks * CHUNK);
                    let columns = k.saturating_sub(first + c).min(CHUNK);
                    let bytes = if token < n { 2 * columns } else { 0 };
                    let from = self.x(token, first + c);
                    copy::chunk(at + token * stride + 2 * c, from.cast(), bytes);
                }
                copy::arrive_after_chunks(full);
            } else {
                for token in 0..(8 * N_TILES) as u32 {
                    let mut c = self.lane;
                    while c < (GROUPS * TILE_COLS) as u32 {
                        let mut value = 0;
                        if token < n && first + c < k {
                            value = *self.x(token, first + c);
                        }
                        memory::store_u16(at + token * stride + 2 * c, value);
                        c += LANES as u32;
                    }
                }
                barrier::arrive(full);
            }
        }
    }

    /// Multiplies this warp's tile of every unit whose turn is its team's.
    #[inline(always)]
    unsafe fn multiply(&self) {
        let team_warps = (STRIPS * GROUPS) as u32;
        let (team, warp) = (self.warp / team_warps, self.warp % team_warps);
        let (strip, group) = (warp % STRIPS as u32, warp / STRIPS as u32);
        let x_row = self.lane % 8 * Self::SHAPE.x_stride() as u32 + self.lane / 8 * 16;
        let x_at = Self::SHAPE.x_at() as u32 + group * (2 * TILE_COLS) as u32 + x_row;
        let dense_at = (strip * GROUPS as u32 + group) * TILE_BYTES as u32;
        let mut segments = self.segments;
        let mut ring = Ring::<STAGES> {
            stage: team,
            parity: 0,
        };
        let mut sums = Ring::<SUM_STAGES>::FILLING;
        // The team's next unit, counted from where the segment starts.
        let mut unit = team;
        while let Some(Segment {
            row_block,
            from,
            to,
        }) = segments.next()
        {
            let matrix_strip = row_block * STRIPS as u32 + strip;
            let units = (to - from).div_ceil(GROUPS as u32);
            let mut acc = [[[0f32; 4]; N_TILES]; BANDS];
            while unit < units {
                let col = from + unit * GROUPS as u32 + group;
                // SAFETY: `run`'s.
                unsafe {
                    barrier::wait(self.full(ring.stage), ring.parity);
                    let stage = self.stage(ring.stage);
                    if col < to && matrix_strip < self.strips {
                        let tile = matrix_strip * self.tile_cols + col;
                        let patches = self.patches(stage, strip, group, tile);
                        let place = Tile {
                            dense: stage + dense_at,
                            x: stage + x_at,
                            x_stride: Self::SHAPE.x_stride() as u32,
                            table: self.table(),
                        };
                        tile::multiply(self.args, &place, &patches, &mut acc);
                    }
                    barrier::arrive(self.empty(ring.stage));
                }
                ring.skip(TEAMS);
                unit += TEAMS as u32;
            }
            unit -= units;
            let part = team * GROUPS as u32 + group;
            // SAFETY: `run`'s.
            unsafe { self.pass_sums(strip, part, &mut sums, &acc) };
        }
    }

    /// The patches of a tile.
    #[inline(always)]
    unsafe fn patches(&self, stage: u32, strip: u32, group: u32, tile: u32) -> Patches {
        let offsets =
            stage + Self::SHAPE.offsets_at() as u32 + 4 * strip * Self::SHAPE.offset_words() as u32;
        // The first tile's patches start in the stage's first 16 bytes of patches.
        let unit = (tile - group) & 3;
        let room = Self::SHAPE.patch_room() as u32;
        let patches = stage + Self::SHAPE.patches_at() as u32 + 2 * strip * room;
        // SAFETY: `run`'s.
        unsafe {
            let unit_first = memory::load_u32(offsets + 4 * unit) & !7;
            let first = memory::load_u32(offsets + 4 * (unit + group));
            let last = memory::load_u32(offsets + 4 * (unit + group) + 4);
            Patches {
                count: last - first,
                staged: last - unit_first <= room,
                shared: patches + 2 * (first - unit_first),
                global: self.args.patches.add(first as usize),
            }
        }
    }

    /// Hands the warp's sums to the writer, eight tokens at a time.
    #[inline(always)]
    unsafe fn pass_sums(
        &self,
        strip: u32,
        part: u32,
        ring: &mut Ring<SUM_STAGES>,
        acc: &[[[f32; 4]; N_TILES]; BANDS],
    ) {
        let stride = Self::SHAPE.sums_stride() as u32;
        let unscale = unscale(scale(self.args.base as u8));
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

    /// Adds up what the warps pass on and writes the output, or hands it to a later block.
    #[inline(always)]
    unsafe fn write(&self) {
        // There is nothing else to do yet.
        let mut ahead = Cursor::<GROUPS>::new(self.segments);
        for _ in 0..STAGES {
            self.prefetch_x(&ahead);
            ahead = ahead.after(1);
        }
        // This thread's own wait: it writes, and perhaps reads, what earlier kernels have written.
        grid::wait_dependencies();
        let thread = (self.warp - Self::WARPS - 2) * LANES as u32 + self.lane;
        let mut segments = self.segments;
        let mut ring = Ring::<SUM_STAGES>::EMPTYING;
        while let Some(segment) = segments.next() {
            let epilogue = Epilogue::new(&self.args.output, self.args.m, self.args.n);
            let finishes = segment.to == self.tile_cols;
            let before = if segment.from > 0 && finishes {
                let row_block_start = segment.row_block * self.tile_cols;
                self.work.block_of(row_block_start)..self.block
            } else {
                0..0
            };
            let first_row = segment.row_block * Self::ROWS;
            let mut bias = [0; 4];
            unroll!(E < 4 => {
                // SAFETY: `run`'s.
                bias[E] = unsafe { epilogue.bias::<E>(first_row + Self::row(thread)) };
            });
            let mut first = 0;
            while first < N_TILES as u32 {
                let mut sums = [[[0f32; 4]; FOURS_AT_MOST]; N_TILES];
                let mut old = [[[0; 4]; FOURS_AT_MOST]; N_TILES];
                // SAFETY: `run`'s.
                unsafe {
                    // While this block's warps multiply.
                    for block in before.clone() {
                        self.take_over(block, first, thread, &mut sums);
                    }
                    if finishes && epilogue.accumulates() {
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
                                    add(&mut sums[J][I], memory::load_u32x4(part).map(f32::from_bits));
                                }
                            }
                        });
                        barrier::arrive(self.sums_empty(ring.stage));
                        ring.advance();
                        unroll!(I < Self::fours() => {
                            let (token, row) = Self::four(I, thread);
                            if token < 8 {
                                if finishes {
                                    let (token, row) = (8 * j + token, first_row + row);
                                    epilogue.store_four(token, row, sums[J][I], bias, old[J][I]);
                                } else {
                                    self.hand_over(Self::place(j, token, row), sums[J][I]);
                                }
                            }
                        });
                    });
                }
                first += Self::AT_ONCE as u32;
            }
        }
    }

    /// Eights of tokens for whose sums a writer's thread has registers at a time: all, or one. The
    /// portable blocks share a multiprocessor.
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
        let fours = (Self::SHAPE.rows() * 8 / 4).div_ceil(Gemm::WRITERS * LANES);
        assert!(fours <= FOURS_AT_MOST);
        fours
    }

    /// Token (of eight, or past them) and first row of a writer's `i`-th four.
    #[inline(always)]
    fn four(i: usize, thread: u32) -> (u32, u32) {
        let index = (i * Gemm::WRITERS * LANES) as u32 + thread;
        (index / (Self::ROWS / 4), Self::row(thread))
    }

    /// First row of each of a writer's fours.
    #[inline(always)]
    fn row(thread: u32) -> u32 {
        const { assert!((Gemm::WRITERS * LANES).is_multiple_of(Self::SHAPE.rows() / 4)) };
        thread % (Self::ROWS / 4) * 4
    }

    /// Starts to load a writer's old outputs of the `j`-th eight tokens.
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

    /// Place of a four in what one block hands over, in floats.
    #[inline(always)]
    fn place(j: u32, token: u32, row: u32) -> u32 {
        (j * 8 + token) * Self::ROWS + row
    }

    /// Where `block` leaves sums, `place` of [`Gemm::partial_bytes`].
    #[inline(always)]
    fn partial(&self, block: u32, place: u32) -> *mut f32 {
        let index = block as usize * (Self::SHAPE.partial_bytes() / 4) + place as usize;
        self.args.partials.wrapping_add(index)
    }

    /// Leaves sums to a later block. Each float is its own flag: the place is empty as long as it
    /// holds a pattern that no sum has.
    #[inline(always)]
    unsafe fn hand_over(&self, place: u32, sum: [f32; 4]) {
        let flag = |sum: f32| match sum.to_bits() {
            Gemm::EMPTY => f32::NAN.to_bits(),
            bits => bits,
        };
        // SAFETY: the workspace has room for every block of the launch.
        unsafe { memory::publish_u32x4(self.partial(self.block, place), sum.map(flag)) }
    }

    /// Waits for the sums of an earlier block, of the eights of tokens from `first` on, adds them,
    /// and leaves their places empty for the next launch. Blocks start in order, so that the one
    /// waited for runs or has run.
    #[inline(always)]
    unsafe fn take_over(
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
                        parts[J][I] = memory::observe_u32x4(from);
                    }
                });
            });
            unroll!(J < Self::AT_ONCE => {
                unroll!(I < Self::fours() => {
                    if let Some(from) = from(J, I) {
                        while parts[J][I].map(|sum| sum == Gemm::EMPTY) != [false; 4] {
                            parts[J][I] = memory::observe_u32x4(from);
                        }
                        add(&mut sums[J][I], parts[J][I].map(f32::from_bits));
                        memory::publish_u32x4(from, [Gemm::EMPTY; 4]);
                    }
                });
            });
        }
    }
}

#[inline(always)]
fn add(sum: &mut [f32; 4], part: [f32; 4]) {
    *sum = [
        sum[0] + part[0],
        sum[1] + part[1],
        sum[2] + part[2],
        sum[3] + part[3],
    ];
}
