use std::{
    error::Error,
    fmt::Display,
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use serde_json::Value;
use zipserv::results::TuningTable;

use super::{
    Outcome, console, markdown,
    measured::Measured,
    plot::{self, Speedup},
};

/// Print what `bench` measured, and `tune` found, as Markdown tables, and plot the former
#[derive(clap::Args)]
pub struct Results {
    /// Files that `bench --json` wrote, of one device, or `tune`; where several of the former have
    /// the same layer and number of tokens, the last one counts
    #[arg(required = true)]
    files: Vec<PathBuf>,
    /// Draw the speedup of each model over the number of tokens, as .svg or .png
    #[arg(long, value_name = "FILE", value_parser = plot::image)]
    plot: Option<PathBuf>,
    /// Replace the plot if it exists
    #[arg(long)]
    force: bool,
}

impl Results {
    pub fn run(&self) -> Outcome {
        let mut tables = Vec::new();
        let mut reports = Vec::new();
        for path in &self.files {
            match tuning(path)? {
                Some(tuning) => tables.push(markdown::tuning(&tuning)),
                None => reports.push(path.clone()),
            }
        }
        if !reports.is_empty() || self.plot.is_some() {
            let measured = Measured::read(&reports)?;
            if let Some(path) = &self.plot {
                plot::save(&Speedup(&measured), path, self.force)?;
            }
            tables.insert(0, markdown::tables(&measured));
        }
        console::print(tables.join("\n\n"))?;
        Ok(ExitCode::SUCCESS)
    }
}

/// What `tune` wrote, unless the file is something else.
fn tuning(path: &Path) -> Result<Option<TuningTable>, Box<dyn Error>> {
    let name = |error: &dyn Display| format!("{}: {error}", path.display());
    let json = fs::read(path).map_err(|error| name(&error))?;
    let is_table =
        serde_json::from_slice(&json).is_ok_and(|json: Value| json.get("tuning_version").is_some());
    if !is_table {
        return Ok(None);
    }
    let table = TuningTable::from_json(&json).map_err(|error| name(&error))?;
    Ok(Some(table))
}
