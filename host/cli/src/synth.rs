use std::{path::PathBuf, process::ExitCode};

use serde::Serialize;
use zipserv::synthetic::Model;

use super::{Format, Outcome, console, json::Speed, size};

/// Make a checkpoint with weights like those of trained layers
#[derive(clap::Args)]
pub struct Synth {
    output: PathBuf,
    /// Size of the file, about
    #[arg(long, default_value = "64MB", value_parser = size::parse)]
    size: u64,
    /// The same seed gives the same weights
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Replace the output if it exists
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    format: Format,
}

#[derive(Serialize)]
struct Generated {
    bytes: u64,
    #[serde(flatten)]
    speed: Speed,
}

impl Synth {
    pub fn run(&self) -> Outcome {
        let (bytes, time) = console::timed("synth", self.force, |options| {
            Model::new(self.size, self.seed).write(&self.output, options)
        });
        let bytes = bytes?;
        if self.format.json {
            let speed = Speed::new(bytes, time);
            console::print_json(&Generated { bytes, speed })?;
        } else {
            let speed = console::throughput(bytes, time);
            console::print(format_args!("generated {speed}"))?;
        }
        Ok(ExitCode::SUCCESS)
    }
}
