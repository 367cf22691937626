use std::{fs, path::PathBuf, process::ExitCode};

use zipserv_bench::results::{Inputs, Measured, benchmarks, diff, markdown};

use super::{Outcome, console, plot};

/// Print what `gemm` measured, and `zipserv tune` found, as Markdown tables, and plot the former
#[derive(clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Results {
    #[command(subcommand)]
    beside: Option<Beside>,

    /// Files that `gemm --json` wrote, of one device, `zipserv tune`, `steps --json` or
    /// `benches/peers/compare.py`; where several of the first have the same layer and number of
    /// tokens, the last one counts
    #[arg(required = true)]
    files: Vec<PathBuf>,
    /// Draw the speedup of each model over the number of tokens, as .svg or .png
    #[arg(long, value_name = "FILE", value_parser = plot::image)]
    plot: Option<PathBuf>,
    /// Replace the plot if it exists
    #[arg(long)]
    force: bool,
    /// Print docs/BENCHMARKS.md in place of the tables, of files of any devices
    #[arg(long, conflicts_with_all = ["plot", "write"])]
    markdown: bool,
    /// Write docs/BENCHMARKS.md, or a file of another name, instead, and replace it
    #[arg(long, value_name = "FILE", conflicts_with = "plot")]
    write: Option<PathBuf>,
}

#[derive(clap::Subcommand)]
enum Beside {
    /// Print how many times as fast the plan's kernels are in one file as in another
    Diff {
        /// A file that `gemm --json` wrote
        a: PathBuf,
        /// Another one
        b: PathBuf,
    },
}

impl Results {
    pub fn run(&self) -> Outcome {
        if let Some(Beside::Diff { a, b }) = &self.beside {
            let [a, b] = [a, b].map(|path| Measured::read(std::slice::from_ref(path)));
            console::print(diff(&a?, &b?))?;
            return Ok(ExitCode::SUCCESS);
        }
        if self.markdown {
            console::print(benchmarks(&self.files)?.trim_end())?;
            return Ok(ExitCode::SUCCESS);
        }
        if let Some(path) = &self.write {
            let name = |error| format!("{}: {error}", path.display());
            fs::write(path, benchmarks(&self.files)?).map_err(name)?;
            return Ok(ExitCode::SUCCESS);
        }
        let mut tables = Vec::new();
        let inputs = Inputs::read(&self.files)?;
        if !inputs.reports.is_empty() || self.plot.is_some() {
            let measured = Measured::read(&inputs.reports)?;
            if let Some(path) = &self.plot {
                plot::save(&measured, path, self.force)?;
            }
            tables.push(markdown::tables(&measured));
        }
        let tunings = inputs.tunings.iter().map(|(_, t)| markdown::tuning(t));
        let steps = inputs.steps.iter().map(|(_, s)| markdown::steps(s));
        let peers = inputs.peers.iter().map(|(_, p)| markdown::peers(p));
        let others = tunings.chain(steps).chain(peers);
        tables.extend(others.map(|table| table.to_string()));
        console::print(tables.join("\n\n"))?;
        Ok(ExitCode::SUCCESS)
    }
}
