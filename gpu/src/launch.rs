//! What each kernel's launch looks like: one table for the kernels, the builder and the host.

use crate::layout::{BAND_BYTES, BAND_ROWS, BANDS, KSTEP_COLS, TILE_COLS, TILE_ROWS};

/// Shape of a `zipgemm` block: all that distinguishes one of its kernels from another.
///
/// A block has `strips * groups` warps. Warp `(s, g)` computes strip `s` of a row block of
/// `32 * strips` output features, over every `groups`-th tile along K.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gemm {
    /// Tokens in units of 8, the N of one `mma`.
    pub n_tiles: usize,
    /// Warps along M.
    pub strips: usize,
    /// Warps along K.
    pub groups: usize,
    /// Depth of each group's ring of tiles.
    pub stages: usize,
}

impl Gemm {
    /// Bytes between rows of activations in shared memory: 64 columns, and 16 bytes more so that
    /// `ldmatrix` finds eight rows in different banks.
    pub const X_STRIDE: usize = 2 * TILE_COLS + 16;
    /// Room for a tile's patches in its stage; further ones are read from global memory.
    pub const PATCH_BYTES: usize = 128;

    /// Warps in a block.
    pub const fn warps(self) -> usize {
        self.strips * self.groups
    }

    /// Threads in a block.
    pub const fn threads(self) -> usize {
        32 * self.warps()
    }

    /// Offset of the activations in a stage, behind the dense tiles.
    pub const fn x_at(self) -> usize {
        self.strips * BANDS * BAND_BYTES
    }

    /// Offset of the patches in a stage.
    pub const fn patches_at(self) -> usize {
        self.x_at() + 8 * self.n_tiles * Self::X_STRIDE
    }

    /// Offset, in a stage, of one word for each strip: how many patches, and where they start.
    pub const fn counts_at(self) -> usize {
        self.patches_at() + self.strips * Self::PATCH_BYTES
    }

    /// Bytes of a stage.
    pub const fn stage_bytes(self) -> usize {
        (self.counts_at() + 4 * self.strips).next_multiple_of(128)
    }

    /// Offset of the warps' tables of bases, behind the rings.
    pub const fn bases_at(self) -> usize {
        self.groups * self.stages * self.stage_bytes()
    }

    /// Bytes of one warp's table of bases: one BF16 exponent field for each weight of a band.
    pub const BASES_BYTES: usize = 2 * BAND_ROWS * TILE_COLS;

    /// Offset of the two buffers in which warps add up their sums.
    pub const fn sums_at(self) -> usize {
        self.bases_at() + self.warps() * Self::BASES_BYTES
    }

    /// Floats between tokens in a buffer of sums; the four more keep stores in different banks.
    pub const fn sums_stride(self) -> usize {
        TILE_ROWS * self.strips + 4
    }

    /// Bytes of one buffer of sums.
    pub const fn sums_bytes(self) -> usize {
        4 * self.groups * 8 * self.n_tiles * self.sums_stride()
    }

    /// Offset of the barriers: for each group and stage one *full* and one *empty*.
    pub const fn barriers_at(self) -> usize {
        self.sums_at() + 2 * self.sums_bytes()
    }

    /// Dynamic shared memory of a block.
    pub const fn shared_bytes(self) -> usize {
        self.barriers_at() + 16 * self.groups * self.stages + 16
    }
}

/// One kernel's launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Launch {
    /// Name of the entry in the PTX.
    pub name: &'static str,
    /// Threads in a block.
    pub threads: usize,
    /// Blocks that must fit on one multiprocessor.
    pub min_blocks: usize,
    /// Dynamic shared memory of a block, in bytes.
    pub shared_bytes: usize,
}

const _: () = assert!(TILE_COLS == 4 * KSTEP_COLS);
