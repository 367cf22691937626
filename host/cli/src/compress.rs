use zipserv::checkpoint;

use super::{
    Outcome, console,
    files::{Files, Job},
};

/// Compress .safetensors files or checkpoint folders
///
/// BF16 matrices get the form from which GPUs multiply, in about 70 % of their size; all other tensors that shrink are
/// stored as byte planes. With --archive all are, which is smaller: `convert` turns that into the form for GPUs.
///
/// In a folder, NAME.safetensors becomes NAME.zipserv.safetensors and config.json names zipserv, so that programs
/// without it do not load the weights by mistake. `decompress` restores every file.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  zipserv compress model.safetensors -o small.safetensors
  zipserv compress Llama-3.1-8B/ -o Llama-3.1-8B-zipserv
  zipserv compress --archive Llama-3.1-8B/ -o Llama-3.1-8B-archive
  zipserv compress a.safetensors b.safetensors -o folder/
  curl https://host/model.safetensors | zipserv compress - -o small.safetensors")]
pub struct Compress {
    /// Make the smallest form, for disks and networks
    #[arg(long)]
    archive: bool,
    #[command(flatten)]
    files: Files,
}

impl Compress {
    pub fn run(&self) -> Outcome {
        self.files.run(&Job {
            name: "compress",
            output_name: checkpoint::stored_name,
            run: &|input, output, options| {
                checkpoint::compress(input, output, &options.archive(self.archive))
            },
            notes: &|report| console::others(report, None),
            summary: |report, time| {
                let speed = console::throughput(report.original_bytes(), time);
                format!("compressed {}\n{speed}", console::sizes(report))
            },
        })
    }
}
