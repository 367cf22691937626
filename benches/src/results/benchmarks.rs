//! `docs/BENCHMARKS.md`, made of files of results.

use std::{error::Error, fs, path::PathBuf};

use super::{
    DecompressRow, Inputs, InvariantMean, LayerInfo, MEMORY_BOUND, Mean, Measured, Report,
    markdown::{self, Table},
    measured,
    report::geometric_mean,
};

const METHOD: &str = "\
# Benchmarks

Made from [results](../results) by `cargo run -p zipserv-bench -- results --write docs/BENCHMARKS.md results/*.json`.

- Y = X W^T in BF16 with FP32 sums, on the 17 fused linear layers of five models. Weights are Gaussian with log-normal
  scales of rows and columns, as trained layers have them.
- x cuBLAS is the time of cuBLAS on dense weights over ours on compressed ones. cuBLAS is the fastest of its own choice
  and of cuBLASLt's, of which up to twelve are tried and the best three timed to the end.
- A time is the median over replays of a CUDA graph whose launches rotate over copies of their operands, so that
  weights come from memory, as they do when a model runs. All that is compared is replayed in turn, in a new order
  each round. Clocks are left as they are.
- Our kernels are launched with programmatic dependent launch (pdl), by which one begins while the one before it ends,
  unless the table says otherwise; cuBLAS as it launches itself.
- Every output of every timed launch is compared with cuBLAS's FP32 sums, and some with FP64; batch-invariant outputs
  bit for bit with those of other numbers of tokens. Nothing that is wrong is tabulated.
- The limit is x cuBLAS if the compressed bytes moved at the read ceiling, which a kernel that only reads sets in the
  same run. \"Worst\" is the slowest layer. \"Decoupled\" is decompression to memory, then cuBLAS.
- Decompression is told in TB/s of bytes read and written, and as a share of the read ceiling.
";

const SERVING: &str = "
## Whole models

By the harnesses in `python/benches`, with graphs and compilation on, dense and compressed in turn, each start in a
process of its own. Weights are random, like trained ones. Outputs are checked: in vLLM, where greedy tokens part, the
dense model's two best logits must be a tie but for rounding; in transformers, logits are compared with dense ones.
";

const ENGINE: &str = "
## The engine

By `zipserv run --bench --json`, on weights that are random, like trained ones. A step gives every sequence its next
token, the most probable one, and is one CUDA graph. Its time is the median of five runs of 64 steps by the host's
clock; sequences have 64 tokens more when the first of the five starts, and 384 when the last ends. Prompts are all
sequences', from their tokens to the logits of the last ones, the second time. A stage is timed at the end, its launches
of all layers in a graph of their own; in a step some of it is hidden. What comes out is compared in `tests/engine`, of
small models, and not here.
";

const EXPERTS: &str = "
## Mixtures of experts

By `python/benches/experts.py`, in PyTorch: `zipserv.torch.experts_mlp` on compressed weights, vLLM's `fused_experts`
and `torch._grouped_mm` on dense ones. Launches of a form are one CUDA graph over layers with weights and activations of
their own, so weights come from memory; forms are replayed in turn, and a time is the median of the replays. Routing is
drawn anew for each layer: at random; or half, by which every second token takes one and the same expert. Outputs of
the timed launches are compared with FP32 sums on the dense weights.
";

