//! What a launch multiplies: one matrix, or those of the experts that tokens were sent to.
//!
//! The kernel goes through *output tiles*: a row block, of some strips, for up to 8 x N tokens.

use core::mem;

use crate::{
    arch::{grid, memory, thread},
    args::{GemmArgs, Group, GroupedArgs, NOWHERE, Output},
    kernels::experts::expert,
    launch::Gemm,
    layout::TILE_ROWS,
};

/// Where the output tiles of a launch are.
pub trait Problem<'a>: Copy {
    /// Whether it is one of experts' matrices: their activations and outputs have places of their own.
    const GROUPED: bool;

    /// What both have.
    fn gemm(&self) -> &'a GemmArgs;

    /// Output tiles of `WARPS_M` strips each.
    fn tiles<const WARPS_M: usize>(&self) -> u32;

    /// The same for a block whose first output tile is `first`, and which has [`Gemm::GROUPS_BYTES`] at `shared` if it is
    /// [grouped](Self::GROUPED).
    #[must_use]
    fn of_run<const WARPS_M: usize>(self, first: u32, shared: u32) -> Self;

    /// Brings what the block will ask for to shared memory: `lane`'s part of what a warp does before any other asks.
    ///
    /// # Safety
    /// The shared memory is the block's, as [`of_run`](Self::of_run) says.
    unsafe fn load(&self, lane: u32);

    /// The strip of the matrix that is the `strip`-th of an output tile, if there is one.
    fn strip<const WARPS_M: usize>(&self, tile: u32, strip: u32) -> Option<u32>;

    /// First token of an output tile, and how many it has.
    fn tokens<const WARPS_M: usize>(&self, tile: u32) -> (u32, u32);

    /// The row of activations of a token.
    fn row(&self, token: u32) -> u32;

    /// Where outputs of a tile go, how many features and tokens there are, and the tile's first feature. `own` is room
    /// for what is not the same for all tiles.
    fn output<'o, const WARPS_M: usize>(
        &'o self,
        tile: u32,
        own: &'o mut Option<Output>,
    ) -> (&'o Output, u32, u32, u32);
}

/// The strips of a matrix that a row block has: some that follow one another, or if outputs are gated, half of them in
/// the first half of the features, and those that these are multiplied by.
#[derive(Clone, Copy)]
struct RowBlocks {
    /// Strips of the matrix, or of a half.
    part: u32,
    is_gated: bool,
}

impl RowBlocks {
    #[inline(always)]
    fn new(args: &GemmArgs) -> Self {
        Self {
            // Worked out again where it is wanted, for threads that multiply are short of registers.
            part: thread::opaque(args.m).div_ceil(TILE_ROWS as u32) >> u32::from(args.is_gated),
            is_gated: args.is_gated,
        }
    }

    /// Strips that follow one another.
    #[inline(always)]
    fn width<const WARPS_M: usize>(self) -> u32 {
        if WARPS_M > 1 && self.is_gated {
            WARPS_M as u32 / 2
        } else {
            WARPS_M as u32
        }
    }

    /// How many row blocks there are.
    #[inline(always)]
    fn count<const WARPS_M: usize>(self) -> u32 {
        if WARPS_M > 1 && self.is_gated {
            self.part.div_ceil(WARPS_M as u32 / 2)
        } else {
            self.part.div_ceil(WARPS_M as u32)
        }
    }

    /// The strip of the matrix that is the `strip`-th of a row block, if there is one.
    #[inline(always)]
    fn strip<const WARPS_M: usize>(self, row_block: u32, strip: u32) -> Option<u32> {
        let width = self.width::<WARPS_M>();
        let half = u32::from(strip >= width);
        let in_part = row_block * width + strip - half * width;
        (in_part < self.part).then_some(half * self.part + in_part)
    }

    /// The first output feature of a row block.
    #[inline(always)]
    fn first_feature<const WARPS_M: usize>(self, row_block: u32) -> u32 {
        row_block * self.width::<WARPS_M>() * TILE_ROWS as u32
    }
}

