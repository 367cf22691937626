use std::{
    env,
    path::{Path, PathBuf},
    process::ExitCode,
};

use serde::Serialize;
use zipserv::checkpoint::{self, Difference, DifferenceKind};

use super::{DIFFERENT, Format, Outcome, console, json::Speed, stdio};

/// Compare a compressed file or folder with its original
///
/// The exit code is 1 if they differ.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  zipserv verify small.safetensors model.safetensors
  zipserv verify Llama-3.1-8B-zipserv/ Llama-3.1-8B/")]
pub struct Verify {
    /// What zipserv has compressed: a file or folder; - is standard input
    compressed: PathBuf,
    /// The file or folder that it should be compressed from; - is standard input
    original: PathBuf,
    #[command(flatten)]
    format: Format,
}

#[derive(Serialize)]
struct VerdictJson<'a> {
    equal: bool,
    original_bytes: u64,
    difference: Option<DifferenceJson<'a>>,
    #[serde(flatten)]
    speed: Speed,
}

#[derive(Serialize)]
struct DifferenceJson<'a> {
    file: &'a Path,
    message: String,
    tensor: Option<&'a str>,
    index: Option<u64>,
    coordinates: Option<&'a [u64]>,
}

impl<'a> DifferenceJson<'a> {
    fn new(difference: &'a Difference) -> Self {
        let (tensor, index, coordinates) = match &difference.kind {
            DifferenceKind::Tensor {
                name,
                index,
                coordinates,
            } => (Some(&**name), Some(*index), Some(&**coordinates)),
            _ => (None, None, None),
        };
        Self {
            file: &difference.file,
            message: difference.to_string(),
            tensor,
            index,
            coordinates,
        }
    }
}

impl Verify {
    pub fn run(&self) -> Outcome {
        if stdio::is_dash(&self.compressed) && stdio::is_dash(&self.original) {
            return Err("only one of both can be standard input".into());
        }
        let folder = env::temp_dir();
        let compressed = stdio::Input::open(&self.compressed, &folder)?;
        let original = stdio::Input::open(&self.original, &folder)?;
        let (verdict, time) = console::timed("verify", false, |options| {
            checkpoint::verify(compressed.path(), original.path(), options)
        });
        let mut verdict = verdict?;
        if let Some(difference) = &mut verdict.difference
            && stdio::is_dash(&self.original)
        {
            difference.file.clone_from(&self.original);
        }
        let difference = verdict.difference.as_ref();
        if self.format.json {
            console::print_json(&VerdictJson {
                equal: difference.is_none(),
                original_bytes: verdict.bytes,
                difference: difference.map(DifferenceJson::new),
                speed: Speed::new(verdict.bytes, time),
            })?;
        } else if let Some(difference) = difference {
            console::print(format_args!("different: {difference}"))?;
        } else {
            let speed = console::throughput(verdict.bytes, time);
            console::summary(format_args!("equal: {speed}"))?;
        }
        Ok(match difference {
            None => ExitCode::SUCCESS,
            Some(_) => ExitCode::from(DIFFERENT),
        })
    }
}
