use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Tokens, at most, of which memory sets the pace; that of more are floating-point operations.
pub const MEMORY_BOUND: usize = 64;

/// What a run of the harness found. Its file has nothing that can be computed from the rest of it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Report {
    /// The device.
    pub device: String,
    /// The driver's version, and the CUDA version that it knows.
    pub driver: String,
    /// Which build of the kernels ran.
    pub kernels: String,
    /// CRC-32 of their PTX, but for its comments; none in a file made before it was told.
    pub ptx_crc32: Option<u32>,
    /// Whether plans came from a [`TuningTable`](zipserv::gpu::tuning::TuningTable) where that has any.
    pub tuned: bool,
    /// When, UTC.
    pub date: String,
    /// The commit that was built, if the caller said.
    pub commit: Option<String>,
    /// What the random data were made from.
    pub seed: u64,
    /// Replays that a median is of.
    pub replays: usize,
    /// Seconds for which each launch of a multiplication was replayed alone, if it was; the median
    /// is then of the replays in the second half.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sustained_s: Option<f64>,
    /// The read ceiling, measured in the same run: TB/s of a kernel that only reads.
    pub read_tbs: f64,
    /// Multiplications.
    pub gemm: Vec<GemmRow>,
    /// Decompressions.
    pub decompress: Vec<DecompressRow>,
}

/// A layer and its compressed size.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LayerInfo {
    /// The model.
    pub model: String,
    /// The layer's name.
    pub name: String,
    /// Output features, M.
    pub rows: usize,
    /// Input features, K.
    pub cols: usize,
    /// Bytes that the kernels read.
    pub compressed_bytes: usize,
}

impl LayerInfo {
    /// Bytes as BF16.
    pub fn bf16_bytes(&self) -> usize {
        2 * self.rows * self.cols
    }

    /// TFLOP/s of a multiplication by `n` tokens that takes so many microseconds.
    pub fn tflops(&self, n: usize, us: f64) -> f64 {
        2.0 * self.rows as f64 * self.cols as f64 * n as f64 / us / 1e6
    }

    /// TB/s of so many bytes read, and of the dense weights written, in so many microseconds.
    fn restored_tbs(&self, compressed_bytes: usize, us: f64) -> f64 {
        (compressed_bytes + self.bf16_bytes()) as f64 / us / 1e6
    }
}

/// One layer times some tokens.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct GemmRow {
    /// The layer.
    pub layer: LayerInfo,
    /// Tokens.
    pub n: usize,
    /// The read ceiling of the run, which its file has once.
    #[serde(skip)]
    pub read_tbs: f64,
    /// The best time of cuBLAS, microseconds.
    pub cublas_us: f64,
    /// Whose that is: cuBLAS's own choice, or which of cuBLASLt's.
    pub cublas_choice: String,
    /// cuBLAS on weights that are restored for it each time, where that was measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decoupled: Option<Decoupled>,
    /// ZipServ's kernel as published, where that was measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub published: Option<Published>,
    /// cuBLAS on weights that are restored from ZipServ's layout as published, where that was
    /// measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub published_decoupled: Option<Decoupled>,
    /// The batch-invariant plan, where that was measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub invariant: Option<Invariant>,
    /// Our kernels, first the plan's.
    pub kernels: Vec<KernelRow>,
    /// What the plan is where there is memory for dense weights, for more than [`MEMORY_BOUND`]
    /// tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dispatch: Option<Dispatch>,
}

/// The plan where there is memory for dense weights: the fused kernel, or decompression and
/// cuBLASLt's first choice.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Dispatch {
    /// What the plan says of itself.
    pub plan: String,
    /// Whether the weights are decompressed first. If not, this is the first of the row's kernels,
    /// whose figures these are.
    pub decoupled: bool,
    /// Microseconds.
    pub us: f64,
    /// Largest deviation of an output from the FP32 reference, as a share of the outputs' root
    /// mean square.
    pub deviation: f64,
    /// Whether every output of the timed launches is as close as BF16 lets it be.
    pub correct: bool,
}

/// ZipServ's kernel as published, on weights in its own layout, see
/// [`PublishedMatrix`](crate::published::PublishedMatrix).
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Published {
    /// Its name.
    pub kernel: String,
    /// Parts of K, of several numbers the fastest.
    pub split_k: u32,
    /// Bytes that it reads.
    pub compressed_bytes: usize,
    /// Microseconds, launched plainly.
    pub us: f64,
    /// Largest deviation of an output from the FP32 reference, as a share of the outputs' root
    /// mean square.
    pub deviation: f64,
    /// Whether every output of the timed launches is as close as BF16 lets it be.
    pub correct: bool,
}

