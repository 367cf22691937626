//! Y[N, M] = X[N, K] W[M, K]^T from compressed W, for up to 64 tokens.
//!
//! ```text
//! global                      shared                       registers
//! dense tile  --bulk copy-->  stage of the ring --LDS--->  bytes, words --decode--> A fragment --+
//! patches     --bulk copy-->  stage --16-bit stores--> table of bases --LDS--> bases --^         mma
//! activations --bulk copy-->  stage ------------------ldmatrix--------------> B fragment --------+
//!                                                                                               |
//! Y <-- sum over groups, then over blocks, in fixed order <-- shared <-- accumulators <----------+
//! ```
//!
//! Work is a line of *units*, one for each row block (`32 * STRIPS` rows) and tile column, row
//! block after row block. A block takes a contiguous run of units (stream-K), its groups of
//! warps take turns along it, and each group keeps a ring of `STAGES` units in flight. Where a
//! row block is shared by several thread blocks, the last of them adds up all partial sums in the
//! order of blocks, so that the same inputs always give the same bits.
//!
//! Budget, for each weight of a lane: 0.28 shared loads, 2.2 for the decode, 0.25 for patches,
//! 0.13 mma for each 8 tokens, 0.4 for barriers, refill and loop: 3.4 issue slots, where 132
//! multiprocessors at 3 TB/s leave 13.6.

use crate::{
    args::GemmArgs,
    arch::{barrier, copy, grid, memory, mma, thread},
    decode,
    launch::Gemm,
    layout::*,
};

/// Runs `$body` for `$j` from 0 to below `$n`, at most 8, with `$j` a literal each time: a loop
/// that certainly leaves no index to run time, which registers do not have.
macro_rules! unroll {
    ($j:ident < $n:expr => $body:block) => {
        unroll!(@ $j $n, $body, 0 1 2 3 4 5 6 7)
    };
    (@ $j:ident $n:expr, $body:block, $($i:literal)*) => {
        $(if $i < $n {
            const $j: usize = $i;
            $body
        })*
    };
}

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
    const STAGES: usize,
    const X_STAGES: usize,
>(
    args: &GemmArgs,
) {
    let block = Block::<N_TILES, STRIPS, GROUPS, STAGES, X_STAGES>::new(args);
    // SAFETY: the caller's promise, passed on.
    unsafe { block.run() }
}

/// A thread's view of its block.
struct Block<'a, const N_TILES: usize, const STRIPS: usize, const GROUPS: usize, const STAGES: usize, const X_STAGES: usize>
{
    args: &'a GemmArgs,
    shared: u32,
    lane: u32,
    warp: u32,
    /// Strip and group of this warp.
    strip: u32,
    group: u32,
    /// Tiles along K, and strips of the matrix.
    tile_cols: u32,
    strips: u32,
    /// Whether activations can be copied in chunks of 16 bytes.
    x_chunks: bool,
    work: Work,
    block: u32,
    run: Run,
}

/// How the line of units is dealt out: the first `extra` blocks take one more.
#[derive(Clone, Copy)]
struct Work {
    each: u32,
    extra: u32,
}

impl Work {
    fn new(units: u32, blocks: u32) -> Self {
        let each = units.checked_div(blocks).unwrap_or(0);
        Self { each, extra: units - each * blocks }
    }

    /// First unit of `block`.
    fn start(self, block: u32) -> u32 {
        block * self.each + block.min(self.extra)
    }

    /// The block that takes `unit`.
    fn block_of(self, unit: u32) -> u32 {
        let large = self.extra * (self.each + 1);
        if unit < large {
            unit.checked_div(self.each + 1).unwrap_or(0)
        } else {
            self.extra + (unit - large).checked_div(self.each).unwrap_or(0)
        }
    }
}

