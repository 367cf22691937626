//! The program's arguments, and what its subcommands share; each has a file of its own.

mod console;
mod gemm;
mod plot;
mod report;
mod results;
mod steps;

use std::{
    error::Error,
    ffi::OsString,
    path::{Path, PathBuf},
    process::{Command as Process, ExitCode},
};

use clap::{Parser, Subcommand, builder::PossibleValuesParser};
use serde::Serialize;
use zipserv_bench::{
    MODELS, Shape,
    results::{ReportFile, json},
};

/// What a subcommand comes to: an exit code, or an error, which has the exit code 2.
type Outcome = Result<ExitCode, Box<dyn Error>>;

/// The exit code when a GPU computes what it should not.
const DIFFERENT: u8 = 1;
/// The exit code of bad input; clap gives it for bad usage too.
const ERROR: u8 = 2;

/// Measures ZipServ's GPU kernels beside cuBLAS, and shows what was measured.
///
/// Exit codes: 0 done, 1 wrong outputs, 2 bad usage or input, or no GPU where one is needed.
#[derive(Parser)]
#[command(name = "zipserv-bench", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Gemm(gemm::Gemm),
    Steps(steps::Steps),
    Results(results::Results),
    Report(report::Report),
}

/// The layers to work on.
#[derive(clap::Args)]
struct Layers {
    /// Models whose layers to take [default: all, unless --layers names others]
    #[arg(long, value_name = "MODELS", value_delimiter = ',', value_parser = models())]
    shapes: Vec<String>,
    /// Other layers, as ROWSxCOLS
    #[arg(long, value_delimiter = ',')]
    layers: Vec<Shape>,
}

fn models() -> PossibleValuesParser {
    let names: Vec<_> = MODELS.iter().map(|model| model.name).collect();
    names.into()
}

/// What all measurements may be told.
#[derive(clap::Args)]
struct Run {
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
}

/// Where results are kept, found out before anything is measured.
enum Kept {
    Nowhere,
    Printed,
    File(ReportFile),
}

impl Run {
    fn kept(&self) -> Result<Kept, Box<dyn Error>> {
        Ok(match &self.json {
            None => Kept::Nowhere,
            Some(path) if path.as_os_str() == "-" => Kept::Printed,
            Some(path) => Kept::File(ReportFile::create(path, self.force)?),
        })
    }

    /// The commit to name; other kernels than those `built_in` are of none that is known.
    fn commit(&self, built_in: bool) -> Option<String> {
        let found = || built_in.then(checkout).flatten();
        self.commit.clone().or_else(found)
    }
}

impl Kept {
    fn is_printed(&self) -> bool {
        matches!(self, Self::Printed)
    }

    fn keep(self, results: &impl Serialize) -> Result<(), Box<dyn Error>> {
        match self {
            Self::Nowhere => {}
            Self::Printed => console::print(json(results))?,
            Self::File(file) => file.write(results)?,
        }
        Ok(())
    }
}

/// The commit of the working directory, if that is a checkout of zipserv in which nothing is
/// changed that the program is made of.
fn checkout() -> Option<String> {
    let git = |arguments: &[&str]| {
        let output = Process::new("git").args(arguments).output().ok()?;
        output.status.success().then_some(output.stdout)
    };
    git(&["cat-file", "-e", "HEAD:gpu/ptx/zipserv_sm_90a.ptx"])?;
    let sources = [":/gpu", ":/host", ":/benches", ":/Cargo.lock"];
    git(&[&["diff", "--quiet", "HEAD", "--"], &sources[..]].concat())?;
    let commit = git(&["rev-parse", "--short", "HEAD"])?;
    Some(String::from_utf8(commit).ok()?.trim().to_owned())
}

/// Refuses a file that is there already, unless forced to replace it.
fn spare(path: &Path, force: bool) -> Result<(), Box<dyn Error>> {
    if path.exists() && !force {
        let path = path.display();
        return Err(format!("{path}: already exists; --force replaces it").into());
    }
    Ok(())
}

/// Runs the program on arguments, of which the first is its name.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let done = match Cli::parse_from(arguments).command {
        Command::Gemm(command) => command.run(),
        Command::Steps(command) => command.run(),
        Command::Results(command) => command.run(),
        Command::Report(command) => command.run(),
    };
    done.unwrap_or_else(|error| {
        console::error(&*error);
        ExitCode::from(ERROR)
    })
}
