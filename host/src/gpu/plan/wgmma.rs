use std::fmt;

use zipserv_gpu::{
    args::PrefillArgs,
    launch::{PREFILLS, Prefill},
    layout::TILE_COLS,
    sched::schedule::Decomposition,
};

use crate::gpu::{
    driver::RawStream,
    error::GpuError,
    matrix::DeviceMatrix,
    operands::{RawOperands, check_tokens},
    tensor_map,
    workspace::Workspace,
};

/// The launch of a kernel for many tokens. [`wgmma_plan`] chooses one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WgmmaPlan {
    pub kernel: &'static str,
    pub shape: Prefill,
    /// Clusters of thread blocks.
    pub clusters: u32,
    /// Clusters that there can be.
    pub most: u32,
    /// Output tiles: of all features and tokens, of the features and tokens of a cluster each.
    pub tiles: u32,
    /// Output tiles that clusters share along K.
    pub shared_tiles: u32,
    /// k-tiles of an output tile.
    pub k_tiles: u32,
}

/// Chooses kernel and launch for `n` tokens.
///
/// # Errors
/// [`GpuError::NoKernel`] when the device has none.
pub fn wgmma_plan(weights: &DeviceMatrix, n: usize) -> Result<WgmmaPlan, GpuError> {
    let device = weights.device();
    let kernels = PREFILLS.iter().filter(|(name, _)| device.has(name));
    let size = (weights.rows(), weights.cols());
    let sms = device.sms() as usize;
    let (name, _) = kernels
        .min_by_key(|(_, shape)| cost(shape, size, n, sms))
        .ok_or_else(|| device.no_kernel("prefill"))?;
    WgmmaPlan::with_kernel(weights, n, name)
}

/// Roughly the nanoseconds that weights of `m` x `k` and `n` tokens take in output tiles of a shape: the k-tiles
/// of the cluster that has most, which cost their tokens' multiplication, but also the weights'
/// decoding, and the partial sums that those which share a tile store. Of 25 choices between all shapes and splits that were
/// measured (an H200, five layers with 96 to 512 tokens) all but two were the fastest, and those were 1 and 2 %
/// slower.
pub fn cost(shape: &Prefill, (m, k): (usize, usize), n: usize, sms: usize) -> usize {
    /// For each token of a tile and each cluster that stores partial sums.
    const STORED: usize = 13;
    let (tiles, k_tiles) = (tiles(shape, m, n), k.div_ceil(TILE_COLS));
    let (clusters, shared) = decompose(tiles, k_tiles, sms / shape.cluster);
    let (k_tiles_each, sharers) = match clusters.checked_div(shared) {
        Some(parts) => ((tiles * k_tiles).div_ceil(clusters), parts.max(2)),
        None => (tiles.div_ceil(clusters.max(1)) * k_tiles, 1),
    };
    k_tiles_each * k_tile_time(shape.tokens) + (sharers - 1) * STORED * shape.tokens
}

/// Nanoseconds of a k-tile of so many tokens.
fn k_tile_time(tokens: usize) -> usize {
    /// Tokens, and what was measured on 28672 x 4096 with the kernels of a125c1d131 on an H100, whose clusters
    /// have 109 k-tiles on average; those for 16, 176 and 192 moved by up to 2 %, so that no token costs more
    /// than those before.
    const MEASURED: &[(usize, usize)] = &[
        (16, 536),
        (32, 546),
        (64, 587),
        (128, 630),
        (144, 645),
        (176, 700),
        (192, 748),
        (224, 809),
        (256, 856),
    ];
    let between = MEASURED.windows(2).find(|pair| tokens <= pair[1].0);
    match between {
        Some(&[(few, short), (many, long)]) => {
            short + (long - short) * tokens.saturating_sub(few) / (many - few)
        }
        _ => MEASURED[MEASURED.len() - 1].1,
    }
}

impl WgmmaPlan {
    /// The launch of a named kernel.
    ///
    /// # Errors
    /// [`GpuError::Tokens`] when `n` is 0 or far too large, [`GpuError::NoKernel`] when the device has
    /// no such kernel, and what loading it fails with.
    pub fn with_kernel(weights: &DeviceMatrix, n: usize, kernel: &str) -> Result<Self, GpuError> {
        check_tokens(n)?;
        let device = weights.device();
        let kernel = device.find(PREFILLS, kernel)?;
        device.load(kernel.0)?;
        let size = (weights.rows(), weights.cols());
        let plan = Self::new(kernel, size, n, device.sms() as usize);
        Ok(plan.expect("MAX_TOKENS and rows of 32 bits make tiles of 32 bits"))
    }

