use std::process::ExitCode;

use clap::CommandFactory;
use clap_complete::Shell;

use super::{Cli, Outcome, console};

/// Print what makes a shell complete the program's arguments
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  zipserv completions bash > ~/.local/share/bash-completion/completions/zipserv
  zipserv completions zsh > ~/.zfunc/_zipserv
  zipserv completions fish > ~/.config/fish/completions/zipserv.fish")]
pub struct Completions {
    /// The shell
    shell: Shell,
}

impl Completions {
    pub fn run(&self) -> Outcome {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut Cli::command(), "zipserv", &mut script);
        console::print(String::from_utf8(script)?.trim_end())?;
        Ok(ExitCode::SUCCESS)
    }
}
