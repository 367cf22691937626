use std::{
    collections::BTreeMap,
    io::Write,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::checkpoint::{self, At, OutputFile};

/// Tokens, at most, of which memory sets the pace; that of more are floating-point operations.
pub const MEMORY_BOUND: usize = 64;

/// What a run of the harness found.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Report {
    /// The device.
    pub device: String,
    /// The driver's version, and the CUDA version that it knows.
    pub driver: String,
    /// Which build of the kernels ran.
    pub kernels: String,
    /// Whether plans came from a [`TuningTable`](super::TuningTable) where that has any; false in
    /// files from before there were tables.
    #[serde(default)]
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
    /// What memory gives at most.
    pub ceilings: Ceilings,
    /// Multiplications.
    pub gemm: Vec<GemmRow>,
    /// Geometric means of the multiplications.
    pub means: Vec<Mean>,
    /// Decompressions.
    pub decompress: Vec<DecompressRow>,
}

/// The file of a report, which appears under its name when it is whole. Made before a run, it
/// tells at once when it cannot be.
pub struct ReportFile {
    path: PathBuf,
    output: OutputFile,
}

impl ReportFile {
    /// Prepares the file; with `force`, it is going to replace what is there.
    ///
    /// # Errors
    /// [`checkpoint::Error`] when the file cannot be written, or exists and is not to be replaced.
    pub fn create(path: impl AsRef<Path>, force: bool) -> Result<Self, checkpoint::Error> {
        let path = path.as_ref();
        Ok(Self {
            path: path.to_owned(),
            output: OutputFile::create(path, None, force)?,
        })
    }

    /// Writes `report`, a [`Report`], [`Steps`](super::Steps) or
    /// [`TuningTable`](super::TuningTable), as JSON.
    ///
    /// # Errors
    /// As [`ReportFile::create`].
    pub fn write(self, report: &impl Serialize) -> Result<(), checkpoint::Error> {
        let json = serde_json::to_string_pretty(report).expect("names are strings");
        writeln!(self.output.file(), "{json}").at(&self.path)?;
        self.output.commit()
    }
}

/// What memory gives at most, measured in the same run, in TB/s.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Ceilings {
    /// Bytes read and written by a copy from device to device.
    pub copy: f64,
    /// Bytes read by a kernel that does nothing else.
    pub read: f64,
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
}

/// One layer times some tokens.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct GemmRow {
    /// The layer.
    pub layer: LayerInfo,
    /// Tokens.
    pub n: usize,
    /// The best time of cuBLAS, microseconds.
    pub cublas_us: f64,
    /// TFLOP/s of that; 0 in files from before it was told.
    #[serde(default)]
    pub cublas_tflops: f64,
    /// Whose that is: cuBLAS's own choice, or which of cuBLASLt's.
    pub cublas_choice: String,
    /// x cuBLAS if the compressed bytes moved at the read ceiling.
    pub limit: f64,
    /// cuBLAS on weights that are restored for it each time, where that was measured.
    pub decoupled: Option<Decoupled>,
    /// ZipServ's kernel as published, where that was measured.
    pub published: Option<Published>,
    /// cuBLAS on weights that are restored from ZipServ's layout as published, where that was
    /// measured.
    #[serde(default)]
    pub published_decoupled: Option<Decoupled>,
    /// The batch-invariant plan, where that was measured.
    #[serde(default)]
    pub invariant: Option<Invariant>,
    /// Our kernels, first the plan's.
    pub kernels: Vec<KernelRow>,
    /// What the plan is where there is memory for dense weights, for more than [`MEMORY_BOUND`]
    /// tokens; none in files from before it was told.
    #[serde(default)]
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
    /// TFLOP/s.
    pub tflops: f64,
    /// x cuBLAS.
    pub speedup: f64,
    /// Largest deviation of an output from the FP32 reference, as a share of the outputs' root
    /// mean square.
    pub deviation: f64,
    /// Whether every output of the timed launches is as close as BF16 lets it be.
    pub correct: bool,
}

/// ZipServ's kernel as published, on weights in its own layout, see
/// [`PublishedMatrix`](crate::PublishedMatrix).
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Published {
    /// Its name.
    pub kernel: String,
    /// Parts of K, of several numbers the fastest.
    pub split: u32,
    /// Bytes that it reads.
    pub compressed_bytes: usize,
    /// Launched plainly.
    pub figure: Figure,
    /// Largest deviation of an output from the FP32 reference, as a share of the outputs' root
    /// mean square.
    pub deviation: f64,
    /// Whether every output of the timed launches is as close as BF16 lets it be.
    pub correct: bool,
}

