use std::{path::PathBuf, process::ExitCode};

use zipserv::checkpoint;

use super::{Format, Outcome, console, json};

/// Compress a .safetensors file or a checkpoint folder
///
/// In a folder, NAME.safetensors becomes NAME.zipserv.safetensors and config.json names zipserv, so that programs
/// without it do not load the weights by mistake. `decompress` restores every file.
#[derive(clap::Args)]
pub struct Compress {
    input: PathBuf,
    #[arg(short, long)]
    output: PathBuf,
    /// Replace the output if it exists
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    format: Format,
}

impl Compress {
    pub fn run(&self) -> Outcome {
        let (report, time) = console::timed("compress", self.force, |options| {
            checkpoint::compress(&self.input, &self.output, options)
        });
        let report = report?;
        console::note_passed_through(&report);
        console::note_warnings(&report);
        if self.format.json {
            console::print_json(&json::Job::new(&self.input, &self.output, &report, time))?;
        } else {
            let speed = console::throughput(report.original_bytes(), time);
            console::print(format_args!(
                "compressed {}\n{speed}",
                console::sizes(&report)
            ))?;
        }
        Ok(ExitCode::SUCCESS)
    }
}
