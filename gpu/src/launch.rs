//! What each kernel's launch looks like: one table for the kernels, the builder and the host.

use crate::{
    args::Group,
    layout::{BAND_BYTES, BAND_ROWS, BANDS, LANES, TILE_BYTES, TILE_COLS, TILE_ROWS, TILE_WEIGHTS},
};

/// Shape of a `zipgemm` block: all that distinguishes one of its kernels from another.
///
/// A *k-block* is `32 * warps_m` output features by `64 * warps_k` input features, which land in shared
/// memory as one stage of a ring. A *consumer group* of `warps_m * warps_k` warps multiplies it, a tile
/// each; the groups of a block take stages one after the other, so that one decodes while others wait.
/// Names of kernels have the three: `zipgemm_n8_1x8x2` has 1 warp along M, 8 along K, and 2 groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gemm {
    /// Tokens in units of 8, the N of one `mma`.
    pub n_tiles: usize,
    /// Warps of a consumer group along M, a strip each.
    pub warps_m: usize,
    /// Warps of a consumer group along K, a k-tile each.
    pub warps_k: usize,
    /// Consumer groups.
    pub consumer_groups: usize,
    /// Depth of the ring of stages.
    pub stages: usize,
    /// Depth of the ring of sums.
    pub sum_stages: usize,
    /// Blocks that an SM holds at a time.
    pub blocks: usize,
}

impl Gemm {
    /// Producer warps: one copies weights, one activations.
    pub const PRODUCER_WARPS: usize = 2;
    /// Epilogue warps, which add up and write the output. With four warps that do not multiply, one for
    /// each quarter of an SM, all get the most registers.
    pub const EPILOGUE_WARPS: usize = 2;
    /// What a place for partial sums holds while there are none: a NaN that no sum is.
    pub const EMPTY: u32 = u32::MAX;
    /// Bytes of one warp's patch table: one for each weight of a tile.
    pub const TABLE_BYTES: usize = TILE_WEIGHTS;
    /// Groups of tokens that a `zipgemm_grouped` block keeps in shared memory: one a lane.
    pub const NEAR_GROUPS: usize = LANES;
    /// Their bytes.
    pub const GROUPS_BYTES: usize = Self::NEAR_GROUPS * size_of::<Group>();

    /// The launch of the kernel called `name`, of the PTX for `sm`.
    const fn launch(self, name: &'static str, sm: &str) -> Launch {
        self.launch_with(name, sm, self.shared_bytes())
    }

    /// The same for tokens in groups.
    const fn launch_grouped(self, name: &'static str, sm: &str) -> Launch {
        assert!(self.groups_at().is_multiple_of(align_of::<Group>()));
        self.launch_with(name, sm, self.groups_at() + Self::GROUPS_BYTES)
    }

    const fn launch_with(self, name: &'static str, sm: &str, shared_bytes: usize) -> Launch {
        assert!(
            self.blocks * (shared_bytes + 1024) <= 228 * 1024,
            "more shared memory than Hopper has"
        );
        assert!(
            self.stages.is_multiple_of(self.consumer_groups),
            "a stage whose phases different consumer_groups wait for would let one pass a phase early"
        );
        assert!(
            self.warps_m * self.stages <= 32,
            "each strip of a stage has a lane that copies"
        );
        assert!(
            matches!(sm.as_bytes(), b"90a") || shared_bytes <= 99 * 1024,
            "more shared memory than Ada and the small Blackwells have"
        );
        Launch {
            name,
            threads: self.threads(),
            min_blocks: self.blocks,
            shared_bytes,
            cluster: 1,
        }
    }

    /// Warps that multiply.
    pub const fn warps(self) -> usize {
        self.consumer_groups * self.warps_m * self.warps_k
    }

    /// Parts of the sum over K that the warps of a block have.
    pub const fn parts(self) -> usize {
        self.consumer_groups * self.warps_k
    }

    /// Threads in a block.
    pub const fn threads(self) -> usize {
        32 * (self.warps() + Self::PRODUCER_WARPS + Self::EPILOGUE_WARPS)
    }

    /// Output features of a k-block.
    pub const fn rows(self) -> usize {
        TILE_ROWS * self.warps_m
    }

    /// Bytes of the partial sums that one block stores for a later one.
    pub const fn partial_bytes(self) -> usize {
        4 * self.rows() * 8 * self.n_tiles
    }