    /// The launch of a kernel, by name and shape, for weights of `m` x `k`, on so many
    /// SMs; none for no tokens, or for too many output tiles.
    pub fn new(
        (kernel, shape): (&'static str, Prefill),
        (m, k): (usize, usize),
        n: usize,
        sms: usize,
    ) -> Option<Self> {
        let tiles = tiles(&shape, m, n);
        let tiles32 = u32::try_from(tiles).ok().filter(|_| n > 0)?;
        let k_tiles = k.div_ceil(TILE_COLS);
        let most = most_clusters(tiles, k_tiles, sms / shape.cluster);
        let (clusters, shared) = decompose(tiles, k_tiles, most);
        let plan = Self {
            kernel,
            shape,
            clusters: clusters as u32,
            most: most as u32,
            tiles: tiles32,
            shared_tiles: 0,
            k_tiles: k_tiles as u32,
        };
        Some(plan.with_shared_tiles(shared as u32))
    }

    /// How clusters share output tiles along K, of so many input features.
    pub(super) fn decomposition(&self, k: usize) -> Decomposition {
        /// k-tiles by which the last split of an output tile is longer: the other clusters' sums are there
        /// when it ends. Of 0, 2, 4, 6, 8, 12 and 16 it was the fastest or within 1 % of that for 64 to 512
        /// tokens, up to 6 % faster than 0 (4096 x 4096, 512 tokens).
        const HEAD_START: u32 = 6;
        let shared = self.shared_tiles;
        let k_tiles = k.div_ceil(TILE_COLS) as u32;
        let splits = self.clusters.checked_div(shared).unwrap_or(1);
        let all = shared == self.tiles && self.clusters == splits * shared;
        let k_tiles_per_split = if all && splits > 1 && k_tiles >= HEAD_START + splits {
            (k_tiles - HEAD_START) / splits
        } else {
            0
        };
        Decomposition {
            shared_tiles: shared,
            k_tiles_per_split,
        }
    }

    /// Whether the kernel can gate outputs itself.
    pub fn gates(&self) -> bool {
        self.shape.has_few_tokens()
    }

    /// Thread blocks.
    pub fn blocks(&self) -> u32 {
        self.clusters * self.shape.cluster as u32
    }

    /// The same with so many output tiles shared along K, at most all of them, and no more than have
    /// 2^32 k-tiles: kernels count those in 32 bits.
    #[must_use]
    pub fn with_shared_tiles(self, tiles: u32) -> Self {
        let most = self.tiles.min(u32::MAX / self.k_tiles.max(1));
        Self {
            shared_tiles: tiles.min(most),
            ..self
        }
    }

    /// The same on at most so many clusters of thread blocks, at least one.
    #[must_use]
    pub fn with_clusters(self, clusters: u32) -> Self {
        Self {
            clusters: clusters.clamp(1, self.most),
            ..self
        }
    }
}

impl fmt::Display for WgmmaPlan {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Self {
            clusters,
            tiles,
            shared_tiles,
            ..
        } = self;
        write!(
            f,
            "{tiles} output tiles over {clusters} clusters, {shared_tiles} of them shared"
        )
    }
}

/// How many of at most so many clusters there is work for.
pub fn most_clusters(tiles: usize, k_tiles: usize, most: usize) -> usize {
    /// Clusters that share an output tile, at most: one of them adds up all sums.
    const SHARERS: usize = 8;
    most.min(tiles * k_tiles.min(SHARERS)).max(1)
}

/// Decomposes output tiles of so many k-tiles among at most so many clusters: how many clusters to
/// take, and how many tiles they share along K.
pub fn decompose(tiles: usize, k_tiles: usize, most: usize) -> (usize, usize) {
    /// k-tiles by which equal splits may be longer than equal runs of everything. They
    /// save each cluster a second piece of a tile, whose sums pass through memory: that took 7 to
    /// 13 k-tiles at 256 tokens, 3 to 10 at 64 and 128 (4096, 5120 and 6144 features).
    const SAVED: usize = 8;
    /// k-tiles' time that each split but one costs, as its partial sums are stored and reduced: three splits of
    /// 4096 x 4096 were 2 to 5 % faster than four at 64, 128 and 192 tokens.
    const STORED: usize = 6;
    let clusters = most_clusters(tiles, k_tiles, most);
    // As many clusters for each tile, each with a split of it.
    let splits = 1..=clusters / tiles.max(1);
    let longest = |splits: usize| k_tiles.div_ceil(splits);
    let splits = splits.min_by_key(|&splits| longest(splits) + (splits - 1) * STORED);
    match splits {
        Some(splits) if longest(splits) <= (tiles * k_tiles).div_ceil(clusters) + SAVED => {
            (tiles * splits, if splits > 1 { tiles } else { 0 })
        }
        _ => (clusters, shared(tiles, k_tiles, clusters)),
    }
}

