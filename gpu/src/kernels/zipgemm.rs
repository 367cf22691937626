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
//! row block is shared by several thread blocks, the last of them to finish adds up all partial
//! sums in the order of blocks, so that the same inputs always give the same bits.
//!
//! Budget, for each weight of a lane: 0.28 shared loads, 2.2 for the decode, 0.25 for patches,
//! 0.13 mma for each 8 tokens, 0.4 for barriers, refill and loop: 3.4 issue slots, where 132
//! multiprocessors at 3 TB/s leave 13.6.

use crate::{
    arch::{barrier, copy, grid, memory, mma, thread},
    decode,
    launch::Gemm,
    layout::*,
};

/// The operands of one call; the host passes them as kernel parameters.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Args {
    /// Output, N rows of M BF16.
    pub y: *mut u16,
    /// Activations, N rows of K BF16.
    pub x: *const u16,
    /// Dense part of the weights.
    pub dense: *const u8,
    /// Index of each tile's first patch.
    pub offsets: *const u32,
    /// Patches.
    pub patches: *const u16,
    /// Partial sums of row blocks that thread blocks share: two a block.
    pub partials: *mut f32,
    /// One zeroed counter for each row block; zero again when the kernel ends.
    pub counters: *mut u32,
    /// Output features.
    pub m: u32,
    /// Tokens.
    pub n: u32,
    /// Input features.
    pub k: u32,
    /// The matrix's base exponent.
    pub base: u32,
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
>(
    args: &Args,
) {
    let mut block = Block::<N_TILES, STRIPS, GROUPS, STAGES>::new(args);
    // SAFETY: the caller's promise, passed on.
    unsafe { block.run() }
}

