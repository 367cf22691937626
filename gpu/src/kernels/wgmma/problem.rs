//! What a launch multiplies: one matrix, or those of the experts that tokens were sent to.

use crate::{
    arch::{grid, memory},
    args::{Group, GroupedPrefillArgs, PrefillArgs},
    sched::schedule::{Decomposition, OutputTiles},
};

/// Where the output tiles of a launch are.
pub trait Problem: Copy {
    /// Whether tokens come in groups, of which each has a matrix of its own. Then clusters take whole output tiles.
    const GROUPED: bool;

    /// The same with what is only known once the kernel has started. Called by the warps that copy, and by those that
    /// write tables, before all else.
    fn started(self) -> Self;

    /// Output tiles of so many rows and tokens.
    fn tiles(&self, args: &PrefillArgs, rows: u32, tokens: u32) -> OutputTiles;

    /// How clusters share them along K.
    fn decomposition(&self, args: &PrefillArgs) -> Decomposition;

    /// What a token block of `tokens` tokens has, with all tokens behind those that have the same matrix.
    fn group(&self, args: &PrefillArgs, token_block: u32, tokens: u32) -> Group;
}

/// Y = X W^T.
#[derive(Clone, Copy)]
pub struct Single;

impl Problem for Single {
    const GROUPED: bool = false;

    #[inline(always)]
    fn started(self) -> Self {
        self
    }

    #[inline(always)]
    fn tiles(&self, args: &PrefillArgs, rows: u32, tokens: u32) -> OutputTiles {
        OutputTiles::new(args.m, args.n, rows, tokens)
    }

    #[inline(always)]
    fn decomposition(&self, args: &PrefillArgs) -> Decomposition {
        args.decomposition
    }

    #[inline(always)]
    fn group(&self, args: &PrefillArgs, token_block: u32, tokens: u32) -> Group {
        let first = token_block * tokens;
        Group {
            expert: 0,
            first,
            tokens: args.n - first,
        }
    }
}

/// Y[t] = X[t] W[e(t)]^T for tokens in the order of their experts, a token block a group. The output tiles of a group
/// follow one another, so that clusters read its activations at the same time, and then an expert's next group, whose
/// weights the L2 cache still has.
#[derive(Clone, Copy)]
pub struct Experts<'a> {
    args: &'a GroupedPrefillArgs,
    /// Groups of tokens, once the kernel has [started](Problem::started).
    groups: u32,
}

impl<'a> Experts<'a> {
    /// Of its arguments.
    #[inline(always)]
    pub fn new(args: &'a GroupedPrefillArgs) -> Self {
        Self { args, groups: 0 }
    }
}

impl Problem for Experts<'_> {
    const GROUPED: bool = true;

    #[inline(always)]
    fn started(self) -> Self {
        if self.args.follows_routing {
            grid::wait_dependencies();
        }
        // SAFETY: routing has written it.
        let groups = unsafe { memory::observe_u32(self.args.group_count) };
        Self { groups, ..self }
    }

    #[inline(always)]
    fn tiles(&self, args: &PrefillArgs, rows: u32, _tokens: u32) -> OutputTiles {
        OutputTiles::of_groups(args.m, self.groups, rows)
    }

    #[inline(always)]
    fn decomposition(&self, _args: &PrefillArgs) -> Decomposition {
        Decomposition::WHOLE
    }

    /// The group of that number. What an earlier kernel's loads have left in the first-level cache is not looked at, for
    /// this one may not have waited.
    #[inline(always)]
    fn group(&self, _args: &PrefillArgs, token_block: u32, _tokens: u32) -> Group {
        let group = self.args.groups.wrapping_add(token_block as usize);
        let group = group.cast::<u32>();
        // Words by themselves: the register of a fourth, which nobody reads, would be used again for something else, and
        // that waits for the load. SAFETY: routing has written the group, and a token block of a work tile has one.
        let words = [0, 1, 2].map(|word| unsafe { memory::observe_u32(group.wrapping_add(word)) });
        words.into()
    }
}
