use std::{path::PathBuf, process::ExitCode};

use zipserv_bench::results::{Inputs, Measured, markdown};

use super::{Outcome, console, plot};

/// Print what `gemm` measured, and `zipserv tune` found, as Markdown tables, and plot the former
#[derive(clap::Args)]
pub struct Results {
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
}

impl Results {
    pub fn run(&self) -> Outcome {
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