    /// Bytes of the dense tiles in a stage: strip after strip, tile after tile along K.
    pub const fn dense_bytes(self) -> usize {
        self.warps_m * self.warps_k * TILE_BYTES
    }

    /// Words of one strip's patch offsets in a stage: one more than tiles, from wherever in 16
    /// bytes they start.
    pub const fn offset_words(self) -> usize {
        (self.warps_k + 4).next_multiple_of(4)
    }

    /// Offset of the patch offsets in a stage.
    pub const fn offsets_at(self) -> usize {
        self.dense_bytes()
    }

    /// Patches of one strip that a stage has room for. Those past it are read from global memory.
    pub const fn patch_room(self) -> usize {
        32 * self.warps_k + 24
    }

    /// Offset of the patches in a stage.
    pub const fn patches_at(self) -> usize {
        self.offsets_at() + 4 * self.warps_m * self.offset_words()
    }

    /// Offset of the activations in a stage.
    pub const fn x_at(self) -> usize {
        (self.patches_at() + 2 * self.warps_m * self.patch_room()).next_multiple_of(128)
    }

    /// Bytes between tokens of activations in a stage: a k-block's columns, and 16 bytes more so
    /// that `ldmatrix` finds eight tokens in different banks.
    pub const fn x_stride(self) -> usize {
        2 * TILE_COLS * self.warps_k + 16
    }

    /// Bytes of a stage.
    pub const fn stage_bytes(self) -> usize {
        (self.x_at() + 8 * self.n_tiles * self.x_stride()).next_multiple_of(128)
    }

    /// Offset of the warps' patch tables, behind the ring.
    pub const fn tables_at(self) -> usize {
        self.stages * self.stage_bytes()
    }

    /// Offset of the ring of sums, of eight tokens each.
    pub const fn sums_at(self) -> usize {
        self.tables_at() + self.warps() * Self::TABLE_BYTES
    }

    /// Floats between tokens in a stage of sums; the four more keep stores in different banks.
    pub const fn sums_stride(self) -> usize {
        self.rows() + 4
    }

    /// Bytes of a stage of sums.
    pub const fn sums_bytes(self) -> usize {
        4 * self.parts() * 8 * self.sums_stride()
    }

    /// Offset of the barriers: *full* and *empty* for each stage of k-blocks, then of sums.
    pub const fn barriers_at(self) -> usize {
        self.sums_at() + self.sum_stages * self.sums_bytes()
    }

    /// Dynamic shared memory of a block.
    pub const fn shared_bytes(self) -> usize {
        self.barriers_at() + 16 * (self.stages + self.sum_stages)
    }

    /// Offset of groups of tokens, behind all else, in kernels that have them.
    pub const fn groups_at(self) -> usize {
        self.shared_bytes()
    }
}

/// Shape of a `prefill` block, for many tokens.
///
/// A block makes output tiles of 128 features by [`Prefill::tokens`]: two warpgroups multiply, 64
/// features each, and a third one copies. A *k-tile* is a tile of weights for each of four
/// strips, and the activations of their columns, which land in shared memory as one stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefill {
    /// Tokens of an output tile.
    pub tokens: usize,
    /// Depth of the ring of stages.
    pub stages: usize,
    /// Blocks of a cluster, which share activations; each has its own features.
    pub cluster: usize,
}

