//! The program `zipserv`: the library on the command line.
//!
//! This file has its arguments, and what every subcommand shares; each subcommand has a file of its own.

mod completions;
mod compress;
mod console;
mod convert;
mod decompress;
mod demo;
mod files;
mod gpu;
mod groups;
mod inspect;
mod json;
mod layout;
mod man;
mod plot;
mod run;
mod self_test;
mod sentence;
mod signals;
mod size;
mod stdio;
mod synth;
mod table;
mod tune;
mod verify;

use std::{error::Error, ffi::OsString, num::NonZeroUsize, path::Path, process::ExitCode, thread};

use clap::{ArgAction, Args, Parser, Subcommand};

use self::{gpu::Gpu, tune::Tune};

/// What a subcommand comes to: an exit code, or an error, which has the exit code 2.
type Outcome = Result<ExitCode, Box<dyn Error>>;

/// The exit code when files differ, or a GPU computes what it should not.
const DIFFERENT: u8 = 1;
/// The exit code of bad input; clap gives it for bad usage too.
const ERROR: u8 = 2;

/// What is added to the number of a signal that has ended the program, as shells do.
const SIGNALLED: u8 = 128;

/// Lossless compression of BF16 LLM weights.
///
/// Exit codes: 0 done, 1 difference found, 2 bad usage or input, or no GPU where one is needed; 128 and the number of
/// a signal that has interrupted a job.
#[derive(Parser)]
#[command(name = "zipserv", version = env!("ZIPSERV_VERSION"), after_help = "\
Examples:
  zipserv compress model.safetensors -o small.safetensors
  zipserv inspect small.safetensors
  zipserv verify small.safetensors model.safetensors
  zipserv decompress small.safetensors -o model.safetensors")]
struct Cli {
    #[command(flatten)]
    common: Common,
    #[command(subcommand)]
    command: Command,
}

#[derive(Args)]
struct Common {
    /// Threads to use, at most four for each core [default: one for each core]
    #[arg(long, global = true, value_name = "N")]
    threads: Option<NonZeroUsize>,
    /// Print only what was asked for, warnings and errors: no progress, notes and summaries
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    quiet: bool,
    /// Log what happens to standard error; twice for more
    #[arg(short, long, global = true, action = ArgAction::Count)]
    verbose: u8,
}

/// How results are printed. Not among [`Common`]: `tune` writes its JSON to a file.
#[derive(Args)]
struct Format {
    /// Print one JSON document on standard output
    #[arg(long)]
    json: bool,
}

#[derive(Subcommand)]
enum Command {
    Compress(compress::Compress),
    Convert(convert::Convert),
    Decompress(decompress::Decompress),
    Verify(verify::Verify),
    Inspect(inspect::Inspect),
    Demo(demo::Demo),
    Synth(synth::Synth),
    Run(run::Run),
    /// Describe the GPU and test the kernels on it
    ///
    /// The exit code is 1 if a kernel is wrong, and 2 if there is no device.
    Gpu(Gpu),
    /// Look for faster launches of the kernels on the GPU at hand
    ///
    /// The table that it keeps is for the library and `zipserv-bench gemm --tuned`. The exit code is 1 if an
    /// output is wrong, and 2 if there is no device.
    Tune(Tune),
    Completions(completions::Completions),
    Man(man::Man),
}

/// Threads for each core that may be asked for: beyond them they would only cost memory.
const THREADS_PER_CORE: usize = 4;

/// How many threads to use of those that are wanted.
fn capped(threads: usize, cores: usize) -> usize {
    threads.min(THREADS_PER_CORE.saturating_mul(cores))
}

/// Refuses a file that is there already, unless forced to replace it.
fn spare(path: &Path, force: bool) -> Result<(), Box<dyn Error>> {
    if path.exists() && !force {
        let path = path.display();
        return Err(format!("{path}: already exists; --force replaces it").into());
    }
    Ok(())
}

/// Runs the program on arguments, of which the first is its name.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let Cli { common, command } = Cli::parse_from(arguments);
    match common.set_up().and_then(|()| command.run()) {
        Ok(code) => code,
        Err(error) => match signals::received() {
            Some((number, name)) => {
                console::tell(format_args!("interrupted by {name}"));
                ExitCode::from(SIGNALLED + number)
            }
            None => {
                console::error(&*error);
                ExitCode::from(ERROR)
            }
        },
    }
}

impl Common {
    fn set_up(&self) -> Result<(), Box<dyn Error>> {
        if self.quiet {
            console::be_quiet();
        }
        let level = match self.verbose {
            0 => tracing::Level::WARN,
            1 => tracing::Level::DEBUG,
            _ => tracing::Level::TRACE,
        };
        tracing_subscriber::fmt()
            .with_max_level(level)
            .with_writer(std::io::stderr)
            .with_ansi(::console::colors_enabled_stderr())
            .init();
        let wanted = self.threads.map_or(0, NonZeroUsize::get);
        let cores = thread::available_parallelism().map_or(1, NonZeroUsize::get);
        let threads = capped(wanted, cores);
        if threads < wanted {
            console::note(format_args!(
                "using {threads} threads, not {wanted}: more than {THREADS_PER_CORE} for each of {cores} cores do not help"
            ));
        }
        rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build_global()?;
        Ok(())
    }
}

impl Command {
    fn run(&self) -> Outcome {
        match self {
            Self::Compress(command) => command.run(),
            Self::Convert(command) => command.run(),
            Self::Decompress(command) => command.run(),
            Self::Verify(command) => command.run(),
            Self::Inspect(command) => command.run(),
            Self::Demo(command) => command.run(),
            Self::Synth(command) => command.run(),
            Self::Run(command) => command.run(),
            Self::Gpu(command) => command.run(),
            Self::Tune(command) => command.run(),
            Self::Completions(command) => command.run(),
            Self::Man(command) => command.run(),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn threads_are_capped() {
        assert_eq!(capped(0, 2), 0);
        assert_eq!(capped(8, 2), 8);
        assert_eq!(capped(9, 2), 8);
        assert_eq!(capped(usize::MAX, usize::MAX), usize::MAX);
    }

    #[test]
    fn every_command_has_help_and_examples_that_can_be_run() {
        let program = Cli::command();
        program.clone().debug_assert();
        for command in std::iter::once(&program).chain(program.get_subcommands()) {
            let name = command.get_name();
            assert!(command.get_about().is_some(), "{name}");
            for argument in command.get_arguments() {
                assert!(argument.get_help().is_some(), "{name} {argument}");
            }
            let after = command.get_after_help().map(ToString::to_string);
            let after = after.unwrap_or_else(|| panic!("{name}: no example"));
            let mut examples = 0;
            for example in after.lines().filter_map(|line| line.strip_prefix("  ")) {
                // What the shell makes of it.
                let parts = example
                    .split(" | ")
                    .find(|part| part.starts_with("zipserv "));
                let words = parts
                    .unwrap_or(example)
                    .split(" > ")
                    .next()
                    .unwrap_or_default();
                let words = words.split(' ').map(|word| word.trim_matches('\''));
                if let Err(error) = Cli::try_parse_from(words) {
                    panic!("{example}: {error}");
                }
                examples +=
                    usize::from(name == "zipserv" || example.contains(&format!("zipserv {name}")));
            }
            assert!(examples > 0, "{name}");
        }
    }
}
