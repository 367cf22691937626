use std::{path::PathBuf, process::ExitCode};

use zipserv::checkpoint;

use super::{Format, Outcome, console, json::ReportJson, plot::plot, table::table};

/// Tell what is in a compressed file or folder, or what compressing one would give
#[derive(clap::Args)]
pub struct Inspect {
    file: PathBuf,
    /// Draw the exponents of the compressed tensors, with the window marked
    #[arg(long, value_name = "FILE.png")]
    plot: Option<PathBuf>,
    /// Replace the plot if it exists
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    format: Format,
}

impl Inspect {
    pub fn run(&self) -> Outcome {
        let (report, _) = console::timed("inspect", false, |options| {
            checkpoint::inspect(&self.file, options)
        });
        let report = report?;
        if let Some(path) = &self.plot {
            plot(&report.exponents(), path, self.force)?;
        }
        if self.format.json {
            console::print_json(&ReportJson::new(&report))?;
        } else {
            console::print(table(&report))?;
        }
        Ok(ExitCode::SUCCESS)
    }
}