impl Prefill {
    /// Warps that multiply.
    pub const WARPS: usize = 8;
    /// Outlier warps, which write patch tables, each one table, for every so-many-th k-tile.
    pub const OUTLIER_WARPS: usize = 2;
    /// Producer warps: those, one that copies dense tiles, and one activations.
    pub const PRODUCER_WARPS: usize = 2 + Self::OUTLIER_WARPS;
    /// Threads in a block.
    pub const THREADS: usize = 32 * (Self::WARPS + Self::PRODUCER_WARPS);
    /// Strips of an output tile: a warp has one band of one strip.
    pub const STRIPS: usize = Self::WARPS / BANDS;
    /// Output features of an output tile.
    pub const ROWS: usize = TILE_ROWS * Self::STRIPS;
    /// Output features of a warpgroup.
    pub const GROUP_ROWS: usize = 4 * BAND_ROWS;
    /// What one copy brings of the dense part, as a tensor of 8-byte elements: those of a band, the
    /// bands of a tile, the tiles of a strip, strips.
    pub const DENSE_BOX: [u32; 4] = [
        (BAND_BYTES / 8) as u32,
        BANDS as u32,
        1,
        Self::STRIPS as u32,
    ];
    /// Bytes of a tile's patch table: one for each weight.
    pub const STRIP_TABLE_BYTES: usize = TILE_WEIGHTS;
    /// Bytes of a k-tile's patch table.
    pub const TABLE_BYTES: usize = Self::STRIPS * Self::STRIP_TABLE_BYTES;
    /// Depth of the ring of patch tables.
    pub const TABLES: usize = 2;
    /// Depth of the ring of descriptions of work tiles.
    pub const WORK_TILES: usize = 4;
    /// Bytes of a description.
    pub const WORK_TILE_BYTES: usize = 32;
    /// Tokens that pass through shared memory at a time on their way out, at most.
    pub const CHUNK_TOKENS: usize = 64;
    /// Bytes of a token's 64 features, and of 64 columns of its activations.
    pub const LINE_BYTES: usize = 128;
    /// Bytes of one warpgroup's outputs on their way out.
    pub const OUT_BYTES: usize = Self::CHUNK_TOKENS * Self::LINE_BYTES;

    /// Whether there are so few tokens that memory sets the pace. Then the dense tiles of each strip come by a copy of
    /// their own, so kernels for experts can take those of gate and up together, and gate outputs themselves.
    pub const fn has_few_tokens(self) -> bool {
        self.tokens <= 64
    }

    /// The launch of the kernel called `name`.
    const fn launch(self, name: &'static str) -> Launch {
        assert!(
            self.shared_bytes() <= 227 * 1024,
            "more shared memory than Hopper has"
        );
        assert!(self.piece_bytes() <= self.stage_bytes());
        Launch {
            name,
            threads: Self::THREADS,
            min_blocks: 1,
            shared_bytes: self.shared_bytes(),
            cluster: self.cluster,
        }
    }

    /// Tokens of `n` whose activations one block copies, for all blocks of its cluster. A tile that is not full shares
    /// what there is: rows past the last token are filled with zeros, which takes longer than to copy tokens.
    pub const fn box_tokens(self, n: usize) -> usize {
        /// Rows after which the swizzle of activations repeats.
        const ROWS: usize = 8;
        let tokens = if n < self.tokens { n } else { self.tokens };
        tokens.div_ceil(self.cluster).next_multiple_of(ROWS)
    }

    /// Tokens of a chunk: what an output tile is left in, the last one perhaps only in part its own.
    pub const fn chunk_tokens(self) -> usize {
        if self.tokens < Self::CHUNK_TOKENS {
            self.tokens
        } else {
            Self::CHUNK_TOKENS
        }
    }

    /// Bytes of a chunk's sums.
    const fn chunk_bytes(self) -> usize {
        4 * Self::ROWS * self.chunk_tokens()
    }

    /// Bytes of the partial sums that one block stores for a later one.
    pub const fn partial_bytes(self) -> usize {
        self.tokens.div_ceil(self.chunk_tokens()) * self.chunk_bytes()
    }

    /// Parts in which the sums of a chunk that another block has stored come to a block, through stages
    /// of its ring.
    pub const fn chunk_pieces(self) -> usize {
        if self.stage_bytes() < self.chunk_bytes() {
            2
        } else {
            1
        }
    }

    /// Bytes of such a part.
    pub const fn piece_bytes(self) -> usize {
        self.chunk_bytes() / self.chunk_pieces()
    }

    /// Bytes of the activations, which come first in a stage.
    pub const fn x_bytes(self) -> usize {
        self.tokens * Self::LINE_BYTES
    }

    /// Offset of the dense tiles in a stage, one for each strip.
    pub const fn dense_at(self) -> usize {
        self.x_bytes()
    }

    /// Bytes of a stage; the swizzle of activations repeats every 1024 bytes.
    pub const fn stage_bytes(self) -> usize {
        (self.dense_at() + Self::STRIPS * TILE_BYTES).next_multiple_of(1024)
    }

    /// Offset of the patch tables, behind the ring.
    pub const fn tables_at(self) -> usize {
        self.stages * self.stage_bytes()
    }

    /// Offset of the outputs on their way out.
    pub const fn out_at(self) -> usize {
        self.tables_at() + Self::TABLES * Self::TABLE_BYTES
    }