/// One block's share of the units, `start..end`.
///
/// It begins at `split`: with the part of a row block that a later thread block will finish, so
/// that those partial sums are written long before they are needed. The rest follows.
#[derive(Clone, Copy)]
struct Run {
    start: u32,
    end: u32,
    split: u32,
    /// The row blocks of `start` and of `split`, and their first units.
    row_block: u32,
    row_block_start: u32,
    split_row_block: u32,
    split_row_block_start: u32,
}

impl Run {
    fn new(start: u32, end: u32, tile_cols: u32) -> Self {
        let row_block_of = |unit: u32| unit.checked_div(tile_cols).unwrap_or(0);
        let row_block = row_block_of(start);
        let last = row_block_of(end);
        let split = if last * tile_cols < end { start.max(last * tile_cols) } else { start };
        let split_row_block = row_block_of(split);
        Self {
            start,
            end,
            split,
            row_block,
            row_block_start: row_block * tile_cols,
            split_row_block,
            split_row_block_start: split_row_block * tile_cols,
        }
    }
}

/// A stage of a ring, and the parity of the phase in which it is next filled.
#[derive(Clone, Copy, Default)]
struct Ring<const STAGES: usize> {
    stage: u32,
    parity: u32,
}

impl<const STAGES: usize> Ring<STAGES> {
    #[inline(always)]
    fn after(self) -> Self {
        if self.stage + 1 == STAGES as u32 {
            Self { stage: 0, parity: self.parity ^ 1 }
        } else {
            Self { stage: self.stage + 1, parity: self.parity }
        }
    }

    #[inline(always)]
    fn before(self) -> Self {
        if self.stage == 0 {
            Self { stage: STAGES as u32 - 1, parity: self.parity ^ 1 }
        } else {
            Self { stage: self.stage - 1, parity: self.parity }
        }
    }
}

/// A warp's place in its group's run of units, ahead of or at the one it multiplies.
#[derive(Clone, Copy)]
struct Unit {
    /// Place in the line of units.
    at: u32,
    tile_col: u32,
    /// Strip of this warp, and its tile.
    strip: u32,
    tile: u32,
    /// Units to come, this one included.
    left: u32,
}

