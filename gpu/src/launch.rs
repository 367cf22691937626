//! What each kernel's launch looks like: one table for the kernels, the builder and the host.

use crate::layout::{BAND_ROWS, KSTEP_COLS, TILE_BYTES, TILE_COLS, TILE_ROWS};

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
    /// Depth of each warp's ring of weights.
    pub stages: usize,
    /// Depth of each group's ring of activations.
    pub x_stages: usize,
}

impl Gemm {
    /// Bytes between rows of activations in shared memory: 64 columns, and 16 bytes more so that
    /// `ldmatrix` finds eight rows in different banks.
    pub const X_STRIDE: usize = 2 * TILE_COLS + 16;
    /// Room for a tile's first 32 patches in its stage, from wherever in 16 bytes they start.
    pub const PATCH_BYTES: usize = 80;

    /// The launch of the kernel called `name`.
    const fn launch(self, name: &'static str) -> Launch {
        assert!(self.shared_bytes() <= 227 * 1024, "more shared memory than Hopper has");
        Launch {
            name,
            threads: self.threads(),
            min_blocks: 1,
            shared_bytes: self.shared_bytes(),
        }
    }

    /// What a place for partial sums holds while there are none: a NaN that no sum is.
    pub const EMPTY: u32 = u32::MAX;

    /// Bytes of the partial sums that one block hands over.
    pub const fn partial_bytes(self) -> usize {
        4 * self.warps() * TILE_ROWS * 8 * self.n_tiles
    }

    /// Warps in a block.
    pub const fn warps(self) -> usize {
        self.strips * self.groups
    }

    /// Threads in a block.
    pub const fn threads(self) -> usize {
        32 * self.warps()
    }

    /// Offset of the patches in a stage of weights, behind the dense tile.
    pub const PATCHES_AT: usize = TILE_BYTES;

    /// Offset, in a stage of weights, of a word that says how many patches there are and where
    /// they start.
    pub const COUNT_AT: usize = Self::PATCHES_AT + Self::PATCH_BYTES;

    /// Bytes of a warp's stage of weights.
    pub const STAGE_BYTES: usize = (Self::COUNT_AT + 4).next_multiple_of(128);

    /// Bytes of a group's stage of activations.
    pub const fn x_bytes(self) -> usize {
        8 * self.n_tiles * Self::X_STRIDE
    }

    /// Offset of the groups' rings of activations, behind the warps' rings of weights.
    pub const fn x_at(self) -> usize {
        self.warps() * self.stages * Self::STAGE_BYTES
    }

    /// Offset of the warps' tables of bases.
    pub const fn bases_at(self) -> usize {
        self.x_at() + self.groups * self.x_stages * self.x_bytes()
    }

    /// Bytes of one warp's table of bases: one BF16 exponent field for each weight of a band.
    pub const BASES_BYTES: usize = 2 * BAND_ROWS * TILE_COLS;

    /// Offset of the buffer in which warps add up their sums.
    pub const fn sums_at(self) -> usize {
        self.bases_at() + self.warps() * Self::BASES_BYTES
    }

    /// Floats between tokens in the buffer of sums; the four more keep stores in different banks.
    pub const fn sums_stride(self) -> usize {
        TILE_ROWS * self.strips + 4
    }

    /// Bytes of the buffer of sums, of eight tokens.
    pub const fn sums_bytes(self) -> usize {
        4 * self.groups * 8 * self.sums_stride()
    }

    /// Offset of the barriers: for each stage one *full* for each warp's weights, one *full* and
    /// one *empty* for each group's activations.
    pub const fn barriers_at(self) -> usize {
        self.sums_at() + self.sums_bytes()
    }

    /// Dynamic shared memory of a block.
    pub const fn shared_bytes(self) -> usize {
        self.barriers_at() + 8 * (self.stages * self.warps() + 2 * self.x_stages * self.groups)
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

/// Every `zipgemm` kernel: name, then [`Gemm`]'s fields. `$use` is a macro that makes something
/// of the list: the entries of the PTX, or the tables below.
#[macro_export]
macro_rules! gemm_kernels {
    ($use:ident) => {
        $use! {
            zipgemm_n8_m32: 1 1 8 3 3;
            zipgemm_n8_m64: 1 2 4 3 4;
            zipgemm_n8_m32_w16: 1 1 16 2 2;
            zipgemm_n8_m64_w16: 1 2 8 2 4;
            zipgemm_n8_m64_w16s3: 1 2 8 3 3;
            zipgemm_n8_m128_w16: 1 4 4 3 4;
            zipgemm_n16_m32_w16: 2 1 16 2 2;
            zipgemm_n16_m64_w16: 2 2 8 2 3;
            zipgemm_n16_m128_w16: 2 4 4 2 4;
            zipgemm_n32_m64_w16: 4 2 8 2 2;
            zipgemm_n32_m128_w16: 4 4 4 2 4;
            zipgemm_n32_m256_w16: 4 8 2 2 4;
            zipgemm_n32_m256: 4 8 1 4 4;
            zipgemm_n64_m128: 8 4 2 3 4;
            zipgemm_n64_m256: 8 8 1 4 4;
        }
    };
}

macro_rules! tables {
    ($($name:ident: $n_tiles:literal $strips:literal $groups:literal $stages:literal $x_stages:literal;)*) => {
        /// Every `zipgemm` kernel and its shape.
        pub const GEMMS: &[(&str, Gemm)] = &[$((
            stringify!($name),
            Gemm { n_tiles: $n_tiles, strips: $strips, groups: $groups, stages: $stages, x_stages: $x_stages },
        )),*];

        /// Every kernel's launch.
        pub const KERNELS: &[Launch] = &[
            Launch { name: "decompress", threads: 256, min_blocks: 4, shared_bytes: 8 * DECOMPRESS_WARP_BYTES },
            $(
                Gemm { n_tiles: $n_tiles, strips: $strips, groups: $groups, stages: $stages, x_stages: $x_stages }
                    .launch(stringify!($name)),
            )*
        ];
    };
}
gemm_kernels!(tables);

/// Shared memory of one warp of `decompress`: a tile, its rows 16 bytes apart in banks.
pub const DECOMPRESS_WARP_BYTES: usize = TILE_ROWS * (2 * TILE_COLS + 16);

const _: () = assert!(TILE_COLS == 4 * KSTEP_COLS);
