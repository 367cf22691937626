use std::{path::PathBuf, process::ExitCode};

use zipserv::checkpoint;

use super::{
    Format, Outcome, console,
    json::ReportJson,
    plot::{self, Exponents},
    table::table,
};

/// Tell what is in a compressed file or folder, or what compressing one would give
#[derive(clap::Args)]
pub struct Inspect {
    file: PathBuf,
    /// Draw the exponents of the compressed tensors, with the window marked, as .svg or .png
    #[arg(long, value_name = "FILE", value_parser = plot::image)]
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
            let exponents = report.exponents();
            if exponents.total() == 0 {
                return Err("there is no compressed tensor to plot".into());
            }
            plot::save(&Exponents(&exponents), path, self.force)?;
        }
        if self.format.json {
            console::print_json(&ReportJson::new(&report))?;
        } else {
            console::print(table(&report))?;
        }
        Ok(ExitCode::SUCCESS)
    }
}