/// The batch-invariant plan, `cuda::Plan::batch_invariant`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Invariant {
    /// What the plan says of itself.
    pub plan: String,
    /// Launched plainly.
    pub plain: Figure,
    /// With programmatic dependent launch, where the device has it.
    pub dependent: Option<Figure>,
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
    /// TFLOP/s.
    pub tflops: f64,
    /// x cuBLAS on weights that are dense from the start.
    pub speedup: f64,
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
    pub split: Option<u32>,
    /// Whether the plan chooses it.
    pub planned: bool,
    /// Launched plainly.
    pub plain: Figure,
    /// With programmatic dependent launch, where the device has it.
    pub dependent: Option<Figure>,
    /// Largest deviation of an output from the FP32 reference, as a share of the outputs' root
    /// mean square.
    pub deviation: f64,
    /// Whether every output of the timed launches is as close as BF16 lets it be.
    pub correct: bool,
}

/// A time, and what it comes to.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Figure {
    /// Microseconds.
    pub us: f64,
    /// TB/s of compressed bytes.
    pub tbs: f64,
    /// Share of the read ceiling.
    pub of_read: f64,
    /// TFLOP/s; 0 in files from before it was told.
    #[serde(default)]
    pub tflops: f64,
    /// x cuBLAS.
    pub speedup: f64,
}

/// Geometric means over the layers, of the plan's kernels.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Mean {
    /// Tokens.
    pub n: usize,
    /// Layers.
    pub layers: usize,
    /// x cuBLAS, launched plainly.
    pub plain: f64,
    /// x cuBLAS, with programmatic dependent launch where the device has it.
    pub dependent: f64,
    /// The smallest of the dependent ones.
    pub worst: f64,
    /// x cuBLAS if the compressed bytes moved at the read ceiling.
    pub limit: f64,
    /// x cuBLAS of the fastest kernel tried on each layer, with dependent launch.
    pub best: f64,
    /// x cuBLAS of decompression followed by cuBLAS, where that was measured on all of the layers.
    pub decoupled: Option<f64>,
    /// ZipServ's kernels as published, where they were measured on all of the layers.
    pub published: Option<PublishedMean>,
    /// The batch-invariant plans, where they were measured on all of the layers.
    #[serde(default)]
    pub invariant: Option<InvariantMean>,
}

/// Geometric means of the batch-invariant plans.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct InvariantMean {
    /// x cuBLAS, launched plainly.
    pub plain: f64,
    /// x cuBLAS, with programmatic dependent launch where the device has it.
    pub dependent: f64,
}

/// Geometric means of ZipServ's kernels as published, and beside them.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct PublishedMean {
    /// x cuBLAS of the published kernels, launched plainly.
    pub speedup: f64,
    /// x published of the plan's kernels, launched plainly.
    pub plain: f64,
    /// x published of the plan's kernels, with programmatic dependent launch where the device has
    /// it.
    pub dependent: f64,
}

/// One layer restored to BF16.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DecompressRow {
    /// The layer.
    pub layer: LayerInfo,
    /// Microseconds.
    pub us: f64,
    /// TB/s of bytes read and written.
    pub tbs: f64,
    /// Share of the copy ceiling.
    pub of_copy: f64,
    /// Whether every copy that the timed launches wrote has the bits of the original.
    pub exact: bool,
    /// The same from ZipServ's layout as published, where that was measured.
    pub published: Option<PublishedDecompress>,
}

/// One layer restored to BF16 from ZipServ's layout as published.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct PublishedDecompress {
    /// Bytes that the kernel reads.
    pub compressed_bytes: usize,
    /// Microseconds.
    pub us: f64,
    /// TB/s of bytes read and written.
    pub tbs: f64,
    /// Share of the copy ceiling.
    pub of_copy: f64,
    /// Whether every copy that the timed launches wrote has the bits of the original.
    pub exact: bool,
}

impl Report {
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
    /// How much longer than the better of the fused kernel and the best decoupled way the dispatch
    /// takes, where all of them were measured.
    ///
    /// # Panics
    /// When the row has no kernel.
    pub fn regret(&self) -> Option<f64> {
        let fused = self.kernels[0].best().us;
        let decoupled = self.decoupled.as_ref()?.us;
        Some(self.dispatch.as_ref()?.us / fused.min(decoupled))
    }
}

impl Published {
    /// x published of a kernel that takes so many microseconds.
    pub fn speedup_of(&self, us: f64) -> f64 {
        self.figure.us / us
    }
}

impl Invariant {
    /// The faster way to launch it that the device has.
    pub fn best(&self) -> Figure {
        self.dependent.unwrap_or(self.plain)
    }
}

