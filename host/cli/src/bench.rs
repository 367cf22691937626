use std::{
    error::Error,
    fmt::Display,
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    str::FromStr,
    time::Duration,
};

use clap::builder::{PossibleValuesParser, RangedU64ValueParser};
use serde::Serialize;
use zipserv::{
    bench::{Config, MODELS, Progress, TOKENS, run, steps},
    gpu::{Device, MAX_TOKENS, Tuning},
    results::ReportFile,
};

use super::{DIFFERENT, Outcome, console};

/// The layers to work on.
#[derive(clap::Args)]
pub struct Layers {
    /// Models whose layers to take [default: all, unless --layers names others]
    #[arg(long, value_name = "MODELS", value_delimiter = ',', value_parser = models())]
    pub shapes: Vec<String>,
    /// Other layers, as ROWSxCOLS
    #[arg(long, value_delimiter = ',')]
    layers: Vec<Shape>,
}

impl Layers {
    /// Rows and columns of the other layers.
    pub fn sizes(&self) -> Vec<(usize, usize)> {
        self.layers.iter().map(|&Shape(r, c)| (r, c)).collect()
    }
}

#[derive(clap::Args)]
pub struct Bench {
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
    /// Time the plan's kernel on 1 to 1,024 tokens in small steps, and say which is the largest
    /// [default layers: three of the first model]
    #[arg(
        long,
        conflicts_with_all = ["tokens", "kernels", "all_kernels", "tuned", "blocks", "decoupled", "invariant", "no_gemm", "no_decompress", "quick", "sustained"],
    )]
    steps: bool,
    /// The same seed gives the same data [default: a new one]
    #[arg(long)]
    seed: Option<u64>,
    /// Write the results to this file as JSON; - prints them in place of the table
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Replace that file if it exists
    #[arg(long)]
    force: bool,
    /// The commit that the results name [default: that of the checkout here, if it is unchanged]
    #[arg(long, value_name = "HASH")]
    commit: Option<String>,
    /// Kernels to load in place of those built in, from a file that the builder wrote
    #[arg(long, value_name = "FILE")]
    ptx: Option<PathBuf>,
}

/// Rows and columns.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Shape(usize, usize);

impl FromStr for Shape {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (rows, cols) = text.split_once('x').ok_or("not ROWSxCOLS")?;
        let number = |text: &str| match text.parse() {
            Ok(0) | Err(_) => Err("not a positive number"),
            Ok(number) => Ok(number),
        };
        Ok(Self(number(rows)?, number(cols)?))
    }
}

/// A duration of 10 ms to an hour.
fn seconds(text: &str) -> Result<Duration, &'static str> {
    let range = 0.01..=3600.0;
    let seconds = text.parse().ok().filter(|seconds| range.contains(seconds));
    seconds
        .map(Duration::from_secs_f64)
        .ok_or("not 0.01 to 3600 seconds")
}

fn models() -> PossibleValuesParser {
    MODELS
        .iter()
        .map(|model| model.name)
        .collect::<Vec<_>>()
        .into()
}

impl Bench {
    pub fn run(&self) -> Outcome {
        let to_stdout = self.json.as_deref() == Some(Path::new("-"));
        let file = match &self.json {
            Some(path) if !to_stdout => Some(ReportFile::create(path, self.force)?),
            _ => None,
        };
        let device = self.open()?;
        let config = Config {
            tuning: self.tuning(&device)?,
            ..self.config()
        };

        let bar = console::bar("bench", "{pos}/{len}");
        bar.enable_steady_tick(Duration::from_secs(1));
        // A table that cannot be printed must not cost the file.
        let mut printed = Ok(());
        let mut print = |line: &dyn Display| {
            if !to_stdout && printed.is_ok() {
                printed = bar.suspend(|| console::print(line));
            }
        };
        print(&format_args!(
            "{}, {} kernels",
            device.name(),
            device.family()
        ));
        let mut progress = |progress: Progress| match progress {
            Progress::Start {
                seed,
                ceilings,
                rows,
            } => {
                bar.set_length(rows as u64);
                print(&format_args!("seed {seed}; {ceilings}"));
            }
            Progress::Layers(layers) => bar.set_length(layers as u64),
            Progress::Row(row) => {
                bar.inc(1);
                print(row);
            }
        };
        if self.steps {
            let steps = steps(&device, &config, &mut progress);
            bar.finish_and_clear();
            keep(&steps?, file, to_stdout)?;
            printed?;
            return Ok(ExitCode::SUCCESS);
        }
        let report = run(&device, &config, &mut progress);
        bar.finish_and_clear();
        let report = report?;
        if !report.means.is_empty() {
            print(&"geometric means, x cuBLAS");
        }
        for mean in &report.means {
            print(mean);
        }
        keep(&report, file, to_stdout)?;
        printed?;
        if report.is_correct() {
            return Ok(ExitCode::SUCCESS);
        }
        console::note("some outputs are WRONG");
        Ok(ExitCode::from(DIFFERENT))
    }

    /// The first device, with its own kernels or those of a file.
    fn open(&self) -> Result<Device, Box<dyn Error>> {
        let Some(path) = &self.ptx else {
            return Ok(Device::new(0)?);
        };
        let name = |error| format!("{}: {error}", path.display());
        let ptx = fs::read_to_string(path).map_err(name)?;
        // SAFETY: whoever names the file takes it from the builder.
        Ok(unsafe { Device::with_ptx(0, ptx)? })
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
        // Other kernels than those built in are of no commit that we know.
        let found = || self.ptx.is_none().then(checkout).flatten();
        let config = Config {
            models: self.layers.shapes.clone(),
            layers: self.layers.sizes(),
            tokens,
            kernels: self.kernels.clone(),
            all_kernels: self.all_kernels,
            blocks: self.blocks.clone(),
            decoupled: self.decoupled,
            published: self.published,
            invariant: self.invariant,
            decompress: !self.no_decompress,
            sustained: self.sustained,
            seed: self.seed,
            commit: self.commit.clone().or_else(found),
            ..Config::default()
        };
        if self.quick { config.quick() } else { config }
    }
}

/// Writes results to their file, or prints them.
fn keep(
    results: &impl Serialize,
    file: Option<ReportFile>,
    to_stdout: bool,
) -> Result<(), Box<dyn Error>> {
    if let Some(file) = file {
        file.write(results)?;
    }
    if to_stdout {
        console::print_json(results)?;
    }
    Ok(())
}

/// The commit of the working directory, if that is a checkout of zipserv in which nothing is
/// changed that the program is made of.
fn checkout() -> Option<String> {
    let git = |arguments: &[&str]| {
        let output = Command::new("git").args(arguments).output().ok()?;
        output.status.success().then_some(output.stdout)
    };
    git(&["cat-file", "-e", "HEAD:gpu/ptx/zipserv_sm_90a.ptx"])?;
    git(&[
        "diff",
        "--quiet",
        "HEAD",
        "--",
        ":/gpu",
        ":/host",
        ":/Cargo.lock",
    ])?;
    let commit = git(&["rev-parse", "--short", "HEAD"])?;
    Some(String::from_utf8(commit).ok()?.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes() {
        assert_eq!("4096x14336".parse(), Ok(Shape(4096, 14336)));
        for wrong in ["4096", "x4096", "0x4096", "4096x-1", "4096xx"] {
            assert!(wrong.parse::<Shape>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn durations() {
        assert_eq!(seconds("0.5"), Ok(Duration::from_millis(500)));
        for wrong in ["0", "-1", "NaN", "inf", "1e9", "1 s", ""] {
            assert!(seconds(wrong).is_err(), "{wrong}");
        }
    }
}