/// How many of the output tiles of so many k-tiles to share along K. Whole tiles go round as often as
/// they can, and some that are left over are shared.
fn shared(tiles: usize, k_tiles: usize, clusters: usize) -> usize {
    /// Rounds from which on sharing more than what is left over was 19 % slower than sharing
    /// nothing (28672 x 4096, 2048 tokens, 13 rounds); at three rounds (512 tokens) it was 10 % faster.
    const MANY: usize = 8;
    /// k-tiles of an output tile from which on one part in so many of all clusters' time may be idle: then what clusters
    /// that share need at a time is probably more than the L2 cache holds.
    /// Against cuBLAS in runs of their own, at 4,096 tokens, not to share was 4 and 14 % faster for
    /// 4096 x 14336 (3.9 rounds), 4 and 8 % slower for 6144 x 4096 and 12288 x 4096 (5.8 and 11.6).
    const LONG: usize = 128;
    const IDLE: usize = 25;
    let (rounds, rest) = (tiles / clusters, tiles % clusters);
    let idle = clusters - rest;
    let is_nearly_full = idle * 10 <= clusters
        || k_tiles >= LONG && rounds > 0 && idle * IDLE < clusters * (rounds + 1);
    if rest == 0 || is_nearly_full {
        0
    } else if rounds == 0 {
        rest
    } else if rounds < MANY {
        // As many again, so that no tile has more than two or three sharers.
        rest + clusters
    } else if rest * 4 >= clusters {
        rest
    } else {
        0
    }
}

/// Output tiles of `m` features and `n` tokens, of a cluster's features each.
pub fn tiles(shape: &Prefill, m: usize, n: usize) -> usize {
    m.div_ceil(Prefill::ROWS * shape.cluster) * n.div_ceil(shape.tokens)
}

/// Whether the kernels can read activations at `x` whose rows start `stride` apart: tensor copies
/// start at multiples of 16 bytes, and so must all rows.
pub fn can_read(x: u64, stride: usize) -> bool {
    stride.is_multiple_of(8) && x.is_multiple_of(16)
}

/// [`Plan::run_raw`](super::Plan::run_raw) for many tokens, of activations that [`can_read`] approves;
/// neither dimension of the weights is 0. If it `is_gated`, for which the plan [gates](WgmmaPlan::gates), outputs are
/// silu(first half) x (second half) of the features.
///
/// # Errors
/// [`GpuError::PlanMismatch`] and [`GpuError::WorkspaceTooSmall`] when the plan does not fit;
/// [`GpuError::Driver`].
///
/// # Safety
/// As [`Plan::run_raw`](super::Plan::run_raw).
pub unsafe fn run_wgmma(
    stream: RawStream,
    plan: &WgmmaPlan,
    pdl: bool,
    weights: &DeviceMatrix,
    operands: &RawOperands,
    is_gated: bool,
    workspace: &Workspace,
) -> Result<(), GpuError> {
    let (shape, blocks, n) = (plan.shape, plan.blocks() as usize, operands.n);
    let tiles = tiles(&shape, weights.rows(), n);
    if tiles != plan.tiles as usize {
        return Err(GpuError::mismatch(
            "output tiles, as many as",
            plan.tiles,
            tiles,
        ));
    }
    let bytes = blocks * shape.partial_bytes();
    Workspace::check_room("bytes for partial sums", bytes, workspace.sum_bytes())?;
    Workspace::check_room("flags", blocks, workspace.flags.len())?;
    let (dense, offsets, patches) = weights.addresses();
    let box_tokens = shape.box_tokens(n);
    let (x, x_stride, size) = (operands.x, operands.x_stride, [n, weights.cols()]);
    let args = PrefillArgs {
        x: tensor_map::activations(x, x_stride, size, box_tokens)?,
        tiles: weights.dense_map(),
        output: operands.output(),
        dense,
        offsets,
        patches,
        partials: workspace.sums.address() as *mut f32,
        flags: workspace.flags.address() as *mut u32,
        m: weights.rows() as u32,
        n: n as u32,
        k: weights.cols() as u32,
        decomposition: plan.decomposition(weights.cols()),
        box_tokens: box_tokens as u32,
        is_gated,
    };
    let device = weights.device();
    // SAFETY: the caller's promise; a plan names a kernel that takes these arguments.
    unsafe { device.launch(plan.kernel, blocks as u32, stream, pdl, args) }
}

