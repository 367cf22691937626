use std::{path::PathBuf, process::ExitCode};

use serde::Serialize;
use zipserv::synthetic::Model;

use super::{Format, Outcome, console, json::Speed, size, stdio};

/// Make a checkpoint with weights like those of trained layers
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  zipserv synth model.safetensors
  zipserv synth large.safetensors --size 2GiB --seed 7")]
pub struct Synth {
    /// The .safetensors file to write; - is standard output
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
        stdio::check_json(self.format.json, &self.output)?;
        let (bytes, time) = stdio::output(&self.output, |output| {
            let (bytes, time) = console::timed("synth", self.force, |options| {
                Model::new(self.size, self.seed).write(output, options)
            });
            Ok((bytes?, time))
        })?;
        if self.format.json {
            let speed = Speed::new(bytes, time);
            console::print_json(&Generated { bytes, speed })?;
        } else {
            let speed = console::throughput(bytes, time);
            stdio::summary(&self.output, format_args!("generated {speed}"))?;
        }
        Ok(ExitCode::SUCCESS)
    }
}
