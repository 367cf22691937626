//! Kernel parameters, as the host passes them: one struct a kernel.

use crate::sched::schedule::Decomposition;

/// Where the outputs of a multiplication go, and what is added to its sums on the way.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Output {
    /// N rows of M outputs: FP32 if `is_f32`, else BF16.
    pub y: *mut u8,
    /// M BF16 that are added to each row; none if null.
    pub bias: *const u16,
    /// Bytes between the starts of rows.
    pub pitch: u32,
    /// Whether outputs are FP32.
    pub is_f32: bool,
    /// Whether what `y` holds is added.
    pub accumulate: bool,
}

/// The operands of one `zipgemm`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct GemmArgs {
    /// Outputs, N rows of M.
    pub output: Output,
    /// Activations, N rows of K BF16.
    pub x: *const u16,
    /// Dense part of the weights, right behind the matrix's header.
    pub dense: *const u8,
    /// Index of each tile's first patch.
    pub offsets: *const u32,
    /// Patches.
    pub patches: *const u16,
    /// Partial sums that blocks store for others, [`crate::launch::Gemm::partial_bytes`] a block; all
    /// [`crate::launch::Gemm::EMPTY`], also when the kernel ends.
    pub partials: *mut f32,
    /// Output features.
    pub m: u32,
    /// Tokens.
    pub n: u32,
    /// Input features.
    pub k: u32,
    /// Activations between the starts of rows.
    pub x_stride: u32,
    /// Whether outputs are silu(first half) x (second half) of the features, each of whole strips.
    pub is_gated: bool,
}

/// Tokens of one expert that are multiplied at once.
#[repr(C, align(16))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Group {
    /// The expert.
    pub expert: u32,
    /// The first of the tokens, in the order of experts.
    pub first: u32,
    /// How many there are, at least one.
    pub tokens: u32,
}

impl From<[u32; 3]> for Group {
    /// Of the words that it is in memory.
    #[inline(always)]
    fn from([expert, first, tokens]: [u32; 3]) -> Self {
        Self {
            expert,
            first,
            tokens,
        }
    }
}

/// Which experts tokens were sent to, as a router leaves it.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct ExpertsOf {
    /// The expert of each assignment, token after token: 64-bit numbers if `is_64_bit`, else 32-bit ones, with a sign.
    /// Assignments to no expert are left out.
    pub numbers: *const u8,
    /// Assignments.
    pub assignments: u32,
    /// Experts.
    pub experts: u32,
    /// Whether numbers have 64 bits.
    pub is_64_bit: bool,
}

impl ExpertsOf {
    /// Where `route` has sorted them.
    pub const SORTED: Self = Self {
        numbers: core::ptr::null(),
        assignments: 0,
        experts: 0,
        is_64_bit: false,
    };
}

/// The operands of one `zipgemm_grouped`: tokens in the order of their experts, as `route` leaves them, or assignments of
/// a single token as they are.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct GroupedArgs {
    /// Of all experts, but for `n`, which is not used: `m` output features of each, whose matrices follow one another,
    /// each from a strip of its own on.
    pub gemm: GemmArgs,
    /// The row of activations of each token; the token's own if null.
    pub rows: *const u32,
    /// Groups of tokens.
    pub groups: *const Group,
    /// How many there are.
    pub group_count: *const u32,
    /// What is there in place of groups, for a single token.
    pub unsorted: ExpertsOf,
    /// Whether the kernel ahead may be the one that routes. If it is not, that one has ended.
    pub follows_routing: bool,
    /// Whether blocks take whole output tiles, so that the sums of a token do not depend on the others.
    pub is_batch_invariant: bool,
}

/// The operands of one `route`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct RouteArgs {
    /// What to sort.
    pub of: ExpertsOf,
    /// The token of each assignment in the order of experts.
    pub rows: *mut u32,
    /// Where each assignment is in that order; [`NOWHERE`] if it is left out.
    pub places: *mut u32,
    /// Groups of up to `group_tokens`.
    pub groups: *mut Group,
    /// How many there are.
    pub group_count: *mut u32,
    /// How many assignments have an expert.
    pub routed: *mut u32,
    /// Assignments of a token.
    pub top_k: u32,
    /// Tokens of a group, at most.
    pub group_tokens: u32,
}

/// The place of an assignment that is left out.
pub const NOWHERE: u32 = u32::MAX;

/// The operands of one `combine`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct CombineArgs {
    /// Outputs, a row of `features` BF16 for each token.
    pub y: *mut u16,
    /// Outputs of experts, FP32, a row for each assignment in the order of experts.
    pub parts: *const f32,
    /// Where each assignment is in it; null if they are unsorted.
    pub places: *const u32,
    /// The experts of those.
    pub unsorted: ExpertsOf,
    /// What each assignment is multiplied by, FP32.
    pub weights: *const f32,
    /// Tokens.
    pub tokens: u32,
    /// Assignments of a token.
    pub top_k: u32,
    /// Features.
    pub features: u32,
}

/// A `CUtensorMap`: how a bulk copy finds a box of a tensor. It wants 64 bytes of alignment, but
/// rustc takes no kernel parameter of more than 16; the builder writes the 64 into the PTX.
#[repr(C, align(16))]
#[derive(Clone, Copy, Debug)]
pub struct TensorMap(pub [u64; 16]);

