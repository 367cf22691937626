use std::{
    error::Error,
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use clap::builder::{PossibleValuesParser, RangedU64ValueParser};
use zipserv::gpu::{
    Device, MAX_TOKENS, Tuning,
    tuning::{Candidates, TuningTable},
};
use zipserv_bench::{
    Config, MODELS, Shape, TUNED_TOKENS, Tried, problems,
    results::{ReportFile, markdown},
    tune,
};

use super::{DIFFERENT, Outcome, console};

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  zipserv tune
  zipserv tune --shapes llama-3.1-8b --n 1,8 -o tuned.json
  zipserv tune --dry-run --layers 4096x14336")]
pub struct Tune {
    /// Models whose layers to take [default: all, unless --layers names others]
    #[arg(long, value_name = "MODELS", value_delimiter = ',', value_parser = models())]
    shapes: Vec<String>,
    /// Other layers, as ROWSxCOLS
    #[arg(long, value_delimiter = ',')]
    layers: Vec<Shape>,
    /// Numbers of tokens
    #[arg(
        long = "n",
        value_name = "TOKENS",
        value_delimiter = ',',
        value_parser = RangedU64ValueParser::<usize>::new().range(1..=MAX_TOKENS as u64),
        default_values_t = TUNED_TOKENS,
    )]
    tokens: Vec<usize>,
    /// Print what would be tried on an H100; needs no GPU
    #[arg(long, conflicts_with_all = ["output", "force", "quick", "seed"])]
    dry_run: bool,
    /// Where the table is kept, and found by the next run, which goes on from there [default: in
    /// the user's cache, by device, driver and kernels]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Tune what the table has already too, and replace a file that is no table of this device
    #[arg(long)]
    force: bool,
    /// Less exact, and faster
    #[arg(long)]
    quick: bool,
    /// The same seed gives the same data [default: a new one]
    #[arg(long)]
    seed: Option<u64>,
}

fn models() -> PossibleValuesParser {
    let names: Vec<_> = MODELS.iter().map(|model| model.name).collect();
    names.into()
}

impl Tune {
    pub fn run(&self) -> Outcome {
        let config = Config {
            models: self.shapes.clone(),
            layers: self.layers.clone(),
            tokens: self.tokens.clone(),
            seed: self.seed,
            ..Config::default()
        };
        let config = if self.quick { config.quick() } else { config };
        let mut problems = problems(&config)?;
        if self.dry_run {
            return dry_run(&problems);
        }
        let device = Device::new(0)?;
        let path = match &self.output {
            Some(path) => path.clone(),
            None => Tuning::cache_path(&device)?,
        };
        let mut table = self.table(&device, &path)?;
        for (rows, cols, tokens) in &mut problems {
            tokens.retain(|&n| self.force || table.get(*rows, *cols, n).is_none());
        }

        let bar = console::bar("tune", "{pos}/{len}");
        bar.enable_steady_tick(Duration::from_secs(1));
        bar.set_length(
            problems
                .iter()
                .map(|(.., tokens)| tokens.len() as u64)
                .sum(),
        );
        let mut wrong = false;
        let tuned = tune(&device, &config, &problems, &mut |tried| {
            match tried {
                Tried::Wrong(launch) => {
                    wrong = true;
                    bar.suspend(|| console::tell(format_args!("outputs are WRONG: {launch}")));
                }
                Tried::Row(row) => {
                    bar.inc(1);
                    bar.suspend(|| console::print(&row))?;
                    table.insert(row);
                    ReportFile::create(&path, true)?.write(&table)?;
                }
            }
            Ok::<_, Box<dyn Error>>(())
        });
        bar.finish_and_clear();
        tuned?;
        console::print(markdown::tuning(&table))?;
        console::note(format_args!("{}", path.display()));
        Ok(match wrong {
            true => ExitCode::from(DIFFERENT),
            false => ExitCode::SUCCESS,
        })
    }

    /// What an earlier run left, or an empty table.
    fn table(&self, device: &Device, path: &Path) -> Result<TuningTable, Box<dyn Error>> {
        if path.exists() {
            match Tuning::load(device, path) {
                Ok(tuning) => return Ok(tuning.table().clone()),
                Err(_) if self.force => {}
                Err(error) => {
                    let path = path.display();
                    return Err(format!("{path}: {error}; --force replaces it").into());
                }
            }
        }
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        Ok(TuningTable::new(Tuning::key(device)?))
    }
}

fn dry_run(problems: &[(usize, usize, Vec<usize>)]) -> Outcome {
    let candidates = Candidates::of_h100();
    for (rows, cols, tokens) in problems {
        for &n in tokens {
            console::print(format_args!("{rows} x {cols}, N={n}:"))?;
            for launch in candidates.launches(*rows, *cols, n) {
                console::print(format_args!("  {launch}"))?;
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}
