use std::{path::PathBuf, process::ExitCode};

use zipserv::checkpoint;

use super::{Format, Outcome, console, json};

/// Restore the original file or folder, byte for byte
#[derive(clap::Args)]
pub struct Decompress {
    input: PathBuf,
    #[arg(short, long)]
    output: PathBuf,
    /// Replace the output if it exists
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    format: Format,
}

impl Decompress {
    pub fn run(&self) -> Outcome {
        let (report, time) = console::timed("decompress", self.force, |options| {
            checkpoint::decompress(&self.input, &self.output, options)
        });
        let report = report?;
        console::note_warnings(&report);
        if self.format.json {
            console::print_json(&json::Job::new(&self.input, &self.output, &report, time))?;
        } else {
            let speed = console::throughput(report.original_bytes(), time);
            console::print(format_args!("restored {speed}"))?;
        }
        Ok(ExitCode::SUCCESS)
    }
}