/// The [batch-invariant](zipserv::gpu::PlanOptions::batch_invariant) plan.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Invariant {
    /// What the plan says of itself.
    pub plan: String,
    /// Microseconds, launched plainly.
    pub plain_us: f64,
    /// With programmatic dependent launch, where the device has it.
    pub pdl_us: Option<f64>,
    /// Largest deviation of an output from the FP32 reference, as a share of the outputs' root
    /// mean square.
    pub deviation: f64,
    /// Whether every output of the timed launches is as close as BF16 lets it be.
    pub correct: bool,
    /// Whether every token's outputs have the bits that they have in each of the layer's rows before
    /// this one that has the token too, however it was launched.
    pub same_bits: bool,
}

/// `decompress` into a buffer of dense weights, always the same one, followed by cuBLAS on it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Decoupled {
    /// Whose multiplication was the fastest: cuBLAS's own choice, or which of cuBLASLt's.
    pub cublas_choice: String,
    /// Microseconds of both together.
    pub us: f64,
    /// Largest deviation of an output from the FP32 reference, as a share of the outputs' root
    /// mean square.
    pub deviation: f64,
    /// Whether the weights were restored exactly, and every output of the timed launches is as
    /// close as cuBLAS's sums let it be.
    pub correct: bool,
}

/// One of our kernels on one layer.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct KernelRow {
    /// Its name.
    pub kernel: String,
    /// Thread blocks.
    pub blocks: u32,
    /// Output tiles that they share along K, where the kernel has output tiles.
    pub shared_tiles: Option<u32>,
    /// Whether the plan chooses it.
    pub planned: bool,
    /// Microseconds, launched plainly.
    pub plain_us: f64,
    /// With programmatic dependent launch, where the device has it.
    pub pdl_us: Option<f64>,
    /// Largest deviation of an output from the FP32 reference, as a share of the outputs' root
    /// mean square.
    pub deviation: f64,
    /// Whether every output of the timed launches is as close as BF16 lets it be.
    pub correct: bool,
}

/// Geometric means over the layers, of the plan's kernels.
#[derive(Clone, Copy, Debug)]
pub struct Mean {
    /// Tokens.
    pub n: usize,
    /// Layers.
    pub layers: usize,
    /// x cuBLAS, launched plainly.
    pub plain: f64,
    /// x cuBLAS, with programmatic dependent launch where the device has it.
    pub pdl: f64,
    /// The smallest of these.
    pub worst: f64,
    /// x cuBLAS if the compressed bytes moved at the read ceiling.
    pub limit: f64,
    /// x cuBLAS of the fastest kernel tried on each layer, with programmatic dependent launch.
    pub best: f64,
    /// x cuBLAS of decompression followed by cuBLAS, where that was measured on all of the layers.
    pub decoupled: Option<f64>,
    /// ZipServ's kernels as published, where they were measured on all of the layers.
    pub published: Option<PublishedMean>,
    /// The batch-invariant plans, where they were measured on all of the layers.
    pub invariant: Option<InvariantMean>,
}

/// Geometric means of the batch-invariant plans.
#[derive(Clone, Copy, Debug)]
pub struct InvariantMean {
    /// x cuBLAS, launched plainly.
    pub plain: f64,
    /// x cuBLAS, with programmatic dependent launch where the device has it.
    pub pdl: f64,
    /// The smallest of these.
    pub worst: f64,
}

/// Geometric means of ZipServ's kernels as published, and beside them.
#[derive(Clone, Copy, Debug)]
pub struct PublishedMean {
    /// x cuBLAS of the published kernels, launched plainly.
    pub speedup: f64,
    /// x published of the plan's kernels, launched plainly.
    pub plain: f64,
    /// x published of the plan's kernels, with programmatic dependent launch where the device has
    /// it.
    pub pdl: f64,
}

/// One layer restored to BF16.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DecompressRow {
    /// The layer.
    pub layer: LayerInfo,
    /// The read ceiling of the run, which its file has once.
    #[serde(skip)]
    pub read_tbs: f64,
    /// Microseconds.
    pub us: f64,
    /// Whether every copy that the timed launches wrote has the bits of the original.
    pub exact: bool,
    /// The same from ZipServ's layout as published, where that was measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub published: Option<PublishedDecompress>,
}

/// One layer restored to BF16 from ZipServ's layout as published.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct PublishedDecompress {
    /// Bytes that the kernel reads.
    pub compressed_bytes: usize,
    /// Microseconds.
    pub us: f64,
    /// Whether every copy that the timed launches wrote has the bits of the original.
    pub exact: bool,
}

impl Report {
    /// Reads what [`json`](super::json) writes of one.
    ///
    /// # Errors
    /// When it is something else.
    pub fn from_json(json: &[u8]) -> Result<Self, serde_json::Error> {
        let mut report: Self = serde_json::from_slice(json)?;
        let read_tbs = report.read_tbs;
        report
            .gemm
            .iter_mut()
            .for_each(|row| row.read_tbs = read_tbs);
        let restored = report.decompress.iter_mut();
        restored.for_each(|row| row.read_tbs = read_tbs);
        Ok(report)
    }