#[cfg(test)]
mod tests {
    use super::{PREFILLS, WgmmaPlan, cost, decompose, k_tile_time, shared};

    #[test]
    fn tiles_are_shared_where_it_pays() {
        let known = [16, 64, 66, 112, 132, 224, 896, 1792].map(|tiles| shared(tiles, 64, 66));
        assert_eq!(known, [16, 0, 0, 112, 0, 92, 38, 0]);
        // With many input features only where much is left over.
        let known = [16, 112, 224, 256, 896].map(|tiles| shared(tiles, 224, 66));
        assert_eq!(known, [16, 112, 92, 0, 0]);
    }

    #[test]
    fn tiles_suit_the_number_of_tokens() {
        let of = |size, n| {
            let shapes = PREFILLS.iter().map(|(_, shape)| shape);
            let best = shapes.min_by_key(|shape| cost(shape, size, n, 132));
            best.unwrap().tokens
        };
        let tokens = |n| of((28672, 4096), n);
        let chosen = [1, 17, 33, 65, 129, 192, 193, 257, 385, 513, 577, 769, 1024].map(tokens);
        let tiles = [16, 32, 64, 128, 144, 192, 224, 144, 224, 176, 224, 224, 256];
        assert_eq!(chosen, tiles);
        // Few tiles: two of 128 tokens store less than one of 256.
        assert_eq!([256, 512].map(|n| of((4096, 4096), n)), [128, 256]);
    }

    #[test]
    fn k_tiles_of_more_tokens_take_longer_but_less_for_each() {
        let known = [16, 32, 144, 256].map(k_tile_time);
        assert_eq!(known, [536, 546, 645, 856]);
        assert_eq!([1, 160, 300].map(k_tile_time), [536, 672, 856]);
        for tokens in 16..256 {
            let (less, more) = (k_tile_time(tokens), k_tile_time(tokens + 1));
            assert!(less <= more && more * tokens <= less * (tokens + 1));
        }
    }

    /// Weights of 2^18 x 2^18 and 16,384 tokens have 2^20 output tiles of 2^12 k-tiles.
    #[test]
    fn shared_k_tiles_have_32_bits() {
        let kernel = PREFILLS[0];
        let plan = WgmmaPlan::new(kernel, (1 << 18, 1 << 18), 16_384, 132).unwrap();
        let all = plan.with_shared_tiles(u32::MAX);
        assert!(
            all.shared_tiles < plan.tiles && all.shared_tiles.checked_mul(all.k_tiles).is_some()
        );
        let small = WgmmaPlan::new(kernel, (4096, 4096), 16, 132).unwrap();
        assert_eq!(small.with_shared_tiles(u32::MAX).shared_tiles, small.tiles);
    }

    #[test]
    fn few_tiles_fall_into_equal_parts() {
        // 4096 x 4096, 4096 x 14336, 5120 x 5120, 5120 x 13824, 8192 x 28672.
        for (tiles, cols, parts) in [
            (16, 64, 3),
            (16, 224, 4),
            (20, 80, 3),
            (20, 216, 3),
            (32, 448, 2),
        ] {
            assert_eq!(decompose(tiles, cols, 66), (tiles * parts, tiles));
        }
        // Two parts of 6144 x 24576 would leave 18 of 66 clusters idle for long; of 6144 x 4096 not.
        assert_eq!(decompose(24, 384, 66), (66, 24));
        assert_eq!(decompose(24, 64, 66), (48, 24));
        // More tiles than clusters.
        assert_eq!(decompose(112, 64, 66), (66, 112));
        // Nearly all clusters have a whole tile.
        assert_eq!(decompose(60, 80, 66), (60, 0));
        assert_eq!(decompose(1, 1, 66), (1, 0));
    }
}