/// The operands of one `prefill`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct PrefillArgs {
    /// Activations, N rows of K BF16, in boxes of 64 columns by `box_tokens`, with the 128-byte swizzle. First,
    /// so that its address is the parameter's.
    pub x: TensorMap,
    /// The dense part of the weights, in boxes of the tiles of a block's strips in one k-tile, see
    /// [`crate::launch::Prefill::DENSE_BOX`]. Behind the matrix there are zeros. Second, as above.
    pub tiles: TensorMap,
    /// Outputs, N rows of M.
    pub output: Output,
    /// Dense part of the weights, right behind the matrix's header.
    pub dense: *const u8,
    /// Index of each tile's first patch.
    pub offsets: *const u32,
    /// Patches.
    pub patches: *const u16,
    /// Partial sums that blocks store for others, [`crate::launch::Prefill::partial_bytes`] a block.
    pub partials: *mut f32,
    /// For each block, how many of its warps have stored theirs; 0, also when the kernel ends.
    pub flags: *mut u32,
    /// Output features.
    pub m: u32,
    /// Tokens.
    pub n: u32,
    /// Input features.
    pub k: u32,
    /// How clusters share output tiles along K.
    pub decomposition: Decomposition,
    /// Tokens that one block of a cluster copies, see [`crate::launch::Prefill::box_tokens`].
    pub box_tokens: u32,
    /// Whether outputs are silu(first half) x (second half) of the features, each of whole strips. Only for kernels of
    /// [few tokens](crate::launch::Prefill::has_few_tokens).
    pub is_gated: bool,
}

/// The operands of one `prefill_grouped`: tokens in the order of their experts, as `route` leaves them.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct GroupedPrefillArgs {
    /// Of all experts: `m` output features of each, whose matrices follow one another, each from a strip of its own on;
    /// `n` rows of activations and outputs, of which routing may leave some out at the end. Nothing is shared along K, so
    /// there are no partial sums, flags and decomposition. First, for its tensor maps.
    pub prefill: PrefillArgs,
    /// Groups of tokens.
    pub groups: *const Group,
    /// How many there are.
    pub group_count: *const u32,
    /// Whether the kernel ahead may be the one that routes. If it is not, that one has ended.
    pub follows_routing: bool,
}

/// The operands of one `arrange`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct ArrangeArgs {
    /// Rows in the order of experts, aligned to 16 bytes.
    pub y: *mut u16,
    /// Rows of `features` BF16.
    pub x: *const u16,
    /// Which of them each row is; null where they are in that order already.
    pub rows: *const u32,
    /// How many rows there are.
    pub routed: *const u32,
    /// Inputs between the starts of rows.
    pub x_stride: u64,
    /// Outputs between the starts of rows: `features`, or the multiple of 8 above.
    pub y_stride: u64,
    /// Features.
    pub features: u32,
}

/// The operands of one `decompress`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct DecompressArgs {
    /// Output, M rows of K BF16.
    pub weights: *mut u16,
    /// Dense part of the weights, right behind the matrix's header.
    pub dense: *const u8,
    /// Index of each tile's first patch.
    pub offsets: *const u32,
    /// Patches.
    pub patches: *const u16,
    /// Output features.
    pub m: u32,
    /// Input features.
    pub k: u32,
}

/// The operands of one `gate`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct GateArgs {
    /// Outputs: rows of `features`.
    pub output: Output,
    /// Inputs: rows of twice as many BF16.
    pub x: *const u16,
    /// How many rows there are, if routing tells; if null, as many as are launched.
    pub routed: *const u32,
    /// Inputs between the starts of rows.
    pub x_stride: u64,
    /// Outputs of a row, a multiple of 8.
    pub features: u32,
}

/// What encoding finds out about a matrix.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EncodeWindow {
    /// The base.
    pub base: u32,
    /// The sum of the payload's words, see [`crate::format::crc`]; starts as zero.
    pub checksum: u32,
    /// Patches.
    pub patches: u64,
}

/// The operands of the `encode` kernels. The first two know of nothing behind `window`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct EncodeArgs {
    /// Dense weights: rows of BF16.
    pub weights: *const u16,
    /// Weights from the start of a row to that of the next.
    pub stride: u64,
    /// Output features.
    pub rows: u64,
    /// Input features.
    pub cols: u64,
    /// Weights of each exponent; start as zeros.
    pub counts: *mut u64,
    /// What is found out.
    pub window: *mut EncodeWindow,
    /// Room for the dense part, with that for the header before it.
    pub dense: *mut u8,
    /// Room for the offsets.
    pub offsets: *mut u32,
    /// Room for the patches.
    pub patches: *mut u16,
    /// Tiles.
    pub tiles: u64,
    /// Bytes from the dense part to the end.
    pub payload_bytes: u64,
}

/// The operands of one `gather`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct GatherArgs {
    /// Output, a row of K BF16 for each number; zeros for those of no row.
    pub weights: *mut u16,
    /// Numbers of rows: 64-bit ones if `is_64_bit`, else 32-bit ones, with a sign.
    pub numbers: *const u8,
    /// Dense part of the weights, right behind the matrix's header.
    pub dense: *const u8,
    /// Index of each tile's first patch.
    pub offsets: *const u32,
    /// Patches.
    pub patches: *const u16,
    /// How many numbers there are.
    pub count: u64,
    /// Output features.
    pub m: u32,
    /// Input features.
    pub k: u32,
    /// Whether numbers have 64 bits.
    pub is_64_bit: bool,
}

/// The operands of one `read`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct ReadArgs {
    /// What to read.
    pub data: *const u8,
    /// How much of it: a multiple of 16.
    pub bytes: u64,
    /// One word for each thread: the exclusive or of what it read.
    pub sink: *mut u32,
}