/// The document on all GPUs that the files are of, each on the kernels that are built in: a file that does
/// not tell its PTX is of others, and skipped. So is all that the document has no table for.
///
/// # Errors
/// As [`Measured::read`].
pub fn benchmarks(inputs: &mut Inputs) -> Result<String, Box<dyn Error>> {
    let mut gpus: Vec<Gpu> = Vec::new();
    for path in inputs.reports.clone() {
        let name = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
        let json = fs::read(&path).map_err(|error| name(&error))?;
        let report = match measured::parse(&json) {
            Ok(report) => report,
            Err(why) if inputs.is_found(&path) => {
                inputs.skip(&path, why);
                continue;
            }
            Err(why) => return Err(name(&why).into()),
        };
        if report.ptx_crc32.is_none() {
            inputs.skip(&path, "of kernels that are not built in");
            continue;
        }
        if report.sustained_s.is_some() {
            inputs.skip(&path, "of a sustained run");
            continue;
        }
        let known = gpus.iter().position(|gpu| gpu.device == report.device);
        let at = known.unwrap_or_else(|| {
            gpus.push(Gpu::new(&report.device));
            gpus.len() - 1
        });
        let files = match report.tuned {
            true => &mut gpus[at].tuned,
            false => &mut gpus[at].plain,
        };
        files.push(path.clone());
    }
    let tunings = inputs.tunings.iter().map(|(path, _)| path.clone());
    let peers = inputs.peers.iter().map(|(path, _)| path.clone());
    for path in tunings.chain(peers).collect::<Vec<_>>() {
        inputs.skip(&path, "without a table in this document");
    }
    let mut document = METHOD.to_owned();
    if !inputs.serving.is_empty() {
        document += SERVING;
    }
    for (_, serving) in &inputs.serving {
        document += &format!("\n{}", serving.section());
    }
    if !inputs.engines.is_empty() {
        document += ENGINE;
    }
    for (_, engine) in &inputs.engines {
        document += &format!("\n{}", engine.section());
    }
    if !inputs.experts.is_empty() {
        document += EXPERTS;
    }
    for (_, experts) in &inputs.experts {
        document += &format!("\n{}", experts.section());
    }
    for gpu in &gpus {
        document += &format!("\n{}", gpu.section(inputs)?);
    }
    Ok(document)
}

/// The files of a device.
struct Gpu {
    device: String,
    plain: Vec<PathBuf>,
    /// Those of plans from a table of tuned launches.
    tuned: Vec<PathBuf>,
}

impl Gpu {
    fn new(device: &str) -> Self {
        Self {
            device: device.to_owned(),
            plain: Vec::new(),
            tuned: Vec::new(),
        }
    }

    fn section(&self, inputs: &Inputs) -> Result<String, Box<dyn Error>> {
        let measured = Measured::read(&self.plain)?;
        let invariant = measured.with_invariant();
        let invariant = invariant.map_or_else(Vec::new, |measured| measured.means(None));
        let tuned = match self.tuned.is_empty() {
            true => Vec::new(),
            false => Measured::read(&self.tuned)?.means(None),
        };
        let mut text = format!("## {}\n\n", self.device);
        text += &runs(&measured);
        text += &format!("\n{}\n", means(&measured, &invariant, &tuned));
        if let Some(line) = restored(&measured) {
            text += &format!("\n{line}\n");
        }
        let steps = inputs.steps.iter();
        for (_, steps) in steps.filter(|(_, steps)| steps.device == self.device) {
            text += &format!("\n{}\n", markdown::steps(steps));
        }
        text += &format!("\nEach layer, x cuBLAS:\n\n{}\n", layers(&measured));
        Ok(text)
    }
}

/// When which kernels were measured, a line for each commit and driver.
fn runs(measured: &Measured) -> String {
    let what = |report: &Report| {
        let commit = report.commit.as_deref().unwrap_or("not told");
        let ptx = report.ptx_crc32.unwrap_or_default();
        let day = report.date.split('T').next().unwrap_or_default();
        let driver = &report.driver;
        format!("Commit {commit}, PTX {ptx:08x}, driver {driver}, {day}")
    };
    let mut runs: Vec<(String, Vec<&Report>)> = Vec::new();
    for file in measured.files() {
        let what = what(&file.report);
        match runs.iter_mut().find(|(known, _)| *known == what) {
            Some((_, reports)) => reports.push(&file.report),
            None => runs.push((what, vec![&file.report])),
        }
    }
    let line = |(what, reports): &(String, Vec<&Report>)| {
        let replays = || reports.iter().map(|report| report.replays);
        let read = reports.iter().map(|report| report.read_tbs);
        let (least, most) = (replays().min().unwrap_or(0), replays().max().unwrap_or(0));
        let read = geometric_mean(read);
        format!("- {what}:\n  medians of {least} to {most} replays, read ceiling {read:.2} TB/s.\n")
    };
    runs.iter().map(line).collect()
}

