//! Kernel parameters, as the host passes them.

use zipserv_gpu::args::Output;

/// The arrays of a matrix, see [the layout](crate), and what is to be known of it.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Weights {
    /// Planes.
    pub bitmaps: *const u8,
    /// Signs and mantissas.
    pub bytes: *const u8,
    /// Outliers.
    pub outliers: *const u8,
    /// Two words for each block tile, and two more.
    pub starts: *const u32,
    /// A word for each band, see [`crate::Before`].
    pub bands: *const u32,
    /// Output features.
    pub m: u32,
    /// Input features.
    pub k: u32,
    /// Exponent that code 0 would stand for.
    pub base: u32,
}

/// The operands of one `published_gemm`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct GemmArgs {
    /// The weights.
    pub weights: Weights,
    /// Outputs, N rows of M.
    pub output: Output,
    /// Activations, N rows of K BF16, each aligned to 16 bytes.
    pub x: *const u16,
    /// Partial sums that thread blocks store for others, [`crate::launch::Gemm::partial_bytes`] each; all
    /// [`zipserv_gpu::launch::Gemm::EMPTY`], also when the kernel ends.
    pub partials: *mut f32,
    /// Tokens.
    pub n: u32,
    /// Thread blocks that share the sum over K.
    pub split: u32,
}

/// The operands of one `published_decompress`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct DecompressArgs {
    /// The compressed weights.
    pub weights: Weights,
    /// Output, M rows of K BF16.
    pub output: *mut u16,
}
