use std::{fs, path::PathBuf, process::ExitCode};

use zipserv_bench::results::{Inputs, Measured, benchmarks, diff, markdown};

use super::{Outcome, console, plot};

/// Print what was measured as Markdown tables, and plot what `gemm` measured
#[derive(clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Results {
    #[command(subcommand)]
    beside: Option<Beside>,

    /// Folders of results, and files: of `gemm --json`, of one device, `zipserv tune`,
    /// `steps --json`, `benches/peers/compare.py`, `python/benches` and `zipserv run --bench`; where
    /// several of the first have the same layer and number of tokens, the last one counts. What else
    /// is in a folder is skipped
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
        let mut inputs = Inputs::read(&self.files)?;
        if self.markdown || self.write.is_some() {
            let document = benchmarks(&mut inputs)?;
            console::skipped(&inputs);
            match &self.write {
                None => console::print(document.trim_end())?,
                Some(path) => {
                    let name = |error| format!("{}: {error}", path.display());
                    fs::write(path, document).map_err(name)?;
                    console::wrote(path);
                }
            }
            return Ok(ExitCode::SUCCESS);
        }
        let mut tables = Vec::new();
        if !inputs.reports.is_empty() || self.plot.is_some() {
            let measured = inputs.measured()?;
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
        let models = inputs.serving.iter();
        tables.extend(models.map(|(_, serving)| serving.section().trim_end().to_owned()));
        let experts = inputs.experts.iter();
        tables.extend(experts.map(|(_, experts)| experts.section().trim_end().to_owned()));
        let engines = inputs.engines.iter();
        tables.extend(engines.map(|(_, engine)| engine.section().trim_end().to_owned()));
        console::skipped(&inputs);
        if tables.is_empty() {
            return Err("no results are in these files".into());
        }
        console::print(tables.join("\n\n"))?;
        if let Some(path) = &self.plot {
            console::wrote(path);
        }
        Ok(ExitCode::SUCCESS)
    }
}