    /// Offset of the barriers: *full* and *empty* for each stage, then for each table, then for each
    /// description of a work tile.
    pub const fn barriers_at(self) -> usize {
        self.out_at() + Self::WARPS / 4 * Self::OUT_BYTES
    }

    /// Offset of the descriptions of work tiles.
    pub const fn work_tiles_at(self) -> usize {
        self.barriers_at() + 16 * (self.stages + Self::TABLES + Self::WORK_TILES)
    }

    /// Dynamic shared memory of a block.
    pub const fn shared_bytes(self) -> usize {
        self.work_tiles_at() + Self::WORK_TILES * Self::WORK_TILE_BYTES
    }
}

/// One kernel's launch. A crate of kernels has all of its own as `KERNELS`, at its root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Launch {
    /// Name of the entry in the PTX.
    pub name: &'static str,
    /// Threads in a block.
    pub threads: usize,
    /// Blocks that must fit on one SM.
    pub min_blocks: usize,
    /// Dynamic shared memory of a block, in bytes.
    pub shared_bytes: usize,
    /// Blocks of a cluster.
    pub cluster: usize,
}

/// Every `zipgemm` kernel: for each PTX file, by its `sm`, names and [`Gemm`]'s fields. `$use` is
/// a macro that makes something of the list: the entries of the PTX, or the tables below.
#[macro_export]
macro_rules! gemm_kernels {
    ($use:ident) => {
        $use! {
            "90a":
            zipgemm_n8_2x4x2: { n_tiles: 1, warps_m: 2, warps_k: 4, consumer_groups: 2, stages: 4, sum_stages: 1, blocks: 1 };
            zipgemm_n8_1x8x2: { n_tiles: 1, warps_m: 1, warps_k: 8, consumer_groups: 2, stages: 4, sum_stages: 1, blocks: 1 };
            zipgemm_n16_2x4x2: { n_tiles: 2, warps_m: 2, warps_k: 4, consumer_groups: 2, stages: 4, sum_stages: 1, blocks: 1 };
            zipgemm_n32_2x2x2: { n_tiles: 4, warps_m: 2, warps_k: 2, consumer_groups: 2, stages: 8, sum_stages: 2, blocks: 1 };
            zipgemm_n64_4x2x1: { n_tiles: 8, warps_m: 4, warps_k: 2, consumer_groups: 1, stages: 3, sum_stages: 2, blocks: 1 };
            "80":
            zipgemm_sm80_n8_2x2x2: { n_tiles: 1, warps_m: 2, warps_k: 2, consumer_groups: 2, stages: 4, sum_stages: 1, blocks: 2 };
            zipgemm_sm80_n16_2x2x1: { n_tiles: 2, warps_m: 2, warps_k: 2, consumer_groups: 1, stages: 3, sum_stages: 1, blocks: 2 };
            zipgemm_sm80_n32_4x1x1: { n_tiles: 4, warps_m: 4, warps_k: 1, consumer_groups: 1, stages: 3, sum_stages: 1, blocks: 2 };
            zipgemm_sm80_n64_4x1x1: { n_tiles: 8, warps_m: 4, warps_k: 1, consumer_groups: 1, stages: 3, sum_stages: 1, blocks: 1 };
        }
    };
}

macro_rules! tables {
    ($($sm:literal: $($name:ident: $shape:tt;)*)*) => {
        /// Every `zipgemm` kernel and its shape.
        pub const GEMMS: &[(&str, Gemm)] = &[$($((stringify!($name), Gemm $shape),)*)*];

        const GEMM_LAUNCHES: &[Launch] =
            &[$($((Gemm $shape).launch(stringify!($name), $sm),)*)*];
    };
}
gemm_kernels!(tables);

/// Every `zipgemm_grouped` kernel, as in [`gemm_kernels`]. A row block of a gated product has the gate's features in its
/// first strips and those that they are multiplied by in the others, so there are two strips at least.
#[macro_export]
macro_rules! grouped_kernels {
    ($use:ident) => {
        $use! {
            "90a":
            zipgemm_grouped_n8_2x4x2: { n_tiles: 1, warps_m: 2, warps_k: 4, consumer_groups: 2, stages: 4, sum_stages: 2, blocks: 1 };
            "80":
            zipgemm_grouped_sm80_n8_2x2x2: { n_tiles: 1, warps_m: 2, warps_k: 2, consumer_groups: 2, stages: 4, sum_stages: 1, blocks: 2 };
            zipgemm_grouped_sm80_n32_4x1x1: { n_tiles: 4, warps_m: 4, warps_k: 1, consumer_groups: 1, stages: 3, sum_stages: 1, blocks: 2 };
        }
    };
}