/// A line for each number of tokens.
fn means(measured: &Measured, invariant: &[Mean], tuned: &[Mean]) -> Table {
    let header = [
        "tokens",
        "x cuBLAS",
        "worst",
        "without pdl",
        "limit",
        "tuned",
        "decoupled",
        "batch-invariant",
        "worst",
    ];
    let of = |means: &[Mean], n: usize| means.iter().find(|mean| mean.n == n).copied();
    let times = |value: Option<f64>| value.map_or(String::new(), |value| format!("{value:.2}x"));
    let line = |mean: Mean| {
        let invariant = of(invariant, mean.n).and_then(|mean| mean.invariant);
        let of_invariant = |value: fn(&InvariantMean) -> f64| times(invariant.as_ref().map(value));
        vec![
            mean.n.to_string(),
            format!("**{:.2}x**", mean.pdl),
            times(Some(mean.worst)),
            times(Some(mean.plain)),
            times((mean.n <= MEMORY_BOUND).then_some(mean.limit)),
            times(of(tuned, mean.n).map(|mean| mean.pdl)),
            times(mean.decoupled),
            of_invariant(|mean| mean.pdl),
            of_invariant(|mean| mean.worst),
        ]
    };
    Table::new(header, measured.means(None).into_iter().map(line))
}

/// How fast layers are decompressed, by the last file that tells.
fn restored(measured: &Measured) -> Option<String> {
    let mut files = measured.files().iter().rev();
    let rows = &files
        .find(|file| !file.report.decompress.is_empty())?
        .report
        .decompress;
    let tbs = || rows.iter().map(DecompressRow::tbs);
    let (low, high) = (
        tbs().fold(f64::INFINITY, f64::min),
        tbs().fold(0.0, f64::max),
    );
    let mean = geometric_mean(tbs());
    let share = geometric_mean(rows.iter().map(|row| row.tbs() / row.read_tbs));
    Some(format!(
        "Decompression moves {mean:.2} TB/s ({low:.2} to {high:.2}; geometric mean of {} layers), {:.0} % of the read ceiling.",
        rows.len(),
        100.0 * share,
    ))
}

fn layers(measured: &Measured) -> Table {
    let tokens = measured.tokens();
    let of_layer = |layer: &LayerInfo| {
        let mut cells = vec![markdown::name(layer)];
        cells.extend(tokens.iter().map(|&n| {
            let row = measured.row(layer, n);
            let speedup = row.map(|row| row.speedup(row.kernels[0].best_us()));
            speedup.map_or(String::new(), |speedup| format!("{speedup:.2}x"))
        }));
        cells
    };
    let lines = measured.layers().into_iter().map(of_layer);
    Table::new(markdown::header(&tokens), lines)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use zipserv::gpu::tuning::TuningTable;

    use super::{super::Engine, super::Steps, super::json, *};

    fn root() -> &'static Path {
        Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
    }

    fn files() -> Vec<PathBuf> {
        let files = fs::read_dir(root().join("results")).unwrap();
        let mut files: Vec<_> = files.map(|entry| entry.unwrap().path()).collect();
        files.sort();
        files
    }

    #[test]
    fn the_document_is_what_the_files_say() {
        let document = fs::read_to_string(root().join("docs/BENCHMARKS.md")).unwrap();
        assert!(
            document == benchmarks(&mut Inputs::read(&files()).unwrap()).unwrap(),
            "docs/BENCHMARKS.md is not of these results; its first lines say how to make it"
        );
    }

    #[test]
    fn a_folder_is_its_files() {
        let mut folder = Inputs::read(&[root().join("results")]).unwrap();
        let of_files = benchmarks(&mut Inputs::read(&files()).unwrap()).unwrap();
        assert!(benchmarks(&mut folder).unwrap() == of_files);
        let skipped = folder
            .skipped
            .iter()
            .map(|skipped| skipped.path.file_name().unwrap());
        let skipped: Vec<_> = skipped.map(|name| name.to_str().unwrap()).collect();
        assert!(
            skipped.iter().any(|name| name.contains("codec")),
            "{skipped:?}"
        );
    }

    #[test]
    fn files_are_as_the_program_writes_them() {
        let mut read = [0; 4];
        for path in files() {
            let text = fs::read_to_string(&path).unwrap();
            let again = if let Ok(report) = Report::from_json(text.as_bytes()) {
                read[0] += 1;
                json(&report)
            } else if let Ok(steps) = serde_json::from_str::<Steps>(&text) {
                read[1] += 1;
                json(&steps)
            } else if let Ok(table) = TuningTable::from_json(text.as_bytes()) {
                read[2] += 1;
                json(&table)
            } else if let Ok(engine) = serde_json::from_str::<Engine>(&text) {
                read[3] += 1;
                json(&engine)
            } else {
                continue;
            };
            assert!(text == format!("{again}\n"), "{}", path.display());
        }
        assert!(read.iter().all(|&files| files > 0), "{read:?}");
    }
}
