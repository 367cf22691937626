//! What a launch multiplies: one matrix, or those of the experts that tokens were sent to.
//!
//! The kernel goes through *output tiles*: a row block, of some strips, for up to 8 x N tokens.

use crate::{
    arch::grid,
    args::{GemmArgs, GroupedArgs, Output},
    layout::TILE_ROWS,
};

/// Where the output tiles of a launch are.
pub trait Problem: Copy {
    /// Whether it is one of experts' matrices: their activations and outputs have places of their own.
    const GROUPED: bool;

    /// What both have.
    fn gemm(&self) -> &GemmArgs;

    /// Output tiles of `WARPS_M` strips each.
    fn tiles<const WARPS_M: usize>(&self) -> u32;

    /// The strip of the matrix that is the `strip`-th of an output tile, if there is one.
    fn strip<const WARPS_M: usize>(&self, tile: u32, strip: u32) -> Option<u32>;

    /// First token of an output tile, and how many it has.
    fn tokens<const WARPS_M: usize>(&self, tile: u32) -> (u32, u32);

    /// The row of activations of a token.
    fn row(&self, token: u32) -> u32;

    /// Whether outputs are silu(first half) x (second half), of halves of an output tile's rows.
    fn is_gated(&self) -> bool;

    /// Where outputs of a tile go, how many features and tokens there are, and the tile's first feature. `own` is room
    /// for what is not the same for all tiles.
    fn output<'a, const WARPS_M: usize>(
        &'a self,
        tile: u32,
        own: &'a mut Option<Output>,
    ) -> (&'a Output, u32, u32, u32);
}

/// Y = X W^T.
#[derive(Clone, Copy)]
pub struct Single<'a> {
    args: &'a GemmArgs,
    strips: u32,
}

impl<'a> Single<'a> {
    /// Of its arguments.
    #[inline(always)]
    pub fn new(args: &'a GemmArgs) -> Self {
        Self {
            args,
            strips: args.m.div_ceil(TILE_ROWS as u32),
        }
    }
}

impl Problem for Single<'_> {
    const GROUPED: bool = false;

    #[inline(always)]
    fn gemm(&self) -> &GemmArgs {
        self.args
    }

    #[inline(always)]
    fn tiles<const WARPS_M: usize>(&self) -> u32 {
        self.strips.div_ceil(WARPS_M as u32)
    }

    #[inline(always)]
    fn strip<const WARPS_M: usize>(&self, tile: u32, strip: u32) -> Option<u32> {
        let strip = tile * WARPS_M as u32 + strip;
        (strip < self.strips).then_some(strip)
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
    fn is_gated(&self) -> bool {
        false
    }

    #[inline(always)]
    fn output<'a, const WARPS_M: usize>(
        &'a self,
        tile: u32,
        _own: &'a mut Option<Output>,
    ) -> (&'a Output, u32, u32, u32) {
        let first = tile * (WARPS_M * TILE_ROWS) as u32;
        (&self.args.output, self.args.m, self.args.n, first)
    }
}

/// Y[t] = X[t] W[e(t)]^T for tokens in the order of their experts. Output tiles of an expert follow one another, so
/// that its weights are read by blocks at the same time where it has more tokens than a tile.
#[derive(Clone, Copy)]
pub struct Experts<'a> {
    args: &'a GroupedArgs,
    /// Strips of an expert's matrix, and of those that a row block takes one after another: half of them, if outputs
    /// are gated.
    strips: u32,
    part: u32,
}

impl<'a> Experts<'a> {
    /// Of its arguments, once [routing](crate::kernels::route) is done.
    #[inline(always)]
    pub fn new(args: &'a GroupedArgs) -> Self {
        if args.follows_routing {
            grid::wait_dependencies();
        }
        let strips = args.gemm.m.div_ceil(TILE_ROWS as u32);
        Self {
            args,
            strips,
            part: strips >> u32::from(args.is_gated),
        }
    }

    /// Row blocks of an expert.
    #[inline(always)]
    fn row_blocks<const WARPS_M: usize>(&self) -> u32 {
        self.part.div_ceil(self.width::<WARPS_M>())
    }

    /// Strips of a row block that follow one another.
    #[inline(always)]
    fn width<const WARPS_M: usize>(&self) -> u32 {
        WARPS_M as u32 >> u32::from(self.args.is_gated)
    }

    /// Group and row block of an output tile.
    #[inline(always)]
    fn place<const WARPS_M: usize>(&self, tile: u32) -> (u32, u32) {
        let row_blocks = self.row_blocks::<WARPS_M>();
        let group = tile.checked_div(row_blocks).unwrap_or(0);
        (group, tile - group * row_blocks)
    }
}

impl Problem for Experts<'_> {
    const GROUPED: bool = true;

    #[inline(always)]
    fn gemm(&self) -> &GemmArgs {
        &self.args.gemm
    }

    #[inline(always)]
    fn tiles<const WARPS_M: usize>(&self) -> u32 {
        // SAFETY: routing has written it.
        unsafe { *self.args.group_count * self.row_blocks::<WARPS_M>() }
    }

    #[inline(always)]
    fn strip<const WARPS_M: usize>(&self, tile: u32, strip: u32) -> Option<u32> {
        let (group, row_block) = self.place::<WARPS_M>(tile);
        // SAFETY: routing has written the group.
        let expert = unsafe { (*self.args.groups.add(group as usize)).expert };
        let width = self.width::<WARPS_M>();
        let half = u32::from(strip >= width);
        let in_part = row_block * width + strip - half * width;
        (in_part < self.part).then_some(expert * self.strips + half * self.part + in_part)
    }

    #[inline(always)]
    fn tokens<const WARPS_M: usize>(&self, tile: u32) -> (u32, u32) {
        let (group, _) = self.place::<WARPS_M>(tile);
        // SAFETY: routing has written the group.
        let group = unsafe { &*self.args.groups.add(group as usize) };
        (group.first, group.tokens)
    }

    #[inline(always)]
    fn row(&self, token: u32) -> u32 {
        match self.args.rows.is_null() {
            true => token,
            // SAFETY: there is one for each token.
            false => unsafe { *self.args.rows.add(token as usize) },
        }
    }

    #[inline(always)]
    fn is_gated(&self) -> bool {
        self.args.is_gated
    }

    #[inline(always)]
    fn output<'a, const WARPS_M: usize>(
        &'a self,
        tile: u32,
        own: &'a mut Option<Output>,
    ) -> (&'a Output, u32, u32, u32) {
        let (_, row_block) = self.place::<WARPS_M>(tile);
        let (first, tokens) = self.tokens::<WARPS_M>(tile);
        let mut output = self.args.gemm.output;
        output.y = output
            .y
            .wrapping_add(first as usize * output.pitch as usize);
        let features = self.args.gemm.m >> u32::from(self.args.is_gated);
        let first_feature = row_block * self.width::<WARPS_M>() * TILE_ROWS as u32;
        (own.insert(output), features, tokens, first_feature)
    }
}
