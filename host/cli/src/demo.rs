use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    process::ExitCode,
};

use indicatif::DecimalBytes;
use serde::Serialize;
use sha2::{Digest, Sha256};
use zipserv::{checkpoint, synthetic::Model};

use super::{
    DIFFERENT, Format, Outcome, console,
    json::{ReportJson, Speed},
    sentence::of_file,
    size,
    table::table,
};

/// Make a small checkpoint; compress, verify, inspect and restore it
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  zipserv demo
  zipserv demo --size 1GB --keep folder")]
pub struct Demo {
    /// Size of the checkpoint, about
    #[arg(long, default_value = "64MB", value_parser = size::parse)]
    size: u64,
    /// The same seed gives the same weights
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Make the files in this folder and keep them
    #[arg(long, value_name = "DIR")]
    keep: Option<PathBuf>,
    /// Replace files in that folder
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    format: Format,
}

#[derive(Serialize)]
struct DemoJson<'a> {
    #[serde(flatten)]
    report: ReportJson<'a>,
    compress: Speed,
    verify: Speed,
    decompress: Speed,
    difference: Option<String>,
    original_sha256: String,
    restored_sha256: String,
    equal: bool,
}

impl Demo {
    pub fn run(&self) -> Outcome {
        match &self.keep {
            Some(folder) => {
                fs::create_dir_all(folder).map_err(|error| of_file(folder, &error))?;
                self.run_in(folder)
            }
            None => self.run_in(tempfile::tempdir()?.path()),
        }
    }

    fn run_in(&self, folder: &Path) -> Outcome {
        let [original, compressed, restored] = ["original", "compressed", "restored"]
            .map(|name| folder.join(name).with_extension("safetensors"));
        let say = |line: String| match self.format.json {
            true => Ok(()),
            false => console::summary(line),
        };

        let (bytes, time) = console::timed("synth", self.force, |options| {
            Model::new(self.size, self.seed).write(&original, options)
        });
        let bytes = bytes?;
        let speed = |time| console::throughput(bytes, time);
        say(format!("generate    {}", speed(time)))?;

        let (report, compress) = console::timed("compress", self.force, |options| {
            checkpoint::compress(&original, &compressed, options)
        });
        let report = report?;
        let stored = DecimalBytes(report.stored_bytes());
        say(format!("compress    {}, to {stored}", speed(compress)))?;

        let (verdict, verify) = console::timed("verify", self.force, |options| {
            checkpoint::verify(&compressed, &original, options)
        });
        let difference = verdict?.difference.map(|difference| difference.to_string());
        let found = difference.as_deref().unwrap_or("no difference");
        say(format!("verify      {}: {found}", speed(verify)))?;

        let (inspected, _) = console::timed("inspect", self.force, |options| {
            checkpoint::inspect(&compressed, options)
        });
        let inspected = inspected?;
        say(format!("inspect\n{}", table(&inspected, console::width())))?;

        let (result, decompress) = console::timed("decompress", self.force, |options| {
            checkpoint::decompress(&compressed, &restored, options)
        });
        result?;
        say(format!("decompress  {}", speed(decompress)))?;

        let (original_sha256, restored_sha256) = (sha256(&original)?, sha256(&restored)?);
        let equal = difference.is_none() && original_sha256 == restored_sha256;
        say(format!("SHA-256     {original_sha256} original"))?;
        say(format!("            {restored_sha256} restored"))?;
        say(if equal { "equal" } else { "DIFFERENT" }.into())?;
        if self.format.json {
            console::print_json(&DemoJson {
                report: ReportJson::new(&inspected),
                compress: Speed::new(bytes, compress),
                verify: Speed::new(bytes, verify),
                decompress: Speed::new(bytes, decompress),
                difference,
                original_sha256,
                restored_sha256,
                equal,
            })?;
        }
        Ok(match equal {
            true => ExitCode::SUCCESS,
            false => ExitCode::from(DIFFERENT),
        })
    }
}

fn sha256(path: &Path) -> io::Result<String> {
    let mut hasher = Sha256::new();
    io::copy(&mut File::open(path)?, &mut hasher)?;
    Ok(format!("{:x}", hasher.finalize()))
}
