use zipserv::checkpoint;

use super::{
    Outcome, console,
    files::{Files, Job},
};

/// Restore the original files or folders, byte for byte
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  zipserv decompress small.safetensors -o model.safetensors
  zipserv decompress Llama-3.1-8B-zipserv/ -o Llama-3.1-8B
  zipserv decompress small.safetensors -o - | sha256sum")]
pub struct Decompress {
    #[command(flatten)]
    files: Files,
}

impl Decompress {
    pub fn run(&self) -> Outcome {
        self.files.run(&Job {
            name: "decompress",
            output_name: checkpoint::original_name,
            run: &|input, output, options| checkpoint::decompress(input, output, options),
            notes: &|_| Vec::new(),
            summary: |report, time| {
                let speed = console::throughput(report.original_bytes(), time);
                format!("restored {speed}")
            },
        })
    }
}