/// A thread's view of its block.
struct Block<'a, const N_TILES: usize, const STRIPS: usize, const GROUPS: usize, const STAGES: usize>
{
    args: &'a Args,
    shared: u32,
    lane: u32,
    /// Strip and group of this warp.
    strip: u32,
    group: u32,
    /// Tiles along K, and strips of the matrix.
    tile_cols: u32,
    strips: u32,
    /// Whether activations can be copied in bulk.
    x_bulk: bool,
    work: Work,
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

/// The next unit that a group's leader will copy, with the patch offsets of this lane's strip.
struct Next {
    row_block: u32,
    tile_col: u32,
    /// Units still to copy.
    left: u32,
    patches: [u32; 2],
}

impl<'a, const N_TILES: usize, const STRIPS: usize, const GROUPS: usize, const STAGES: usize>
    Block<'a, N_TILES, STRIPS, GROUPS, STAGES>
{
    const SHAPE: Gemm = Gemm { n_tiles: N_TILES, strips: STRIPS, groups: GROUPS, stages: STAGES };
    const THREADS: u32 = Self::SHAPE.threads() as u32;

    #[inline(always)]
    fn new(args: &'a Args) -> Self {
        let warp = thread::warp();
        let tile_cols = args.k.div_ceil(TILE_COLS as u32);
        let strips = args.m.div_ceil(TILE_ROWS as u32);
        // SAFETY: every thread has a place in the grid.
        let blocks = unsafe { thread::blocks() } as u32;
        Self {
            args,
            shared: memory::shared(),
            lane: thread::lane(),
            strip: warp % STRIPS as u32,
            group: warp / STRIPS as u32,
            tile_cols,
            strips,
            x_bulk: args.k % 8 == 0 && args.x as u64 % 16 == 0,
            work: Work::new(strips.div_ceil(STRIPS as u32) * tile_cols, blocks),
        }
    }

    #[inline(always)]
    fn stage(&self, stage: u32) -> u32 {
        self.shared + (self.group * STAGES as u32 + stage) * Self::SHAPE.stage_bytes() as u32
    }

    #[inline(always)]
    fn full(&self, stage: u32) -> u32 {
        self.shared
            + Self::SHAPE.barriers_at() as u32
            + 16 * (self.group * STAGES as u32 + stage)
    }

    #[inline(always)]
    fn empty(&self, stage: u32) -> u32 {
        self.full(stage) + 8
    }

    #[inline(always)]
    fn bases(&self) -> u32 {
        let warp = self.group * STRIPS as u32 + self.strip;
        self.shared + Self::SHAPE.bases_at() as u32 + warp * Gemm::BASES_BYTES as u32
    }

    #[inline(always)]
    unsafe fn run(&mut self) {
        grid::launch_dependents();
        // SAFETY: every thread has a place in the grid.
        let block = unsafe { thread::block() } as u32;
        let (start, end) = (self.work.start(block), self.work.start(block + 1));
        let first_row_block = start.checked_div(self.tile_cols).unwrap_or(0);
        let first_col = start - first_row_block * self.tile_cols;

        let leader = self.strip == 0;
        let mut next = self.first_unit(first_row_block, first_col, end - start);
        // SAFETY: addresses lie in the block's shared memory by the shape's arithmetic; global
        // ranges are the caller's promise.
        unsafe {
            if leader {
                if self.lane == 0 {
                    for stage in 0..STAGES as u32 {
                        barrier::init(self.full(stage), 2);
                        barrier::init(self.empty(stage), STRIPS as u32);
                    }
                    barrier::fence_init();
                }
                thread::sync_warp();
                // Weights never depend on an earlier kernel, activations do.
                let mut ahead = self.first_unit(first_row_block, first_col, end - start);
                for stage in 0..STAGES as u32 {
                    if next.left > 0 {
                        self.copy_weights(&mut next, stage);
                    }
                }
                self.fill_bases();
                grid::wait_dependencies();
                for stage in 0..STAGES as u32 {
                    if ahead.left > 0 {
                        self.copy_x(ahead.tile_col, stage);
                        self.advance(&mut ahead);
                    }
                }
            } else {
                self.fill_bases();
                grid::wait_dependencies();
            }
            thread::sync_block();

            let mut ring = (0u32, 0u32);
            let mut refill = None;
            let mut tile_col = first_col + self.group;
            let mut row_block = first_row_block;
            let mut row_block_start = start - first_col;
            let mut segment = 0;
            while row_block_start < end {
                let row_block_end = self.tile_cols.min(end - row_block_start);
                let from = start.max(row_block_start) - row_block_start;
                let mut acc = [[[0f32; 4]; N_TILES]; BANDS];
                while tile_col < row_block_end {
                    let (stage, parity) = ring;
                    if leader && next.left > 0 {
                        if let Some((stage, parity)) = refill {
                            barrier::wait(self.empty(stage), parity);
                            let col = next.tile_col;
                            self.copy_weights(&mut next, stage);
                            self.copy_x(col, stage);
                        }
                        refill = Some(ring);
                    }
                    barrier::wait(self.full(stage), parity);
                    if row_block * STRIPS as u32 + self.strip < self.strips {
                        let tail = self.x_bulk && (tile_col + 1) * TILE_COLS as u32 > self.args.k;
                        self.multiply(row_block, tile_col, stage, tail, &mut acc);
                    }
                    thread::sync_warp();
                    if self.lane == 0 {
                        barrier::arrive(self.empty(stage));
                    }
                    ring = if stage + 1 == STAGES as u32 {
                        (0, parity ^ 1)
                    } else {
                        (stage + 1, parity)
                    };
                    tile_col += GROUPS as u32;
                }
                self.finish(row_block, from, row_block_end, row_block_start, block, segment, &acc);
                tile_col = tile_col.wrapping_sub(self.tile_cols);
                row_block += 1;
                row_block_start += self.tile_cols;
                segment += 1;
            }
        }
    }
}

impl<'a, const N_TILES: usize, const STRIPS: usize, const GROUPS: usize, const STAGES: usize>
    Block<'a, N_TILES, STRIPS, GROUPS, STAGES>
{
    /// This group's first unit of the `count` units of the block.
    #[inline(always)]
    fn first_unit(&self, row_block: u32, tile_col: u32, count: u32) -> Next {
        let mut next = Next {
            row_block,
            tile_col: tile_col + self.group,
            left: count.saturating_sub(self.group).div_ceil(GROUPS as u32),
            patches: [0; 2],
        };
        self.settle(&mut next);
        next
    }

    /// Moves to the group's next unit.
    #[inline(always)]
    fn advance(&self, next: &mut Next) {
        next.tile_col += GROUPS as u32;
        next.left -= 1;
        self.settle(next);
    }

    /// Carries the tile column over into the row block, and loads patch offsets well ahead of
    /// their use.
    #[inline(always)]
    fn settle(&self, next: &mut Next) {
        while next.tile_col >= self.tile_cols && next.left > 0 {
            next.tile_col -= self.tile_cols;
            next.row_block += 1;
        }
        let strip = next.row_block * STRIPS as u32 + self.lane;
        if next.left > 0 && self.lane < STRIPS as u32 && strip < self.strips {
            let tile = u64::from(strip) * u64::from(self.tile_cols) + u64::from(next.tile_col);
            // SAFETY: there is one offset more than there are tiles.
            unsafe {
                let offsets = self.args.offsets.add(tile as usize);
                next.patches = [memory::load_global_u32(offsets), memory::load_global_u32(offsets.add(1))];
            }
        }
    }

    /// Starts the copies of a unit's tiles and patches into `stage`, one lane a strip.
    #[inline(always)]
    unsafe fn copy_weights(&self, next: &mut Next, stage: u32) {
        let (at, full) = (self.stage(stage), self.full(stage));
        let strip = next.row_block * STRIPS as u32 + self.lane;
        // SAFETY: `run`'s.
        unsafe {
            if self.lane < STRIPS as u32 && strip < self.strips {
                let tile = u64::from(strip) * u64::from(self.tile_cols) + u64::from(next.tile_col);
                let [from, to] = next.patches;
                // Bulk copies want multiples of 16 bytes; the section is padded to allow it.
                let (first, last) = (from & !7, to.next_multiple_of(8));
                let patch_bytes = (2 * (last - first)).min(Gemm::PATCH_BYTES as u32);
                barrier::expect(full, TILE_BYTES as u32 + patch_bytes);
                let dense = self.args.dense.add(tile as usize * TILE_BYTES);
                copy::bulk(at + self.lane * TILE_BYTES as u32, dense, TILE_BYTES as u32, full);
                if patch_bytes > 0 {
                    let to = at + Self::SHAPE.patches_at() as u32 + self.lane * Gemm::PATCH_BYTES as u32;
                    let patches = self.args.patches.add(first as usize).cast();
                    copy::bulk(to, patches, patch_bytes, full);
                }
                let count = at + Self::SHAPE.counts_at() as u32 + 4 * self.lane;
                memory::store_u32(count, (to - from) << 3 | from & 7);
            }
            thread::sync_warp();
            if self.lane == 0 {
                barrier::arrive(full);
            }
        }
        self.advance(next);
    }

    /// Starts the copies of the activations of a tile column into `stage`, one lane a token.
    #[inline(always)]
    unsafe fn copy_x(&self, tile_col: u32, stage: u32) {
        let (at, full) = (self.stage(stage) + Self::SHAPE.x_at() as u32, self.full(stage));
        let col = tile_col * TILE_COLS as u32;
        let k = self.args.k;
        // SAFETY: `run`'s.
        unsafe {
            let x = self.args.x.add(col as usize);
            if self.x_bulk {
                let bytes = 2 * (k - col).min(TILE_COLS as u32);
                let mut n = self.lane;
                while n < self.args.n {
                    barrier::expect(full, bytes);
                    let from = x.add(n as usize * k as usize).cast();
                    copy::bulk(at + n * Gemm::X_STRIDE as u32, from, bytes, full);
                    n += 32;
                }
            } else {
                for n in 0..self.args.n {
                    let mut c = self.lane;
                    while c < TILE_COLS as u32 {
                        let value = if col + c < k {
                            *x.add(n as usize * k as usize + c as usize)
                        } else {
                            0
                        };
                        memory::store_u16(at + n * Gemm::X_STRIDE as u32 + 2 * c, value);
                        c += 32;
                    }
                }
            }
            thread::sync_warp();
            if self.lane == 0 {
                barrier::arrive(full);
            }
        }
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
        row_block: u32,
        tile_col: u32,
        stage: u32,
        tail: bool,
        acc: &mut [[[f32; 4]; N_TILES]; BANDS],
    ) {
        let at = self.stage(stage);
        let dense = at + self.strip * TILE_BYTES as u32;
        let row = at + Self::SHAPE.x_at() as u32
            + self.lane % 8 * Gemm::X_STRIDE as u32
            + self.lane / 8 * 16;
        // SAFETY: `run`'s.
        unsafe {
            let count = memory::load_u32(at + Self::SHAPE.counts_at() as u32 + 4 * self.strip);
            let patches = Patches {
                at: at + Self::SHAPE.patches_at() as u32 + self.strip * Gemm::PATCH_BYTES as u32,
                first: count & 7,
                count: count >> 3,
                strip: row_block * STRIPS as u32 + self.strip,
                tile_col,
            };
            let mut x = [[0; 8]; N_TILES];
            for (j, x) in x.iter_mut().enumerate() {
                let row = row + (8 * j * Gemm::X_STRIDE) as u32;
                let [low, high] = [mma::load_matrices(row), mma::load_matrices(row + 64)];
                *x = [low[0], low[1], low[2], low[3], high[0], high[1], high[2], high[3]];
                if tail {
                    for (i, x) in x.iter_mut().enumerate() {
                        if tile_col * TILE_COLS as u32 + 8 * i as u32 >= self.args.k {
                            *x = 0;
                        }
                    }
                }
            }
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
            self.patch(patches, band, |patch| patch.base());
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
            let base = (self.args.base as u16) << 7;
            self.patch(patches, band, |_| base);
            thread::sync_warp();
        }
    }

    /// Stores `base(patch)` in the warp's table for each patch of `band`.
    #[inline(always)]
    unsafe fn patch(&self, patches: &Patches, band: u32, base: impl Fn(Patch) -> u16) {
        let mut index = self.lane;
        while index < patches.count {
            let slot = 2 * (patches.first + index);
            // SAFETY: `run`'s; the section holds `count` patches of this tile.
            unsafe {
                let patch = Patch(if slot < Gemm::PATCH_BYTES as u32 {
                    memory::load_u16(patches.at + slot)
                } else {
                    let tile = u64::from(patches.strip) * u64::from(self.tile_cols)
                        + u64::from(patches.tile_col);
                    let first = memory::load_global_u32(self.args.offsets.add(tile as usize));
                    *self.args.patches.add((first + index) as usize)
                });
                let position = u32::from(patch.position());
                if position / (BAND_ROWS * TILE_COLS) as u32 == band {
                    let at = 2 * (position % (BAND_ROWS * TILE_COLS) as u32);
                    memory::store_u16(self.bases() + at, base(patch));
                }
            }
            index += LANES as u32;
        }
    }

    /// Adds up a row block over groups, and over blocks where several share it, and writes it.
    /// `from..to` are the tile columns that this block has multiplied.
    #[inline(always)]
    #[allow(clippy::too_many_arguments)]
    unsafe fn finish(
        &self,
        row_block: u32,
        from: u32,
        to: u32,
        row_block_start: u32,
        block: u32,
        segment: u32,
        acc: &[[[f32; 4]; N_TILES]; BANDS],
    ) {
        let shape = Self::SHAPE;
        let rows = (TILE_ROWS * STRIPS) as u32;
        let stride = shape.sums_stride() as u32;
        let sums = self.shared + (shape.sums_at() + (segment as usize % 2) * shape.sums_bytes()) as u32;
        let slot = |group: u32, n: u32, row: u32| {
            sums + 4 * ((group * 8 * N_TILES as u32 + n) * stride + row)
        };
        // SAFETY: `run`'s.
        unsafe {
            for (band, acc) in acc.iter().enumerate() {
                for (j, acc) in acc.iter().enumerate() {
                    for (i, &sum) in acc.iter().enumerate() {
                        let row = self.strip * TILE_ROWS as u32
                            + (band * BAND_ROWS + 8 * (i / 2)) as u32
                            + self.lane / 4;
                        let n = (8 * j + i % 2) as u32 + 2 * (self.lane % 4);
                        memory::store_f32(slot(self.group, n, row), sum);
                    }
                }
            }
            thread::sync_block();

            let thread = thread::thread() as u32;
            let whole = from == 0 && to == self.tile_cols;
            let partial = |block: u32, first: bool| {
                let index = 2 * block + u32::from(first);
                self.args.partials.add(index as usize * rows as usize * 8 * N_TILES)
            };
            let mine = partial(block, from == 0);
            let mut index = thread;
            while index < rows * self.args.n {
                let (n, row) = (index / rows, index % rows);
                let mut sum = 0.0;
                for group in 0..GROUPS as u32 {
                    sum += memory::load_f32(slot(group, n, row));
                }
                if whole {
                    self.write(row_block * rows + row, n, sum);
                } else {
                    *mine.add(index as usize) = sum;
                }
                index += Self::THREADS;
            }
            if whole {
                return;
            }

            let first = self.work.block_of(row_block_start);
            let last = self.work.block_of(row_block_start + self.tile_cols - 1);
            let counter = self.args.counters.add(row_block as usize);
            let flag = self.shared + (shape.barriers_at() + 16 * GROUPS * STAGES) as u32;
            thread::sync_block();
            if thread == 0 {
                grid::fence();
                memory::store_u32(flag, grid::add(counter, 1));
            }
            thread::sync_block();
            if memory::load_u32(flag) != last - first {
                return;
            }
            grid::fence();
            let mut index = thread;
            while index < rows * self.args.n {
                let mut sum = 0.0;
                for block in first..=last {
                    sum += partial(block, block == first).add(index as usize).read_volatile();
                }
                self.write(row_block * rows + index % rows, index / rows, sum);
                index += Self::THREADS;
            }
            if thread == 0 {
                counter.write_volatile(0);
            }
        }
    }

    #[inline(always)]
    unsafe fn write(&self, row: u32, n: u32, sum: f32) {
        if row < self.args.m {
            // SAFETY: `row < m` and `n < args.n`.
            unsafe {
                let at = n as usize * self.args.m as usize + row as usize;
                *self.args.y.add(at) = crate::arch::mma::to_bf16(sum);
            }
        }
    }
}

/// Where the patches of a warp's tile are.
struct Patches {
    /// Their copy in the stage, and the slot of the first in it.
    at: u32,
    first: u32,
    count: u32,
    /// The tile, to find those that did not fit.
    strip: u32,
    tile_col: u32,
}
