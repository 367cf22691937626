//! What each kernel's launch looks like: one table for the kernels, the builder and the host.

use crate::layout::{TILE_BYTES, TILE_COLS, TILE_ROWS, TILE_WEIGHTS};

/// Shape of a `zipgemm` block: all that distinguishes one of its kernels from another.
///
/// A block has `strips * groups` warps that multiply. A *unit* of work is `32 * strips` output
/// features by `64 * groups` input features: a tile for each of the warps, which lands in shared
/// memory as one stage of a ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gemm {
    /// Tokens in units of 8, the N of one `mma`.
    pub n_tiles: usize,
    /// Warps along M.
    pub strips: usize,
    /// Warps along K.
    pub groups: usize,
    /// Depth of the ring of units.
    pub stages: usize,
    /// Depth of the ring of sums.
    pub sum_stages: usize,
    /// Blocks that a multiprocessor holds at a time.
    pub blocks: usize,
}

impl Gemm {
    /// Warps that add up and write the output.
    pub const WRITERS: usize = 2;
    /// Warps that do not multiply: one copies weights, one activations, and the writers. With four
    /// of them, one for each quarter of a multiprocessor, all get the most registers.
    pub const HELPERS: usize = 2 + Self::WRITERS;
    /// What a place for partial sums holds while there are none: a NaN that no sum is.
    pub const EMPTY: u32 = u32::MAX;
    /// Bytes of one warp's table of bases: one BF16 exponent field for each weight of a tile.
    pub const BASES_BYTES: usize = 2 * TILE_WEIGHTS;

    /// The launch of the kernel called `name`, of the PTX for `sm`.
    const fn launch(self, name: &'static str, sm: &str) -> Launch {
        assert!(
            self.blocks * (self.shared_bytes() + 1024) <= 228 * 1024,
            "more shared memory than Hopper has"
        );
        assert!(
            matches!(sm.as_bytes(), b"90a") || self.shared_bytes() <= 99 * 1024,
            "more shared memory than Ada and the small Blackwells have"
        );
        Launch {
            name,
            threads: self.threads(),
            min_blocks: self.blocks,
            shared_bytes: self.shared_bytes(),
        }
    }

    /// Warps that multiply.
    pub const fn warps(self) -> usize {
        self.strips * self.groups
    }

    /// Threads in a block.
    pub const fn threads(self) -> usize {
        32 * (self.warps() + Self::HELPERS)
    }

    /// Output features of a unit.
    pub const fn rows(self) -> usize {
        TILE_ROWS * self.strips
    }

    /// Bytes of the sums that one block hands over to a later one.
    pub const fn partial_bytes(self) -> usize {
        4 * self.rows() * 8 * self.n_tiles
    }

    /// Bytes of the dense tiles in a stage: strip after strip, tile after tile along K.
    pub const fn dense_bytes(self) -> usize {
        self.warps() * TILE_BYTES
    }

    /// Words of one strip's patch offsets in a stage: one more than tiles, from wherever in 16
    /// bytes they start.
    pub const fn offset_words(self) -> usize {
        (self.groups + 4).next_multiple_of(4)
    }

    /// Offset of the patch offsets in a stage.
    pub const fn offsets_at(self) -> usize {
        self.dense_bytes()
    }

    /// Patches of one strip that a stage has room for. Those past it are read from global memory.
    pub const fn patch_room(self) -> usize {
        32 * self.groups + 24
    }

    /// Offset of the patches in a stage.
    pub const fn patches_at(self) -> usize {
        self.offsets_at() + 4 * self.strips * self.offset_words()
    }

    /// Offset of the activations in a stage.
    pub const fn x_at(self) -> usize {
        (self.patches_at() + 2 * self.strips * self.patch_room()).next_multiple_of(128)
    }

    /// Bytes between tokens of activations in a stage: a unit's columns, and 16 bytes more so
    /// that `ldmatrix` finds eight tokens in different banks.
    pub const fn x_stride(self) -> usize {
        2 * TILE_COLS * self.groups + 16
    }