    /// Whether every output was right.
    pub fn is_correct(&self) -> bool {
        let kernels = self.gemm.iter().flat_map(|row| &row.kernels);
        let rows = self.gemm.iter();
        let decoupled = rows.flat_map(|row| row.decoupled.iter().chain(&row.published_decoupled));
        let published = self.gemm.iter().flat_map(|row| &row.published);
        let dispatch = self.gemm.iter().flat_map(|row| &row.dispatch);
        let invariant = self.gemm.iter().flat_map(|row| &row.invariant);
        let exact = |row: &DecompressRow| row.exact && row.published.is_none_or(|p| p.exact);
        let mut all = kernels
            .map(|kernel| kernel.correct)
            .chain(decoupled.map(|decoupled| decoupled.correct))
            .chain(published.map(|published| published.correct))
            .chain(dispatch.map(|dispatch| dispatch.correct))
            .chain(invariant.map(|invariant| invariant.correct && invariant.same_bits))
            .chain(self.decompress.iter().map(exact));
        all.all(|correct| correct)
    }
}

impl GemmRow {
    /// x cuBLAS of what takes so many microseconds.
    pub fn speedup(&self, us: f64) -> f64 {
        self.cublas_us / us
    }

    /// TFLOP/s of what takes so many microseconds.
    pub fn tflops(&self, us: f64) -> f64 {
        self.layer.tflops(self.n, us)
    }

    /// TB/s of compressed bytes of what takes so many microseconds.
    pub fn tbs(&self, us: f64) -> f64 {
        self.layer.compressed_bytes as f64 / us / 1e6
    }

    /// That as a share of the read ceiling.
    pub fn of_read(&self, us: f64) -> f64 {
        self.tbs(us) / self.read_tbs
    }

    /// x cuBLAS if the compressed bytes moved at the read ceiling.
    pub fn limit(&self) -> f64 {
        self.speedup(self.layer.compressed_bytes as f64 / self.read_tbs / 1e6)
    }

    /// How much longer than the better of the fused kernel and the best decoupled way the dispatch
    /// takes, where all of them were measured.
    ///
    /// # Panics
    /// When the row has no kernel.
    pub fn regret(&self) -> Option<f64> {
        let fused = self.kernels[0].best_us();
        let decoupled = self.decoupled.as_ref()?.us;
        Some(self.dispatch.as_ref()?.us / fused.min(decoupled))
    }
}

impl Invariant {
    /// Of the faster way to launch it that the device has.
    pub fn best_us(&self) -> f64 {
        self.pdl_us.unwrap_or(self.plain_us)
    }
}

impl KernelRow {
    /// Of the faster way to launch it that the device has.
    pub fn best_us(&self) -> f64 {
        self.pdl_us.unwrap_or(self.plain_us)
    }
}

impl DecompressRow {
    /// TB/s of bytes read and written.
    pub fn tbs(&self) -> f64 {
        self.layer
            .restored_tbs(self.layer.compressed_bytes, self.us)
    }

    /// The same from ZipServ's layout as published, where that was measured.
    pub fn published_tbs(&self) -> Option<f64> {
        let published = self.published.as_ref()?;
        let bytes = published.compressed_bytes;
        Some(self.layer.restored_tbs(bytes, published.us))
    }
}

/// The means for each number of tokens, in order.
///
/// # Panics
/// When a row has no kernel.
pub fn means<'a>(rows: impl IntoIterator<Item = &'a GemmRow>) -> Vec<Mean> {
    let mut by_tokens: BTreeMap<usize, Vec<&GemmRow>> = BTreeMap::new();
    for row in rows {
        by_tokens.entry(row.n).or_default().push(row);
    }
    let mean = |(n, rows): (usize, Vec<&GemmRow>)| {
        let of =
            |value: &dyn Fn(&GemmRow) -> f64| geometric_mean(rows.iter().map(|row| value(row)));
        let planned = |row: &GemmRow| row.speedup(row.kernels[0].best_us());
        let fastest = |row: &GemmRow| {
            let times = row.kernels.iter().map(KernelRow::best_us);
            row.speedup(times.fold(f64::INFINITY, f64::min))
        };
        Mean {
            n,
            layers: rows.len(),
            plain: of(&|row| row.speedup(row.kernels[0].plain_us)),
            pdl: of(&planned),
            worst: least(rows.iter().map(|row| planned(row))),
            limit: of(&GemmRow::limit),
            best: of(&fastest),
            decoupled: rows
                .iter()
                .map(|row| Some(row.speedup(row.decoupled.as_ref()?.us)))
                .collect::<Option<Vec<_>>>()
                .map(|speedups| geometric_mean(speedups.into_iter())),
            published: published_mean(&rows),
            invariant: invariant_mean(&rows),
        }
    };
    by_tokens.into_iter().map(mean).collect()
}