/// Y = X W^T.
#[derive(Clone, Copy)]
pub struct Single<'a> {
    args: &'a GemmArgs,
}

impl<'a> Single<'a> {
    /// Of its arguments.
    #[inline(always)]
    pub fn new(args: &'a GemmArgs) -> Self {
        Self { args }
    }
}

impl<'a> Problem<'a> for Single<'a> {
    const GROUPED: bool = false;

    #[inline(always)]
    fn gemm(&self) -> &'a GemmArgs {
        self.args
    }

    #[inline(always)]
    fn of_run<const WARPS_M: usize>(self, _first: u32, _shared: u32) -> Self {
        self
    }

    #[inline(always)]
    unsafe fn load(&self, _lane: u32) {}

    #[inline(always)]
    fn tiles<const WARPS_M: usize>(&self) -> u32 {
        RowBlocks::new(self.args).count::<WARPS_M>()
    }

    #[inline(always)]
    fn strip<const WARPS_M: usize>(&self, tile: u32, strip: u32) -> Option<u32> {
        RowBlocks::new(self.args).strip::<WARPS_M>(tile, strip)
    }

    #[inline(always)]
    fn tokens<const WARPS_M: usize>(&self, _tile: u32) -> (u32, u32) {
        (0, self.args.n)
    }

    #[inline(always)]
    fn row(&self, token: u32) -> u32 {
        token
    }

    #[inline(always)]
    fn output<'o, const WARPS_M: usize>(
        &'o self,
        tile: u32,
        _own: &'o mut Option<Output>,
    ) -> (&'o Output, u32, u32, u32) {
        let features = self.args.m >> u32::from(self.args.is_gated);
        let first = RowBlocks::new(self.args).first_feature::<WARPS_M>(tile);
        (&self.args.output, features, self.args.n, first)
    }
}

/// Y[t] = X[t] W[e(t)]^T for tokens in the order of their experts, or for one token and each of its experts, whose
/// assignments are groups as they are. Output tiles of an expert follow one another, so
/// that its weights are read by blocks at the same time where it has more tokens than a tile.
#[derive(Clone, Copy)]
pub struct Experts<'a, const N_TILES: usize> {
    args: &'a GroupedArgs,
    /// Strips of an expert's matrix.
    strips: u32,
    /// Groups of tokens.
    groups: u32,
    /// The group of the block's first output tile. It and those behind it are in shared memory at `near`, as many as
    /// there is room for, which is mostly all that the block's run touches.
    first: u32,
    near: u32,
}

/// Bytes of a group.
const GROUP_BYTES: u32 = mem::size_of::<Group>() as u32;

impl<'a, const N_TILES: usize> Experts<'a, N_TILES> {
    /// Whether assignments may be unsorted: those of a single token are for the kernel for fewest.
    const TAKES_UNSORTED: bool = N_TILES == 1;

    /// Of its arguments, once [routing](crate::kernels::experts::route) is done.
    #[inline(always)]
    pub fn new(args: &'a GroupedArgs) -> Self {
        if args.follows_routing {
            grid::wait_dependencies();
        }
        Self {
            args,
            strips: args.gemm.m.div_ceil(TILE_ROWS as u32),
            groups: if Self::TAKES_UNSORTED && !args.unsorted.numbers.is_null() {
                args.unsorted.assignments
            } else {
                // SAFETY: routing has written it.
                unsafe { memory::observe_u32(args.group_count) }
            },
            first: 0,
            near: 0,
        }
    }

    /// Group and row block of an output tile.
    #[inline(always)]
    fn place<const WARPS_M: usize>(&self, tile: u32) -> (Group, u32) {
        let row_blocks = RowBlocks::new(&self.args.gemm).count::<WARPS_M>();
        let group = tile.checked_div(row_blocks).unwrap_or(0);
        let row_block = tile - group * row_blocks;
        let index = group.wrapping_sub(self.first);
        if index >= Gemm::NEAR_GROUPS as u32 {
            return (self.group(group), row_block);
        }
        // SAFETY: a warp has loaded it before, see `Problem::load`.
        let [expert, first, tokens, _] =
            unsafe { memory::load_u32x4(self.near + index * GROUP_BYTES) };
        ([expert, first, tokens].into(), row_block)
    }