    /// Bytes of a stage.
    pub const fn stage_bytes(self) -> usize {
        (self.x_at() + 8 * self.n_tiles * self.x_stride()).next_multiple_of(128)
    }

    /// Offset of the warps' tables of bases, behind the ring.
    pub const fn bases_at(self) -> usize {
        self.stages * self.stage_bytes()
    }

    /// Offset of the ring of sums, of eight tokens each.
    pub const fn sums_at(self) -> usize {
        self.bases_at() + self.warps() * Self::BASES_BYTES
    }

    /// Floats between tokens in a stage of sums; the four more keep stores in different banks.
    pub const fn sums_stride(self) -> usize {
        self.rows() + 4
    }

    /// Bytes of a stage of sums.
    pub const fn sums_bytes(self) -> usize {
        4 * self.groups * 8 * self.sums_stride()
    }

    /// Offset of the barriers: *full* and *empty* for each stage of units, then of sums.
    pub const fn barriers_at(self) -> usize {
        self.sums_at() + self.sum_stages * self.sums_bytes()
    }

    /// Dynamic shared memory of a block.
    pub const fn shared_bytes(self) -> usize {
        self.barriers_at() + 16 * (self.stages + self.sum_stages)
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

/// Every `zipgemm` kernel: for each PTX file, by its `sm`, names and [`Gemm`]'s fields. `$use` is
/// a macro that makes something of the list: the entries of the PTX, or the tables below.
#[macro_export]
macro_rules! gemm_kernels {
    ($use:ident) => {
        $use! {
            "90a":
            zipgemm_n8_2x8: 1 2 8 2 1 1;
            zipgemm_n16_2x4: 2 2 4 5 2 1;
            zipgemm_n32_2x4: 4 2 4 4 2 1;
            zipgemm_n64_2x4: 8 2 4 2 2 1;
            zipgemm_n64_4x2: 8 4 2 3 2 1;
            "80":
            zipgemm_sm80_n8_2x2: 1 2 2 4 1 3;
            zipgemm_sm80_n8_2x4: 1 2 4 2 1 2;
            zipgemm_sm80_n8_4x1: 1 4 1 4 1 3;
            zipgemm_sm80_n16_2x2: 2 2 2 3 1 2;
            zipgemm_sm80_n16_4x1: 2 4 1 3 1 2;
            zipgemm_sm80_n32_4x1: 4 4 1 3 1 2;
            zipgemm_sm80_n64_4x1: 8 4 1 3 1 1;
        }
    };
}

macro_rules! tables {
    ($($sm:literal: $($name:ident: $n_tiles:literal $strips:literal $groups:literal $stages:literal $sum_stages:literal $blocks:literal;)*)*) => {
        /// Every `zipgemm` kernel and its shape.
        pub const GEMMS: &[(&str, Gemm)] = &[$($((
            stringify!($name),
            Gemm { n_tiles: $n_tiles, strips: $strips, groups: $groups, stages: $stages, sum_stages: $sum_stages, blocks: $blocks },
        ),)*)*];

        /// Every kernel's launch.
        pub const KERNELS: &[Launch] = &[
            Launch { name: "decompress", threads: 256, min_blocks: 4, shared_bytes: 8 * DECOMPRESS_WARP_BYTES },
            Launch { name: "read", threads: READ_THREADS, min_blocks: 2, shared_bytes: 0 },
            $($(
                Gemm { n_tiles: $n_tiles, strips: $strips, groups: $groups, stages: $stages, sum_stages: $sum_stages, blocks: $blocks }
                    .launch(stringify!($name), $sm),
            )*)*
        ];
    };
}
gemm_kernels!(tables);

/// Shared memory of one warp of `decompress`: a tile, its rows 16 bytes apart in banks.
pub const DECOMPRESS_WARP_BYTES: usize = TILE_ROWS * (2 * TILE_COLS + 16);

/// Threads of a block of `read`.
pub const READ_THREADS: usize = 512;
