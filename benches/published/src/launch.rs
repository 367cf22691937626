//! The kernels' launches.

use zipserv_gpu::launch::Launch;

use crate::{BANDS, BLOCK_BYTES, BLOCK_COLS, BLOCK_ROWS, KSTEP_SIDE, STREAM_BYTES};

/// Threads in a block: a warp for each band of a block tile.
pub const THREADS: usize = 32 * BANDS;
/// Offset of the words of a block tile's bands in a stage, behind its bitmaps.
pub const BANDS_AT: usize = BLOCK_BYTES;
/// Offset of its bytes, after which come its outliers.
pub const STREAMS_AT: usize = BANDS_AT + 4 * BANDS;
/// Bytes of a block tile's weights in a stage.
pub const WEIGHTS_BYTES: usize = (STREAMS_AT + STREAM_BYTES).next_multiple_of(16);
/// Bytes between rows of restored weights in shared memory; the 16 more keep them in other banks.
pub const ROW_BYTES: usize = 2 * BLOCK_COLS + 16;
/// Bytes of a warp's restored band.
pub const BAND_ROWS_BYTES: usize = KSTEP_SIDE * ROW_BYTES;

/// Shape of a `published_gemm` block. It multiplies 64 output features by up to `8 * n_tiles`
/// tokens, a block tile at a time, of which the next is on its way to the other of two stages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gemm {
    /// Tokens in units of 8, the N of one `mma`.
    pub n_tiles: usize,
    /// Blocks that a SM holds at a time.
    pub blocks: usize,
}

impl Gemm {
    /// Depth of the ring of block tiles.
    pub const STAGES: usize = 2;
    /// Bytes between tokens of activations in a stage.
    pub const X_STRIDE: usize = ROW_BYTES;
    /// Floats between tokens of sums; the four more keep stores in different banks.
    pub const SUMS_STRIDE: usize = BLOCK_ROWS + 4;

    /// Tokens.
    pub const fn tokens(self) -> usize {
        8 * self.n_tiles
    }

    /// Bytes of a stage: weights, then activations.
    pub const fn stage_bytes(self) -> usize {
        WEIGHTS_BYTES + self.tokens() * Self::X_STRIDE
    }

    /// Dynamic shared memory of a block; its sums take the place of the stages.
    pub const fn shared_bytes(self) -> usize {
        Self::STAGES * self.stage_bytes()
    }

    /// Bytes of the partial sums that one block stores for another.
    pub const fn partial_bytes(self) -> usize {
        4 * BLOCK_ROWS * self.tokens()
    }

    /// The launch of the kernel called `name`.
    pub const fn launch(self, name: &'static str) -> Launch {
        assert!(4 * Self::SUMS_STRIDE * self.tokens() <= self.shared_bytes());
        Launch {
            name,
            threads: THREADS,
            min_blocks: self.blocks,
            shared_bytes: self.shared_bytes(),
            cluster: 1,
        }
    }
}

/// The launch of `published_decompress`.
pub const DECOMPRESS: Launch = Launch {
    name: "published_decompress",
    threads: THREADS,
    min_blocks: 8,
    shared_bytes: WEIGHTS_BYTES + BANDS * BAND_ROWS_BYTES,
    cluster: 1,
};

/// Every `published_gemm` kernel: name, then [`Gemm`]'s fields. `$use` is a macro that makes
/// something of the list: the entries of the PTX, or the tables below.
macro_rules! gemm_kernels {
    ($use:ident) => {
        $use! {
            published_gemm_n8: { n_tiles: 1, blocks: 6 };
            published_gemm_n16: { n_tiles: 2, blocks: 5 };
            published_gemm_n32: { n_tiles: 4, blocks: 4 };
            published_gemm_n64: { n_tiles: 8, blocks: 2 };
        }
    };
}

macro_rules! gemms {
    ($($name:ident: $shape:tt;)*) => {
        /// Every `published_gemm` kernel and its shape, by rising numbers of tokens.
        pub const GEMMS: &[(&str, Gemm)] = &[$((
            stringify!($name),
            Gemm $shape,
        )),*];

        /// Every kernel's launch.
        pub const KERNELS: &[Launch] = &[
            DECOMPRESS,
            $((Gemm $shape).launch(stringify!($name))),*
        ];
    };
}
gemm_kernels!(gemms);
#[cfg(target_arch = "nvptx64")]
pub(crate) use gemm_kernels;
