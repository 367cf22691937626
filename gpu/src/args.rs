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
    /// Dense part of the weights.
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
    /// The matrix's base exponent.
    pub base: u32,
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
    /// Dense part of the weights.
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
    /// The matrix's base exponent.
    pub base: u32,
    /// How clusters share output tiles along K.
    pub decomposition: Decomposition,
    /// Tokens that one block of a cluster copies, see [`crate::launch::Prefill::box_tokens`].
    pub box_tokens: u32,
}

/// The operands of one `decompress`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct DecompressArgs {
    /// Output, M rows of K BF16.
    pub weights: *mut u16,
    /// Dense part of the weights.
    pub dense: *const u8,
    /// Index of each tile's first patch.
    pub offsets: *const u32,
    /// Patches.
    pub patches: *const u16,
    /// Output features.
    pub m: u32,
    /// Input features.
    pub k: u32,
    /// The matrix's base exponent.
    pub base: u32,
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