macro_rules! grouped_tables {
    ($($sm:literal: $($name:ident: $shape:tt;)*)*) => {
        /// Every `zipgemm_grouped` kernel and its shape.
        pub const GROUPED: &[(&str, Gemm)] = &[$($((stringify!($name), Gemm $shape),)*)*];

        const GROUPED_LAUNCHES: &[Launch] =
            &[$($((Gemm $shape).launch_grouped(stringify!($name), $sm),)*)*];
    };
}
grouped_kernels!(grouped_tables);

/// Every `prefill` kernel: name, then [`Prefill`]'s fields. `$use` as in [`gemm_kernels`].
#[macro_export]
macro_rules! prefill_kernels {
    ($use:ident) => {
        $use! {
            prefill_n16: { tokens: 16, stages: 8, cluster: 2 };
            prefill_n32: { tokens: 32, stages: 8, cluster: 2 };
            prefill_n64: { tokens: 64, stages: 8, cluster: 2 };
            prefill_n128: { tokens: 128, stages: 6, cluster: 2 };
            prefill_n144: { tokens: 144, stages: 6, cluster: 2 };
            prefill_n176: { tokens: 176, stages: 5, cluster: 2 };
            prefill_n192: { tokens: 192, stages: 4, cluster: 2 };
            prefill_n224: { tokens: 224, stages: 4, cluster: 2 };
            prefill_n256: { tokens: 256, stages: 4, cluster: 2 };
        }
    };
}

macro_rules! prefills {
    ($($name:ident: $shape:tt;)*) => {
        /// Every `prefill` kernel and its shape.
        pub const PREFILLS: &[(&str, Prefill)] = &[$((stringify!($name), Prefill $shape)),*];

        const PREFILL_LAUNCHES: &[Launch] = &[$((Prefill $shape).launch(stringify!($name))),*];
    };
}
prefill_kernels!(prefills);

/// Every `prefill_grouped` kernel, as in [`prefill_kernels`]. Those for [few tokens](Prefill::has_few_tokens) can gate.
#[macro_export]
macro_rules! grouped_prefill_kernels {
    ($use:ident) => {
        $use! {
            prefill_grouped_n16: { tokens: 16, stages: 12, cluster: 2 };
            prefill_grouped_n32: { tokens: 32, stages: 8, cluster: 2 };
            prefill_grouped_n64: { tokens: 64, stages: 8, cluster: 2 };
            prefill_grouped_n144: { tokens: 144, stages: 6, cluster: 2 };
            prefill_grouped_n256: { tokens: 256, stages: 4, cluster: 2 };
        }
    };
}

macro_rules! grouped_prefills {
    ($($name:ident: $shape:tt;)*) => {
        /// Every `prefill_grouped` kernel and its shape.
        pub const GROUPED_PREFILLS: &[(&str, Prefill)] = &[$((stringify!($name), Prefill $shape)),*];

        const GROUPED_PREFILL_LAUNCHES: &[Launch] =
            &[$((Prefill $shape).launch(stringify!($name))),*];
    };
}
grouped_prefill_kernels!(grouped_prefills);

/// Every kernel's launch.
pub const KERNELS: &[Launch] = &concat::<
    { 7 + ENCODE.len() + GEMMS.len() + GROUPED.len() + PREFILLS.len() + GROUPED_PREFILLS.len() },
>(&[
    &[DECOMPRESS, GATHER, GATE, READ, ROUTE, COMBINE, ARRANGE],
    ENCODE,
    GEMM_LAUNCHES,
    GROUPED_LAUNCHES,
    PREFILL_LAUNCHES,
    GROUPED_PREFILL_LAUNCHES,
]);

/// All `N` launches of some lists. (Iterators are not for constants.)
const fn concat<const N: usize>(lists: &[&[Launch]]) -> [Launch; N] {
    let mut all = [DECOMPRESS; N];
    let (mut list, mut next) = (0, 0);
    while list < lists.len() {
        let mut i = 0;
        while i < lists[list].len() {
            all[next] = lists[list][i];
            (i, next) = (i + 1, next + 1);
        }
        list += 1;
    }
    assert!(next == N);
    all
}