impl KernelRow {
    /// The faster way to launch it that the device has.
    pub fn best(&self) -> Figure {
        self.dependent.unwrap_or(self.plain)
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
        let planned = |row: &GemmRow| row.kernels[0].best().speedup;
        let fastest = |row: &GemmRow| {
            let all = row.kernels.iter().map(|kernel| kernel.best().speedup);
            all.fold(0.0, f64::max)
        };
        Mean {
            n,
            layers: rows.len(),
            plain: of(&|row| row.kernels[0].plain.speedup),
            dependent: of(&planned),
            worst: rows
                .iter()
                .map(|row| planned(row))
                .fold(f64::INFINITY, f64::min),
            limit: of(&|row| row.limit),
            best: of(&fastest),
            decoupled: rows
                .iter()
                .map(|row| Some(row.decoupled.as_ref()?.speedup))
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
    let both = |row: &&GemmRow| Some((row.published.clone()?, row.kernels[0].clone()));
    let both: Vec<_> = rows.iter().map(both).collect::<Option<_>>()?;
    let of = |value: &dyn Fn(&Published, &KernelRow) -> f64| {
        geometric_mean(both.iter().map(|(published, ours)| value(published, ours)))
    };
    Some(PublishedMean {
        speedup: of(&|published, _| published.figure.speedup),
        plain: of(&|published, ours| published.speedup_of(ours.plain.us)),
        dependent: of(&|published, ours| published.speedup_of(ours.best().us)),
    })
}

/// Nothing where a row has no batch-invariant plan.
fn invariant_mean(rows: &[&GemmRow]) -> Option<InvariantMean> {
    let all = rows.iter().map(|row| row.invariant.as_ref());
    let all: Vec<_> = all.collect::<Option<_>>()?;
    let of = |figure: &dyn Fn(&Invariant) -> Figure| {
        geometric_mean(all.iter().map(|invariant| figure(invariant).speedup))
    };
    Some(InvariantMean {
        plain: of(&|invariant| invariant.plain),
        dependent: of(&Invariant::best),
    })
}

pub(super) fn geometric_mean(values: impl ExactSizeIterator<Item = f64>) -> f64 {
    let count = values.len() as f64;
    (values.map(f64::ln).sum::<f64>() / count).exp()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn mean_of_ratios() {
        let mean = geometric_mean([1.0, 2.0, 4.0].into_iter());
        assert!((mean - 2.0).abs() < 1e-12);
    }

    #[test]
    fn means_of_layers() {
        let figure = |us: f64, speedup: f64| Figure {
            us,
            tbs: 1.0,
            of_read: 1.0,
            tflops: 1.0,
            speedup,
        };
        let row = |n: usize, speedup: f64, decoupled: Option<f64>| GemmRow {
            layer: LayerInfo {
                model: "a model".to_owned(),
                name: "a layer".to_owned(),
                rows: 1,
                cols: 1,
                compressed_bytes: 1,
            },
            n,
            cublas_us: 1.0,
            cublas_tflops: 1.0,
            cublas_choice: "cublasGemmEx".to_owned(),
            limit: speedup,
            decoupled: decoupled.map(|speedup| Decoupled {
                cublas_choice: "cublasGemmEx".to_owned(),
                us: 1.0,
                tflops: 1.0,
                speedup,
                deviation: 0.0,
                correct: true,
            }),
            published_decoupled: None,
            published: decoupled.map(|speedup| Published {
                kernel: "another kernel".to_owned(),
                split: 1,
                compressed_bytes: 1,
                figure: figure(3.0, speedup),
                deviation: 0.0,
                correct: true,
            }),
            invariant: decoupled.map(|speedup| Invariant {
                plan: "a plan".to_owned(),
                plain: figure(1.0, speedup / 2.0),
                dependent: Some(figure(1.0, speedup)),
                deviation: 0.0,
                correct: true,
                same_bits: true,
            }),
            kernels: vec![KernelRow {
                kernel: "a kernel".to_owned(),
                blocks: 1,
                split: None,
                planned: true,
                plain: figure(1.0, speedup),
                dependent: None,
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
        near(many.dependent, 2.0);
        near(many.worst, 1.0);
        near(many.decoupled.unwrap(), 0.5);
        assert!(few.published.is_none());
        let published = many.published.unwrap();
        near(published.speedup, 0.5);
        near(published.plain, 3.0);
        near(published.dependent, 3.0);
        assert!(few.invariant.is_none());
        let invariant = many.invariant.unwrap();
        near(invariant.plain, 0.25);
        near(invariant.dependent, 0.5);
    }

    #[test]
    fn file_appears_whole_and_replaces_only_with_force() {
        let report = Report {
            device: "a device".to_owned(),
            driver: "a driver".to_owned(),
            kernels: "portable".to_owned(),
            tuned: false,
            date: "2026-01-31T12:00:00Z".to_owned(),
            commit: None,
            seed: u64::MAX,
            replays: 15,
            sustained_s: None,
            ceilings: Ceilings {
                copy: 2.5,
                read: 3.0,
            },
            gemm: Vec::new(),
            means: Vec::new(),
            decompress: Vec::new(),
        };
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("report.json");
        let file = ReportFile::create(&path, false).unwrap();
        assert!(!path.exists());
        file.write(&report).unwrap();
        let read: Report = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        assert_eq!((read.seed, read.ceilings.copy), (u64::MAX, 2.5));
        assert!(ReportFile::create(&path, false).is_err());
        ReportFile::create(&path, true)
            .unwrap()
            .write(&report)
            .unwrap();
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
    }
}
