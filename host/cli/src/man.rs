use std::{path::PathBuf, process::ExitCode};

use clap::CommandFactory;

use super::{Cli, Outcome, console, sentence::of_file};

/// Print the manual page, or write those of all commands to a folder
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  zipserv man | man -l -
  zipserv man ~/.local/share/man/man1")]
pub struct Man {
    /// Where to write zipserv.1, zipserv-compress.1 and so on, in place of what is there of those names
    #[arg(value_name = "FOLDER")]
    folder: Option<PathBuf>,
}

impl Man {
    pub fn run(&self) -> Outcome {
        match &self.folder {
            Some(folder) => clap_mangen::generate_to(Cli::command(), folder)
                .map_err(|error| of_file(folder, &error))?,
            None => {
                let mut page = Vec::new();
                clap_mangen::Man::new(Cli::command()).render(&mut page)?;
                console::print(String::from_utf8(page)?.trim_end())?;
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}
