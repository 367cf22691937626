use std::{
    error::Error,
    fmt::Display,
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use clap::builder::RangedU64ValueParser;
use zipserv::gpu::{Device, MAX_TOKENS, Tuning};
use zipserv_bench::{Config, Progress, TOKENS, compare, results::means, run};

use super::{DIFFERENT, Kept, Layers, Outcome, Run, console};

/// Measure multiplication and decompression beside cuBLAS
///
/// The exit code is 1 if an output is wrong, and 2 if there is no device.
#[derive(clap::Args)]
pub struct Gemm {
    #[command(flatten)]
    layers: Layers,
    /// Numbers of tokens
    #[arg(
        long = "n",
        value_name = "TOKENS",
        value_delimiter = ',',
        value_parser = RangedU64ValueParser::<usize>::new().range(1..=MAX_TOKENS as u64),
        default_values_t = TOKENS,
    )]
    tokens: Vec<usize>,
    /// Kernels to try beside the plan's, which a star marks
    #[arg(long, value_delimiter = ',')]
    kernels: Vec<String>,
    /// Try all kernels that suit the number of tokens, and other splits of their work
    #[arg(long)]
    all_kernels: bool,
    /// Take plans from what `tune` found, in this file or the user's cache; those that are not tuned
    /// are measured too
    #[arg(long, value_name = "FILE", num_args = 0..=1, require_equals = true)]
    tuned: Option<Option<PathBuf>>,
    /// Numbers of thread blocks to try beside a kernel's own
    #[arg(long, value_delimiter = ',')]
    blocks: Vec<u32>,
    /// Measure decompression followed by cuBLAS for up to 64 tokens too, not only for more
    #[arg(long)]
    decoupled: bool,
    /// Measure ZipServ's kernels as published too: multiplication of up to 64 tokens, decompression,
    /// and this followed by cuBLAS where it is measured for ours; takes more memory
    #[arg(long)]
    published: bool,
    /// Measure the batch-invariant plan too, and check that each token's bits are the same for all
    /// numbers of tokens
    #[arg(long)]
    invariant: bool,
    /// Leave multiplication out, and with it cuBLAS
    #[arg(long)]
    no_gemm: bool,
    /// Leave decompression out
    #[arg(long)]
    no_decompress: bool,
    /// Less exact, and several times as fast
    #[arg(long)]
    quick: bool,
    /// Replay each launch of a multiplication alone for so many seconds, and count the second half:
    /// at a clock that follows its own power, not in turn with others
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    sustained: Option<Duration>,
    /// Kernels to load in place of those built in, from a file that the builder wrote; of two files
    /// named, the plans' kernels are compared in one run, and nothing else
    #[arg(long, value_name = "FILE")]
    ptx: Vec<PathBuf>,
    #[command(flatten)]
    run: Run,
}

/// A duration of 10 ms to an hour.
fn seconds(text: &str) -> Result<Duration, &'static str> {
    let range = 0.01..=3600.0;
    let seconds = text.parse().ok().filter(|seconds| range.contains(seconds));
    seconds
        .map(Duration::from_secs_f64)
        .ok_or("not 0.01 to 3600 seconds")
}

impl Gemm {
    pub fn run(&self) -> Outcome {
        let kept = self.run.kept()?;
        let device = match &self.ptx[..] {
            [] => Device::new(0)?,
            [ptx] => open(ptx)?,
            [a, b] => return self.compare([a, b], kept),
            _ => return Err("--ptx takes one file, or two to compare".into()),
        };
        let config = Config {
            tuning: self.tuning(&device)?,
            ..self.config()
        };

        let bar = console::bar("gemm");
        // A table that cannot be printed must not cost the file.
        let mut printed = Ok(());
        let mut print = |line: &dyn Display| {
            if !kept.is_printed() && printed.is_ok() {
                printed = bar.suspend(|| console::print(line));
            }
        };
        print(&format_args!(
            "{}, {} kernels",
            device.name(),
            device.family()
        ));
        let report = run(&device, &config, &mut |progress| match progress {
            Progress::Start {
                seed,
                read_tbs,
                rows,
            } => {
                bar.set_length(rows as u64);
                print(&format_args!(
                    "seed {seed}; read ceiling {read_tbs:.3} TB/s"
                ));
            }
            Progress::Layers(layers) => bar.set_length(layers as u64),
            Progress::Row(row) => {
                bar.inc(1);
                print(row);
            }
        });
        bar.finish_and_clear();
        let report = report?;
        if !report.gemm.is_empty() {
            print(&"geometric means, x cuBLAS");
        }
        for mean in means(&report.gemm) {
            print(&mean);
        }
        kept.keep(&report)?;
        printed?;
        if report.is_correct() {
            return Ok(ExitCode::SUCCESS);
        }
        console::note("some outputs are WRONG");
        Ok(ExitCode::from(DIFFERENT))
    }

    /// Measures the kernels of two files in turn.
    fn compare(&self, files: [&PathBuf; 2], kept: Kept) -> Outcome {
        let [a, b] = [open(files[0])?, open(files[1])?];
        let bar = console::bar("gemm");
        let mut printed = Ok(());
        let comparison = compare([&a, &b], &self.config(), &mut |progress| match progress {
            Progress::Layers(rows) => bar.set_length(rows as u64),
            Progress::Row(row) => {
                bar.inc(1);
                if !kept.is_printed() && printed.is_ok() {
                    printed = bar.suspend(|| console::print(row));
                }
            }
            Progress::Start { .. } => {}
        });
        bar.finish_and_clear();
        let comparison = comparison?;
        kept.keep(&comparison)?;
        printed?;
        let mut rows = comparison.comparisons.iter();
        Ok(match rows.all(|row| row.correct == [true; 2]) {
            true => ExitCode::SUCCESS,
            false => ExitCode::from(DIFFERENT),
        })
    }

    fn tuning(&self, device: &Device) -> Result<Option<Tuning>, Box<dyn Error>> {
        let Some(path) = &self.tuned else {
            return Ok(None);
        };
        let path = match path {
            Some(path) => path.clone(),
            None => Tuning::cache_path(device)?,
        };
        let name = |error| format!("{}: {error}", path.display());
        Ok(Some(Tuning::load(device, &path).map_err(name)?))
    }

    fn config(&self) -> Config {
        let tokens = match self.no_gemm {
            true => Vec::new(),
            false => self.tokens.clone(),
        };
        let config = Config {
            models: self.layers.shapes.clone(),
            layers: self.layers.layers.clone(),
            tokens,
            kernels: self.kernels.clone(),
            all_kernels: self.all_kernels,
            blocks: self.blocks.clone(),
            decoupled: self.decoupled,
            published: self.published,
            invariant: self.invariant,
            decompress: !self.no_decompress,
            sustained: self.sustained,
            seed: self.run.seed,
            commit: self.run.commit(self.ptx.is_empty()),
            ..Config::default()
        };
        if self.quick { config.quick() } else { config }
    }
}

/// The first device with the kernels of a file.
fn open(path: &Path) -> Result<Device, Box<dyn Error>> {
    let name = |error| format!("{}: {error}", path.display());
    let ptx = fs::read_to_string(path).map_err(name)?;
    // SAFETY: whoever names the file takes it from the builder.
    Ok(unsafe { Device::with_ptx(0, ptx)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        assert_eq!(seconds("0.5"), Ok(Duration::from_millis(500)));
        for wrong in ["0", "-1", "NaN", "inf", "1e9", "1 s", ""] {
            assert!(seconds(wrong).is_err(), "{wrong}");
        }
    }
}