/// The launch of the kernel called `name`, of a crate's `KERNELS`.
pub const fn find(kernels: &[Launch], name: &str) -> Launch {
    let mut at = 0;
    while at < kernels.len() {
        if is_same(kernels[at].name.as_bytes(), name.as_bytes()) {
            return kernels[at];
        }
        at += 1;
    }
    panic!("a kernel has no row in its crate's KERNELS")
}

const fn is_same(a: &[u8], b: &[u8]) -> bool {
    let mut at = 0;
    while at < a.len() && at < b.len() && a[at] == b[at] {
        at += 1;
    }
    at == a.len() && at == b.len()
}

const DECOMPRESS: Launch = Launch {
    name: "decompress",
    threads: 256,
    min_blocks: 4,
    shared_bytes: 8 * DECOMPRESS_WARP_BYTES,
    cluster: 1,
};

/// The kernels that encode, in the order of their launches.
const ENCODE: &[Launch] = &[
    encode("encode_histogram", ENCODE_THREADS, 256 * ENCODE_THREADS),
    encode("encode_window", 1, 0),
    encode("encode_counts", ENCODE_THREADS, 0),
    encode("encode_offsets", ENCODE_SCAN_THREADS, 4 * 32),
    encode(
        "encode_tiles",
        ENCODE_THREADS,
        ENCODE_THREADS / 32 * DECOMPRESS_WARP_BYTES,
    ),
    encode("encode_checksum", ENCODE_THREADS, 4 * 4 * 256),
    encode("encode_header", 1, 0),
];

const fn encode(name: &'static str, threads: usize, shared_bytes: usize) -> Launch {
    Launch {
        name,
        threads,
        min_blocks: 1,
        shared_bytes,
        cluster: 1,
    }
}

const GATHER: Launch = Launch {
    name: "gather",
    threads: 256,
    min_blocks: 4,
    shared_bytes: 8 * GATHER_WARP_BYTES,
    cluster: 1,
};

const GATE: Launch = Launch {
    name: "gate",
    threads: GATE_FEATURES / 8,
    min_blocks: 8,
    shared_bytes: 0,
    cluster: 1,
};

/// Features of a block of `gate`.
pub const GATE_FEATURES: usize = 1024;

const ARRANGE: Launch = Launch {
    name: "arrange",
    threads: ARRANGE_FEATURES / 8,
    min_blocks: 8,
    shared_bytes: 0,
    cluster: 1,
};

/// Features of a block of `arrange`.
pub const ARRANGE_FEATURES: usize = 2048;

const READ: Launch = Launch {
    name: "read",
    threads: READ_THREADS,
    min_blocks: 2,
    shared_bytes: 0,
    cluster: 1,
};

const ROUTE: Launch = Launch {
    name: "route",
    threads: ROUTE_THREADS,
    min_blocks: 1,
    shared_bytes: 4 * (ROUTE_THREADS / 32 + 2 * MAX_EXPERTS) + 2 * ROUTE_THREADS / 32 * MAX_EXPERTS,
    cluster: 1,
};

const COMBINE: Launch = Launch {
    name: "combine",
    threads: COMBINE_FEATURES / 4,
    min_blocks: 4,
    shared_bytes: 0,
    cluster: 1,
};

/// Features of a block of `combine`.
pub const COMBINE_FEATURES: usize = 1024;

/// Threads of a block of `route`, one an expert, and assignments that it places at a time.
pub const ROUTE_THREADS: usize = MAX_EXPERTS;
/// Experts of a layer, at most.
pub const MAX_EXPERTS: usize = 1024;

/// Shared memory of one warp of `decompress`: a tile, its rows 16 bytes apart in banks.
pub const DECOMPRESS_WARP_BYTES: usize = TILE_ROWS * (2 * TILE_COLS + 16);

/// Shared memory of one warp of `gather`: the part of a row that a tile has.
pub const GATHER_WARP_BYTES: usize = 2 * TILE_COLS;

/// Threads of a block of the `encode` kernels, but where one thread or block does all.
pub const ENCODE_THREADS: usize = 256;
/// Threads of the block that adds up numbers of patches.
pub const ENCODE_SCAN_THREADS: usize = 1024;

/// Threads of a block of `read`.
pub const READ_THREADS: usize = 512;
