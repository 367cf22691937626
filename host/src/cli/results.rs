use std::{path::PathBuf, process::ExitCode};

use super::{
    Outcome, console, markdown,
    measured::Measured,
    plot::{self, Speedup},
};

/// Print what `bench` measured as Markdown tables, and plot it
#[derive(clap::Args)]
pub struct Results {
    /// Files that `bench --json` wrote, of one device; where several have the same layer and number
    /// of tokens, the last one counts
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
        let measured = Measured::read(&self.files)?;
        if let Some(path) = &self.plot {
            plot::save(&Speedup(&measured), path, self.force)?;
        }
        console::print(markdown::tables(&measured))?;
        Ok(ExitCode::SUCCESS)
    }
}
