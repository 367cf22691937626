use std::{env, path::PathBuf, process::ExitCode};

use globset::Glob;
use zipserv::checkpoint;

use super::{
    Format, Outcome, console,
    groups::{self, Sort},
    json::ReportJson,
    plot::{self, Exponents},
    stdio, table,
};

/// Tell what is in a compressed file or folder, or what compressing one would give
///
/// Layers are one row: {0..31} stands for the numbers from 0 to 31, and n for how many tensors there are. Columns that
/// do not fit into the terminal are left out; `inspect FILE | less -S` shows all.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  zipserv inspect small.safetensors
  zipserv inspect Llama-3.1-8B/ --filter '*.mlp.*' --sort size --all
  zipserv inspect small.safetensors --json
  zipserv inspect small.safetensors --plot exponents.svg")]
pub struct Inspect {
    /// A .safetensors file or a folder with them, compressed or not; - is standard input
    #[arg(value_name = "INPUT")]
    file: PathBuf,
    /// A row for each tensor
    #[arg(short, long)]
    all: bool,
    /// The order of the rows [default: that of the data]
    #[arg(long, value_name = "BY")]
    sort: Option<Sort>,
    /// Only tensors whose names match, such as '*.mlp.*'; totals are of all
    #[arg(long, value_name = "GLOB")]
    filter: Option<Glob>,
    /// Draw the exponents of the compressed tensors, with the window marked, as .svg or .png
    #[arg(long, value_name = "FILE", value_parser = plot::image)]
    plot: Option<PathBuf>,
    /// Replace the plot if it exists
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    format: Format,
}

impl Inspect {
    pub fn run(&self) -> Outcome {
        let input = stdio::Input::open(&self.file, &env::temp_dir())?;
        let (report, _) = console::timed("inspect", false, |options| {
            checkpoint::inspect(input.path(), options)
        });
        let mut report = report?;
        if stdio::is_dash(&self.file) {
            report.files[0].path.clone_from(&self.file);
        }
        if let Some(path) = &self.plot {
            let exponents = report.exponents();
            if exponents.total() == 0 {
                return Err("there is no compressed tensor to plot".into());
            }
            plot::save(&Exponents(&exponents), path, self.force)?;
        }
        console::note_warnings(&report);
        let glob = self.filter.as_ref().map(Glob::compile_matcher);
        let entries = groups::entries(&report, glob.as_ref());
        if let Some(glob) = &self.filter
            && entries.is_empty()
        {
            let (name, glob) = (stdio::name(&self.file), checkpoint::shown(glob));
            return Err(format!("{name}: no tensor has a name like {glob}").into());
        }
        // JSON has each tensor, whatever they look like to people.
        let mut groups = match self.all || self.format.json {
            true => groups::single(entries).collect(),
            false => groups::group(entries),
        };
        if let Some(by) = self.sort {
            groups::sort(&mut groups, by);
        }
        if self.format.json {
            let entries = groups.iter().flat_map(|group| group.entries());
            console::print_json(&ReportJson::of(&report, entries.copied()))?;
        } else {
            let width = console::width();
            let rows = table::rows(&groups, self.all, width);
            console::print(format_args!("{rows}\n\n{}", table::totals(&report, width)))?;
        }
        Ok(ExitCode::SUCCESS)
    }
}