    /// A group, from where routing has left it. What an earlier kernel's loads have left in the first-level cache is not
    /// looked at, for this one may not have waited.
    #[inline(always)]
    fn group(&self, group: u32) -> Group {
        if Self::TAKES_UNSORTED && !self.args.unsorted.numbers.is_null() {
            // SAFETY: the router has written them, and this kernel or one ahead has waited for it.
            let expert = unsafe { expert(&self.args.unsorted, group) };
            return Group {
                expert,
                first: group,
                tokens: u32::from(expert != NOWHERE),
            };
        }
        // SAFETY: routing has written the group.
        let [expert, first, tokens, _] =
            unsafe { memory::observe_u32x4(self.args.groups.wrapping_add(group as usize).cast()) };
        [expert, first, tokens].into()
    }
}

impl<'a, const N_TILES: usize> Problem<'a> for Experts<'a, N_TILES> {
    const GROUPED: bool = true;

    #[inline(always)]
    fn gemm(&self) -> &'a GemmArgs {
        &self.args.gemm
    }

    #[inline(always)]
    fn of_run<const WARPS_M: usize>(self, first: u32, shared: u32) -> Self {
        let row_blocks = RowBlocks::new(&self.args.gemm).count::<WARPS_M>();
        Self {
            first: first.checked_div(row_blocks).unwrap_or(0),
            near: shared,
            ..self
        }
    }

    #[inline(always)]
    unsafe fn load(&self, lane: u32) {
        let group = self.first + lane;
        if lane < Gemm::NEAR_GROUPS as u32 && group < self.groups {
            let Group {
                expert,
                first,
                tokens,
            } = self.group(group);
            // SAFETY: the caller's promise.
            unsafe {
                memory::store_u32x4(self.near + lane * GROUP_BYTES, [expert, first, tokens, 0])
            };
        }
    }

    #[inline(always)]
    fn tiles<const WARPS_M: usize>(&self) -> u32 {
        self.groups * RowBlocks::new(&self.args.gemm).count::<WARPS_M>()
    }

    #[inline(always)]
    fn strip<const WARPS_M: usize>(&self, tile: u32, strip: u32) -> Option<u32> {
        let (group, row_block) = self.place::<WARPS_M>(tile);
        if Self::TAKES_UNSORTED && group.tokens == 0 {
            return None;
        }
        let strip = RowBlocks::new(&self.args.gemm).strip::<WARPS_M>(row_block, strip)?;
        Some(group.expert * self.strips + strip)
    }

    #[inline(always)]
    fn tokens<const WARPS_M: usize>(&self, tile: u32) -> (u32, u32) {
        let (group, _) = self.place::<WARPS_M>(tile);
        (group.first, group.tokens)
    }

    #[inline(always)]
    fn row(&self, token: u32) -> u32 {
        match self.args.rows.is_null() {
            true => token,
            // SAFETY: there is one for each token; only threads that have waited for the kernel before ask.
            false => unsafe { *self.args.rows.add(token as usize) },
        }
    }

    #[inline(always)]
    fn output<'o, const WARPS_M: usize>(
        &'o self,
        tile: u32,
        own: &'o mut Option<Output>,
    ) -> (&'o Output, u32, u32, u32) {
        let (group, row_block) = self.place::<WARPS_M>(tile);
        let Output {
            y, pitch, is_f32, ..
        } = self.args.gemm.output;
        let output = Output {
            y: y.wrapping_add(group.first as usize * pitch as usize),
            pitch,
            is_f32,
            // Known when this is compiled, which saves registers.
            bias: core::ptr::null(),
            accumulate: false,
        };
        let features = self.args.gemm.m >> u32::from(self.args.gemm.is_gated);
        let first = RowBlocks::new(&self.args.gemm).first_feature::<WARPS_M>(row_block);
        (own.insert(output), features, group.tokens, first)
    }
}