/// Nothing where a row has no published kernel.
fn published_mean(rows: &[&GemmRow]) -> Option<PublishedMean> {
    let us = |row: &&GemmRow| Some(row.published.as_ref()?.us);
    let all: Vec<f64> = rows.iter().map(us).collect::<Option<_>>()?;
    let both = || rows.iter().zip(&all);
    Some(PublishedMean {
        speedup: geometric_mean(both().map(|(row, us)| row.speedup(*us))),
        plain: geometric_mean(both().map(|(row, us)| us / row.kernels[0].plain_us)),
        pdl: geometric_mean(both().map(|(row, us)| us / row.kernels[0].best_us())),
    })
}

/// Nothing where a row has no batch-invariant plan.
fn invariant_mean(rows: &[&GemmRow]) -> Option<InvariantMean> {
    let times = |row: &&GemmRow| {
        let invariant = row.invariant.as_ref()?;
        let times = [invariant.plain_us, invariant.best_us()];
        Some(times.map(|us| row.speedup(us)))
    };
    let all: Vec<[f64; 2]> = rows.iter().map(times).collect::<Option<_>>()?;
    Some(InvariantMean {
        plain: geometric_mean(all.iter().map(|speedups| speedups[0])),
        pdl: geometric_mean(all.iter().map(|speedups| speedups[1])),
        worst: least(all.iter().map(|speedups| speedups[1])),
    })
}

fn least(values: impl Iterator<Item = f64>) -> f64 {
    values.fold(f64::INFINITY, f64::min)
}

pub(super) fn geometric_mean(values: impl ExactSizeIterator<Item = f64>) -> f64 {
    let count = values.len() as f64;
    (values.map(f64::ln).sum::<f64>() / count).exp()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mean_of_ratios() {
        let mean = geometric_mean([1.0, 2.0, 4.0].into_iter());
        assert!((mean - 2.0).abs() < 1e-12);
    }

    #[test]
    fn means_of_layers() {
        let row = |n: usize, speedup: f64, decoupled: Option<f64>| GemmRow {
            layer: LayerInfo {
                model: "a model".to_owned(),
                name: "a layer".to_owned(),
                rows: 1,
                cols: 1,
                compressed_bytes: 1_000_000,
            },
            n,
            read_tbs: 2.0,
            cublas_us: 1.0,
            cublas_choice: "cublasGemmEx".to_owned(),
            decoupled: decoupled.map(|speedup| Decoupled {
                cublas_choice: "cublasGemmEx".to_owned(),
                us: 1.0 / speedup,
                deviation: 0.0,
                correct: true,
            }),
            published_decoupled: None,
            published: decoupled.map(|speedup| Published {
                kernel: "another kernel".to_owned(),
                split_k: 1,
                compressed_bytes: 1,
                us: 1.0 / speedup,
                deviation: 0.0,
                correct: true,
            }),
            invariant: decoupled.map(|speedup| Invariant {
                plan: "a plan".to_owned(),
                plain_us: 2.0 / speedup,
                pdl_us: Some(1.0 / speedup),
                deviation: 0.0,
                correct: true,
                same_bits: true,
            }),
            kernels: vec![KernelRow {
                kernel: "a kernel".to_owned(),
                blocks: 1,
                shared_tiles: None,
                planned: true,
                plain_us: 1.0 / speedup,
                pdl_us: None,
                deviation: 0.0,
                correct: true,
            }],
            dispatch: None,
        };
        let rows = [
            row(128, 1.0, Some(0.25)),
            row(8, 2.0, Some(0.5)),
            row(128, 4.0, Some(1.0)),
            row(8, 2.0, None),
        ];
        let means = means(&rows);
        let [few, many] = means.as_slice() else {
            panic!("two numbers of tokens: {means:?}")
        };
        assert_eq!((few.n, few.layers, few.decoupled), (8, 2, None));
        assert_eq!((many.n, many.layers), (128, 2));
        let near = |a: f64, b: f64| assert!((a - b).abs() < 1e-12, "{a} {b}");
        near(many.plain, 2.0);
        near(many.pdl, 2.0);
        near(many.worst, 1.0);
        near(many.limit, 2.0);
        near(many.decoupled.unwrap(), 0.5);
        assert!(few.published.is_none());
        let published = many.published.unwrap();
        near(published.speedup, 0.5);
        near(published.plain, 4.0);
        near(published.pdl, 4.0);
        assert!(few.invariant.is_none());
        let invariant = many.invariant.unwrap();
        near(invariant.plain, 0.25);
        near(invariant.pdl, 0.5);
        near(invariant.worst, 0.25);
    }
}
