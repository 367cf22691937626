use zipserv::checkpoint;

use super::{
    Outcome, console,
    files::{Files, Job},
};

/// Turn archives into the form for GPUs, or back
///
/// The output is what `compress` makes of the original with the same options.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  zipserv convert Llama-3.1-8B-archive/ -o Llama-3.1-8B-zipserv
  zipserv convert --archive small.safetensors -o archive.safetensors")]
pub struct Convert {
    /// Make archives: the smallest form, for disks and networks
    #[arg(long)]
    archive: bool,
    #[command(flatten)]
    files: Files,
}

impl Convert {
    pub fn run(&self) -> Outcome {
        self.files.run(&Job {
            name: "convert",
            output_name: str::to_owned,
            run: &|input, output, options| {
                checkpoint::convert(input, output, &options.archive(self.archive))
            },
            notes: &|report| console::others(report, None),
            summary: |report, time| {
                let speed = console::throughput(report.original_bytes(), time);
                format!("converted {}\n{speed}", console::sizes(report))
            },
        })
    }
}
