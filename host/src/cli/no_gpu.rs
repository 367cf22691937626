use std::ffi::OsString;

use super::Outcome;

/// Stands for the subcommands that need a GPU, and says what is missing, whatever the arguments.
#[derive(clap::Args)]
#[command(after_help = MISSING)]
pub struct NoGpu {
    #[arg(hide = true, trailing_var_arg = true, allow_hyphen_values = true)]
    _arguments: Vec<OsString>,
}

const MISSING: &str = "built without GPU support: build with --features cuda";

impl NoGpu {
    pub fn run(&self) -> Outcome {
        Err(MISSING.into())
    }
}