impl<'a, const N_TILES: usize, const STRIPS: usize, const GROUPS: usize, const STAGES: usize, const X_STAGES: usize>
    Block<'a, N_TILES, STRIPS, GROUPS, STAGES, X_STAGES>
{
    const SHAPE: Gemm = Gemm { n_tiles: N_TILES, strips: STRIPS, groups: GROUPS, stages: STAGES, x_stages: X_STAGES };
    const THREADS: u32 = Self::SHAPE.threads() as u32;

    #[inline(always)]
    fn new(args: &'a GemmArgs) -> Self {
        let warp = thread::warp();
        let tile_cols = args.k.div_ceil(TILE_COLS as u32);
        let strips = args.m.div_ceil(TILE_ROWS as u32);
        // SAFETY: every thread has a place in the grid.
        let (block, blocks) = unsafe { (thread::block() as u32, thread::blocks() as u32) };
        let work = Work::new(strips.div_ceil(STRIPS as u32) * tile_cols, blocks);
        Self {
            args,
            shared: memory::shared(),
            lane: thread::lane(),
            warp,
            strip: warp % STRIPS as u32,
            group: warp / STRIPS as u32,
            tile_cols,
            strips,
            x_chunks: args.k % 8 == 0 && args.x as u64 % 16 == 0,
            work,
            block,
            run: Run::new(work.start(block), work.start(block + 1), tile_cols),
        }
    }

    /// A warp's stage of weights.
    #[inline(always)]
    fn weights(&self, stage: u32) -> u32 {
        self.shared + (self.warp * STAGES as u32 + stage) * Gemm::STAGE_BYTES as u32
    }

    /// A group's stage of activations.
    #[inline(always)]
    fn x(&self, stage: u32) -> u32 {
        let index = self.group * X_STAGES as u32 + stage;
        self.shared + Self::SHAPE.x_at() as u32 + index * Self::SHAPE.x_bytes() as u32
    }

    /// The warp's table of bases.
    #[inline(always)]
    fn bases(&self) -> u32 {
        self.shared + Self::SHAPE.bases_at() as u32 + self.warp * Gemm::BASES_BYTES as u32
    }

    #[inline(always)]
    fn weights_full(&self, stage: u32) -> u32 {
        self.shared + Self::SHAPE.barriers_at() as u32 + 8 * (self.warp * STAGES as u32 + stage)
    }

    #[inline(always)]
    fn x_full(&self, stage: u32) -> u32 {
        let before = Self::SHAPE.barriers_at() + 8 * STAGES * Self::SHAPE.warps();
        self.shared + before as u32 + 16 * (self.group * X_STAGES as u32 + stage)
    }

    #[inline(always)]
    fn x_empty(&self, stage: u32) -> u32 {
        self.x_full(stage) + 8
    }

    #[inline(always)]
    unsafe fn run(&self) {
        grid::launch_dependents();
        let leader = self.strip == 0;
        let mut next = self.first_unit();
        let mut next_x = next;
        let mut unit = next;
        // SAFETY: addresses lie in the block's shared memory by the shape's arithmetic; global
        // ranges are the caller's promise.
        unsafe {
            if self.lane == 0 {
                for stage in 0..STAGES as u32 {
                    barrier::init(self.weights_full(stage), 1);
                }
                for stage in 0..X_STAGES as u32 {
                    if leader {
                        barrier::init(self.x_full(stage), LANES as u32);
                        barrier::init(self.x_empty(stage), STRIPS as u32);
                    }
                }
                barrier::fence_init();
            }
            thread::sync_warp();
            // Weights never depend on an earlier kernel, activations do.
            let mut patches = self.patch_range(&next);
            for stage in 0..STAGES as u32 {
                self.copy_weights(&mut next, &mut patches, stage);
            }
            self.fill_bases();
            grid::wait_dependencies();
            if leader {
                for stage in 0..X_STAGES as u32 {
                    self.copy_x(&mut next_x, stage);
                }
            }
            thread::sync_block();

            let mut ring = Ring::<STAGES>::default();
            let mut x_ring = Ring::<X_STAGES>::default();
            let mut refill_x = false;
            let run = self.run;
            let (mut row_block, mut row_block_start) = (run.split_row_block, run.split_row_block_start);
            let mut left = run.end - run.start;
            while left > 0 {
                let from = run.start.max(row_block_start) - row_block_start;
                let to = self.tile_cols.min(run.end - row_block_start);
                left -= to - from;
                let strip = row_block * STRIPS as u32 + self.strip;
                let mut acc = [[[0f32; 4]; N_TILES]; BANDS];
                while unit.left > 0 && unit.strip == strip {
                    if STRIPS > 1 && leader && refill_x {
                        let used = x_ring.before();
                        barrier::wait(self.x_empty(used.stage), used.parity);
                        self.copy_x(&mut next_x, used.stage);
                    }
                    refill_x = true;
                    barrier::wait(self.weights_full(ring.stage), ring.parity);
                    barrier::wait(self.x_full(x_ring.stage), x_ring.parity);
                    if strip < self.strips {
                        self.multiply(unit.tile, ring.stage, x_ring.stage, &mut acc);
                    }
                    thread::sync_warp();
                    if STRIPS == 1 {
                        self.copy_x(&mut next_x, x_ring.stage);
                    } else if self.lane == 0 {
                        barrier::arrive(self.x_empty(x_ring.stage));
                    }
                    self.copy_weights(&mut next, &mut patches, ring.stage);
                    ring = ring.after();
                    x_ring = x_ring.after();
                    self.advance(&mut unit);
                }
                self.finish(row_block, row_block_start, from, to, &mut acc);
                row_block += 1;
                row_block_start += self.tile_cols;
                if row_block_start >= run.end {
                    (row_block, row_block_start) = (run.row_block, run.row_block_start);
                }
            }
        }
    }

    /// This warp's first unit.
    #[inline(always)]
    fn first_unit(&self) -> Unit {
        let run = &self.run;
        let at = run.split + self.group;
        let strip = run.split_row_block * STRIPS as u32 + self.strip;
        let tile_col = at - run.split_row_block_start;
        let mut unit = Unit {
            at,
            tile_col,
            strip,
            tile: strip * self.tile_cols + tile_col,
            left: (run.end - run.start).saturating_sub(self.group).div_ceil(GROUPS as u32),
        };
        self.carry(&mut unit);
        unit
    }

    /// Moves to the group's next unit.
    #[inline(always)]
    fn advance(&self, unit: &mut Unit) {
        unit.left -= 1;
        unit.at += GROUPS as u32;
        unit.tile_col += GROUPS as u32;
        unit.tile += GROUPS as u32;
        self.carry(unit);
    }

    /// Carries the tile column over into the row block, and the end of the block's run over to
    /// its start.
    #[inline(always)]
    fn carry(&self, unit: &mut Unit) {
        if unit.at >= self.run.end {
            unit.at = unit.at - self.run.end + self.run.start;
            unit.tile_col = unit.at - self.run.row_block_start;
            unit.strip = self.run.row_block * STRIPS as u32 + self.strip;
            unit.tile = unit.strip * self.tile_cols + unit.tile_col;
        }
        while unit.tile_col >= self.tile_cols {
            unit.tile_col -= self.tile_cols;
            unit.strip += STRIPS as u32;
            unit.tile += (STRIPS as u32 - 1) * self.tile_cols;
        }
    }

    /// The range of the patches of a unit's tile, asked for well ahead of its use.
    #[inline(always)]
    fn patch_range(&self, unit: &Unit) -> [u32; 2] {
        if unit.left == 0 || unit.strip >= self.strips {
            return [0; 2];
        }
        // SAFETY: there is one offset more than there are tiles.
        unsafe {
            let offsets = self.args.offsets.add(unit.tile as usize);
            [memory::load_global_u32(offsets), memory::load_global_u32(offsets.add(1))]
        }
    }

    /// Starts the copies of a unit's tile and patches into `stage`, and moves to the next unit.
    #[inline(always)]
    unsafe fn copy_weights(&self, next: &mut Unit, patches: &mut [u32; 2], stage: u32) {
        if next.left == 0 {
            return;
        }
        let (at, full) = (self.weights(stage), self.weights_full(stage));
        if self.lane == 0 {
            // SAFETY: `run`'s.
            unsafe {
                if next.strip < self.strips {
                    let [from, to] = *patches;
                    // Bulk copies want multiples of 16 bytes; the section is padded to allow it.
                    let (first, last) = (from & !7, (to + 7) & !7);
                    let patch_bytes = (2 * (last - first)).min(Gemm::PATCH_BYTES as u32);
                    memory::store_u32(at + Gemm::COUNT_AT as u32, (to - from) << 3 | from & 7);
                    barrier::expect(full, TILE_BYTES as u32 + patch_bytes);
                    let dense = self.args.dense.add(next.tile as usize * TILE_BYTES);
                    copy::bulk(at, dense, TILE_BYTES as u32, full);
                    if patch_bytes > 0 {
                        let patches = self.args.patches.add(first as usize).cast();
                        copy::bulk(at + Gemm::PATCHES_AT as u32, patches, patch_bytes, full);
                    }
                }
                barrier::arrive(full);
            }
        }
        self.advance(next);
        *patches = self.patch_range(next);
    }

    /// Starts the copies of a unit's activations into `stage`, and moves to the next unit.
    /// Columns past K and tokens past N become zeros.
    #[inline(always)]
    unsafe fn copy_x(&self, next: &mut Unit, stage: u32) {
        if next.left == 0 {
            return;
        }
        let col = next.tile_col * TILE_COLS as u32;
        let (k, n) = (self.args.k, self.args.n);
        let at = self.x(stage);
        // SAFETY: `run`'s.
        unsafe {
            if self.x_chunks {
                let (row, col) = (self.lane / 8, col + self.lane % 8 * 8);
                let from = self.args.x.add(row as usize * k as usize + col as usize);
                let to = at + row * Gemm::X_STRIDE as u32 + self.lane % 8 * 16;
                for i in 0..2 * N_TILES as u32 {
                    let bytes = if row + 4 * i < n && col < k { 16 } else { 0 };
                    let from = from.add(4 * i as usize * k as usize).cast();
                    copy::chunk(to + 4 * i * Gemm::X_STRIDE as u32, from, bytes);
                }
                copy::arrive_after_chunks(self.x_full(stage));
            } else {
                for row in 0..n {
                    for half in 0..2 {
                        let c = self.lane + 32 * half;
                        let mut value = 0;
                        if col + c < k {
                            let from = row as usize * k as usize + (col + c) as usize;
                            value = *self.args.x.add(from);
                        }
                        memory::store_u16(at + row * Gemm::X_STRIDE as u32 + 2 * c, value);
                    }
                }
                barrier::arrive(self.x_full(stage));
            }
        }
        self.advance(next);
    }

    /// Fills the warp's table with the matrix's base.
    #[inline(always)]
    unsafe fn fill_bases(&self) {
        let mut at = self.lane * 16;
        while at < Gemm::BASES_BYTES as u32 {
            // SAFETY: inside the warp's table.
            unsafe { memory::store_u32x4(self.bases() + at, [decode::base_pair(self.args.base as u8); 4]) };
            at += 32 * 16;
        }
        thread::sync_warp();
    }

    /// Multiplies the warp's tile in `stage`.
    #[inline(always)]
    unsafe fn multiply(
        &self,
        tile: u32,
        stage: u32,
        x_stage: u32,
        acc: &mut [[[f32; 4]; N_TILES]; BANDS],
    ) {
        let dense = self.weights(stage);
        let row = self.x(x_stage) + self.lane % 8 * Gemm::X_STRIDE as u32 + self.lane / 8 * 16;
        // SAFETY: `run`'s.
        unsafe {
            let patches = self.patches(tile, dense);
            let x = core::array::from_fn(|j| {
                let row = row + (8 * j * Gemm::X_STRIDE) as u32;
                let [a, b, c, d] = mma::load_matrices(row);
                let [e, f, g, h] = mma::load_matrices(row + 64);
                [a, b, c, d, e, f, g, h]
            });
            let [upper, lower] = acc;
            self.multiply_band(0, dense, &patches, &x, upper);
            self.multiply_band(1, dense + BAND_BYTES as u32, &patches, &x, lower);
        }
    }

    /// Decodes a band and multiplies it by the activations `x`, eight registers for each 8 tokens.
    #[inline(always)]
    unsafe fn multiply_band(
        &self,
        band: u32,
        dense: u32,
        patches: &Patches,
        x: &[[u32; 8]; N_TILES],
        acc: &mut [[f32; 4]; N_TILES],
    ) {
        // SAFETY: `run`'s.
        unsafe {
            self.patch::<false>(patches, band);
            thread::sync_warp();
            let words = core::array::from_fn(|w| {
                memory::load_u32(dense + (BITMAPS_AT + w * BITMAP_BYTES) as u32 + 4 * self.lane)
            });
            let bases = |s: u32| memory::load_u32x4(self.bases() + s * 512 + 16 * self.lane);
            let bytes = |h: u32| memory::load_u32x4(dense + h * HALF_BYTES as u32 + 16 * self.lane);
            let mut step = |s: usize, a: [u32; 4]| {
                for (acc, x) in acc.iter_mut().zip(x) {
                    mma::mma_16x8x16(acc, a, [x[2 * s], x[2 * s + 1]]);
                }
            };
            let [b0, b1, b2, b3] = bytes(0);
            step(0, decode::kstep::<0>([b0, b1], words, bases(0)));
            step(1, decode::kstep::<1>([b2, b3], words, bases(1)));
            let [b0, b1, b2, b3] = bytes(1);
            step(2, decode::kstep::<2>([b0, b1], words, bases(2)));
            step(3, decode::kstep::<3>([b2, b3], words, bases(3)));
            thread::sync_warp();
            self.patch::<true>(patches, band);
            thread::sync_warp();
        }
    }

    /// The patches of the warp's tile, in the stage at `stage`.
    #[inline(always)]
    unsafe fn patches(&self, tile: u32, stage: u32) -> Patches {
        // SAFETY: `run`'s; a lane's slot, at most 7 + 31, lies in the stage.
        unsafe {
            let count = memory::load_u32(stage + Gemm::COUNT_AT as u32);
            let (first, count) = (count & 7, count >> 3);
            let slot = stage + Gemm::PATCHES_AT as u32 + 2 * (first + self.lane);
            let patch = Patch(memory::load_u16(slot));
            let position = if self.lane < count { u32::from(patch.position()) } else { u32::MAX };
            Patches { position, base: patch.base(), count, tile }
        }
    }

    /// Stores the bases of the patches of `band` in the warp's table, or the matrix's base with
    /// `RESTORE`.
    #[inline(always)]
    unsafe fn patch<const RESTORE: bool>(&self, patches: &Patches, band: u32) {
        const BAND: u32 = (BAND_ROWS * TILE_COLS) as u32;
        let matrix_base = (self.args.base as u16) << 7;
        let store = |position: u32, base: u16| {
            if position / BAND == band {
                let at = self.bases() + 2 * (position % BAND);
                // SAFETY: inside the warp's table.
                unsafe { memory::store_u16(at, if RESTORE { matrix_base } else { base }) }
            }
        };
        store(patches.position, patches.base);
        if patches.count > LANES as u32 {
            // SAFETY: the section holds `count` patches of this tile.
            unsafe {
                let first = memory::load_global_u32(self.args.offsets.add(patches.tile as usize));
                let mut index = LANES as u32 + self.lane;
                while index < patches.count {
                    let patch = Patch(*self.args.patches.add((first + index) as usize));
                    store(u32::from(patch.position()), patch.base());
                    index += LANES as u32;
                }
            }
        }
    }

    /// Ends a row block of which the warps hold sums over the tile columns `from..to`: hands
    /// them to the block that has the last columns, or adds those of the blocks before, adds up
    /// groups, and writes the output.
    #[inline(always)]
    unsafe fn finish(
        &self,
        row_block: u32,
        row_block_start: u32,
        from: u32,
        to: u32,
        acc: &mut [[[f32; 4]; N_TILES]; BANDS],
    ) {
        // SAFETY: `run`'s.
        unsafe {
            if to < self.tile_cols {
                return self.hand_over(acc);
            }
            if from > 0 {
                for block in self.work.block_of(row_block_start)..self.block {
                    self.take_over(block, acc);
                }
            }
            let rows = (TILE_ROWS * STRIPS) as u32;
            let stride = Self::SHAPE.sums_stride() as u32;
            let sums = self.shared + Self::SHAPE.sums_at() as u32;
            let slot = |group: u32, n: u32, row: u32| sums + 4 * ((group * 8 + n) * stride + row);
            let thread = thread::thread() as u32;
            let row = self.strip * TILE_ROWS as u32 + self.lane / 4;
            // Eight tokens at a time.
            unroll!(J < N_TILES => {
                let n = 2 * (self.lane % 4);
                for (row, acc) in [(row, &acc[0]), (row + BAND_ROWS as u32, &acc[1])] {
                    let [a, b, c, d] = acc[J];
                    memory::store_f32(slot(self.group, n, row), a);
                    memory::store_f32(slot(self.group, n + 1, row), b);
                    memory::store_f32(slot(self.group, n, row + 8), c);
                    memory::store_f32(slot(self.group, n + 1, row + 8), d);
                }
                thread::sync_block();
                let mut index = thread;
                while index < rows * 8 {
                    let (n, row) = (index / rows, index % rows);
                    let mut sum = 0.0;
                    for group in 0..GROUPS as u32 {
                        sum += memory::load_f32(slot(group, n, row));
                    }
                    self.write(row_block * rows + row, 8 * J as u32 + n, sum);
                    index += Self::THREADS;
                }
                // The sums have been read: the next may overwrite them.
                thread::sync_block();
            });
        }
    }

    /// This lane's place for sums that `block` hands over.
    #[inline(always)]
    unsafe fn partial(&self, block: u32, band: usize, j: usize) -> *mut f32 {
        let warp = block as usize * Self::SHAPE.warps() + self.warp as usize;
        let index = (warp * BANDS + band) * N_TILES + j;
        // SAFETY: the workspace has room for every block of the launch.
        unsafe { self.args.partials.add(4 * (index * LANES + self.lane as usize)) }
    }

    /// Leaves this warp's sums to a later block. Each float is its own flag: the place is empty
    /// as long as it holds a pattern that no sum has.
    #[inline(always)]
    unsafe fn hand_over(&self, [upper, lower]: &[[[f32; 4]; N_TILES]; BANDS]) {
        let flag = |sum: f32| match sum.to_bits() {
            Gemm::EMPTY => f32::NAN.to_bits(),
            bits => bits,
        };
        // SAFETY: `run`'s.
        unroll!(J < N_TILES => {
            unsafe {
                memory::publish_u32x4(self.partial(self.block, 0, J), upper[J].map(flag));
                memory::publish_u32x4(self.partial(self.block, 1, J), lower[J].map(flag));
            }
        });
    }

    /// Waits for the sums of an earlier block, adds them, and leaves the place empty for the
    /// next launch. Blocks start in order, so that the one waited for runs or has run.
    #[inline(always)]
    unsafe fn take_over(&self, block: u32, [upper, lower]: &mut [[[f32; 4]; N_TILES]; BANDS]) {
        // SAFETY: `run`'s.
        unsafe {
            self.take_over_band(self.partial(block, 0, 0), upper);
            self.take_over_band(self.partial(block, 1, 0), lower);
        }
    }

    #[inline(always)]
    unsafe fn take_over_band(&self, from: *mut f32, acc: &mut [[f32; 4]; N_TILES]) {
        let at = |j: usize| from.wrapping_add(4 * LANES * j);
        let add = |acc: &mut [f32; 4], j: usize, first: [u32; 4]| {
            let mut sums = first;
            let [a, b, c, d] = loop {
                let [a, b, c, d] = sums;
                if [a, b, c, d].map(|sum| sum != Gemm::EMPTY) == [true; 4] {
                    break sums.map(f32::from_bits);
                }
                // SAFETY: `run`'s.
                sums = unsafe { memory::observe_u32x4(at(j)) };
            };
            *acc = [acc[0] + a, acc[1] + b, acc[2] + c, acc[3] + d];
            // SAFETY: `run`'s.
            unsafe { memory::publish_u32x4(at(j), [Gemm::EMPTY; 4]) };
        };
        // SAFETY: `run`'s. All loads are in flight before the first is looked at.
        let first = core::array::from_fn::<_, N_TILES, _>(|j| unsafe { memory::observe_u32x4(at(j)) });
        unroll!(J < N_TILES => { add(&mut acc[J], J, first[J]) });
    }

    #[inline(always)]
    unsafe fn write(&self, row: u32, n: u32, sum: f32) {
        if row < self.args.m && n < self.args.n {
            // SAFETY: `row < m` and `n < args.n`.
            unsafe {
                let at = n as usize * self.args.m as usize + row as usize;
                *self.args.y.add(at) = crate::arch::mma::to_bf16(sum);
            }
        }
    }
}

/// The patches of a warp's tile. Most tiles have fewer than 32, so that one a lane, in
/// registers, is all; further ones are read from global memory.
struct Patches {
    /// Position of this lane's patch, or one past all positions.
    position: u32,
    base: u16,
    count: u32,
    tile: u32,
}
