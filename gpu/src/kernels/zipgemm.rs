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
    args::GemmArgs,
    arch::{barrier, copy, grid, memory, mma, thread},
    decode,
    launch::Gemm,
    layout::*,
};

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
    args: &GemmArgs,
) {
    let mut block = Block::<N_TILES, STRIPS, GROUPS, STAGES>::new(args);
    // SAFETY: the caller's promise, passed on.
    unsafe { block.run() }
}

/// A thread's view of its block.
struct Block<'a, const N_TILES: usize, const STRIPS: usize, const GROUPS: usize, const STAGES: usize>
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

/// A warp's place in its group's run of units, ahead of or at the one it multiplies.
#[derive(Clone, Copy)]
struct Unit {
    tile_col: u32,
    /// Strip of this warp, and its tile.
    strip: u32,
    tile: u32,
    /// Units to come, this one included.
    left: u32,
}

impl<'a, const N_TILES: usize, const STRIPS: usize, const GROUPS: usize, const STAGES: usize>
    Block<'a, N_TILES, STRIPS, GROUPS, STAGES>
{
    const SHAPE: Gemm = Gemm { n_tiles: N_TILES, strips: STRIPS, groups: GROUPS, stages: STAGES };
    const THREADS: u32 = Self::SHAPE.threads() as u32;

    #[inline(always)]
    fn new(args: &'a GemmArgs) -> Self {
        let warp = thread::warp();
        let tile_cols = args.k.div_ceil(TILE_COLS as u32);
        let strips = args.m.div_ceil(TILE_ROWS as u32);
        // SAFETY: every thread has a place in the grid.
        let blocks = unsafe { thread::blocks() } as u32;
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
            work: Work::new(strips.div_ceil(STRIPS as u32) * tile_cols, blocks),
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
        let index = self.group * STAGES as u32 + stage;
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
        self.shared + before as u32 + 16 * (self.group * STAGES as u32 + stage)
    }

    #[inline(always)]
    fn x_empty(&self, stage: u32) -> u32 {
        self.x_full(stage) + 8
    }

    #[inline(always)]
    unsafe fn run(&mut self) {
        grid::launch_dependents();
        // SAFETY: every thread has a place in the grid.
        let block = unsafe { thread::block() } as u32;
        let (start, end) = (self.work.start(block), self.work.start(block + 1));
        let mut row_block = start.checked_div(self.tile_cols).unwrap_or(0);
        let mut row_block_start = row_block * self.tile_cols;
        let leader = self.strip == 0;

        let mut next = self.first_unit(row_block, start - row_block_start, end - start);
        let mut next_x = next;
        let mut unit = next;
        // SAFETY: addresses lie in the block's shared memory by the shape's arithmetic; global
        // ranges are the caller's promise.
        unsafe {
            if self.lane == 0 {
                for stage in 0..STAGES as u32 {
                    barrier::init(self.weights_full(stage), 1);
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
                for stage in 0..STAGES as u32 {
                    self.copy_x(&mut next_x, stage);
                }
            }
            thread::sync_block();

            let (mut stage, mut parity) = (0, 0);
            let mut refill_x = false;
            while row_block_start < end {
                let from = start.max(row_block_start) - row_block_start;
                let to = self.tile_cols.min(end - row_block_start);
                let strip = row_block * STRIPS as u32 + self.strip;
                let mut acc = [[[0f32; 4]; N_TILES]; BANDS];
                while unit.left > 0 && unit.strip == strip {
                    if STRIPS > 1 && leader && refill_x {
                        let (stage, parity) = Self::before(stage, parity);
                        barrier::wait(self.x_empty(stage), parity);
                        self.copy_x(&mut next_x, stage);
                    }
                    refill_x = true;
                    barrier::wait(self.weights_full(stage), parity);
                    barrier::wait(self.x_full(stage), parity);
                    if strip < self.strips {
                        self.multiply(unit.tile, stage, &mut acc);
                    }
                    thread::sync_warp();
                    if STRIPS > 1 {
                        if self.lane == 0 {
                            barrier::arrive(self.x_empty(stage));
                        }
                    } else {
                        self.copy_x(&mut next_x, stage);
                    }
                    self.copy_weights(&mut next, &mut patches, stage);
                    (stage, parity) = Self::after(stage, parity);
                    self.advance(&mut unit);
                }
                self.finish(row_block, from, to, row_block_start, block, &acc);
                row_block += 1;
                row_block_start += self.tile_cols;
            }
        }
    }

    /// The stage after `stage`, and the parity of its next phase.
    #[inline(always)]
    fn after(stage: u32, parity: u32) -> (u32, u32) {
        if stage + 1 == STAGES as u32 { (0, parity ^ 1) } else { (stage + 1, parity) }
    }

    /// The stage before `stage`, and the parity of its last phase.
    #[inline(always)]
    fn before(stage: u32, parity: u32) -> (u32, u32) {
        if stage == 0 { (STAGES as u32 - 1, parity ^ 1) } else { (stage - 1, parity) }
    }

    /// This warp's first unit of the block's `count`, from `tile_col` of `row_block` on.
    #[inline(always)]
    fn first_unit(&self, row_block: u32, tile_col: u32, count: u32) -> Unit {
        let strip = row_block * STRIPS as u32 + self.strip;
        let mut unit = Unit {
            tile_col: tile_col + self.group,
            strip,
            tile: strip * self.tile_cols + tile_col + self.group,
            left: count.saturating_sub(self.group).div_ceil(GROUPS as u32),
        };
        self.carry(&mut unit);
        unit
    }

    /// Moves to the group's next unit.
    #[inline(always)]
    fn advance(&self, unit: &mut Unit) {
        unit.left -= 1;
        unit.tile_col += GROUPS as u32;
        unit.tile += GROUPS as u32;
        self.carry(unit);
    }

    #[inline(always)]
    fn carry(&self, unit: &mut Unit) {
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
    unsafe fn multiply(&self, tile: u32, stage: u32, acc: &mut [[[f32; 4]; N_TILES]; BANDS]) {
        let dense = self.weights(stage);
        let row = self.x(stage) + self.lane % 8 * Gemm::X_STRIDE as u32 + self.lane / 8 * 16;
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
        acc: &[[[f32; 4]; N_TILES]; BANDS],
    ) {
        let shape = Self::SHAPE;
        let rows = (TILE_ROWS * STRIPS) as u32;
        let stride = shape.sums_stride() as u32;
        let sums = self.shared + shape.sums_at() as u32;
        let slot = |group: u32, n: u32, row: u32| sums + 4 * ((group * 8 + n) * stride + row);
        // SAFETY: `run`'s.
        unsafe {
            let thread = thread::thread() as u32;
            let whole = from == 0 && to == self.tile_cols;
            let partial = |block: u32, first: bool| {
                let index = 2 * block + u32::from(first);
                self.args.partials.add(index as usize * rows as usize * 8 * N_TILES)
            };
            let mine = partial(block, from == 0);
            // Eight tokens at a time.
            for j in 0..N_TILES {
                for (band, acc) in acc.iter().enumerate() {
                    for (i, &sum) in acc[j].iter().enumerate() {
                        let row = self.strip * TILE_ROWS as u32
                            + (band * BAND_ROWS + 8 * (i / 2)) as u32
                            + self.lane / 4;
                        let n = (i % 2) as u32 + 2 * (self.lane % 4);
                        memory::store_f32(slot(self.group, n, row), sum);
                    }
                }
                thread::sync_block();
                let mut index = thread;
                while index < rows * 8 {
                    let (n, row) = (index / rows, index % rows);
                    let mut sum = 0.0;
                    for group in 0..GROUPS as u32 {
                        sum += memory::load_f32(slot(group, n, row));
                    }
                    let n = 8 * j as u32 + n;
                    if whole {
                        self.write(row_block * rows + row, n, sum);
                    } else {
                        *mine.add((n * rows + row) as usize) = sum;
                    }
                    index += Self::THREADS;
                }
                // The sums have been read: the next may overwrite them.
                thread::sync_block();
            }
            if whole {
                return;
            }

            let first = self.work.block_of(row_block_start);
            let last = self.work.block_of(row_block_start + self.tile_cols - 1);
            let counter = self.args.counters.add(row_block as usize);
            let flag = self.shared + shape.flag_at() as u32;
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
