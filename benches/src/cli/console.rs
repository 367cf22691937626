//! What goes to the terminal: results on standard output, all else on standard error.

use std::{
    error::Error,
    fmt::Display,
    io::{self, Write},
    path::Path,
    time::Duration,
};

use indicatif::{ProgressBar, ProgressStyle};
use zipserv_bench::results::Inputs;

/// Prints a line of results.
pub fn print(line: impl Display) -> io::Result<()> {
    match writeln!(io::stdout(), "{line}") {
        // The reader has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result,
    }
}

/// Tells a person something beside the results.
pub fn note(line: impl Display) {
    // There is nowhere to say that this failed.
    let _ = writeln!(io::stderr(), "{line}");
}

/// Tells which files were not taken, a line each.
pub fn skipped(inputs: &Inputs) {
    inputs.skipped.iter().for_each(note);
}

/// Tells what was written.
pub fn wrote(path: &Path) {
    note(format_args!("wrote {}", path.display()));
}

/// Prints an error and its causes.
pub fn error(error: &dyn Error) {
    note(format_args!("error: {error}"));
    let mut cause = error.source();
    while let Some(error) = cause {
        note(format_args!("  caused by: {error}"));
        cause = error.source();
    }
}

/// A bar of rows, if standard error is a terminal.
pub fn bar(name: &'static str) -> ProgressBar {
    let style = ProgressStyle::with_template("{prefix:>12} [{wide_bar}] {pos}/{len} {eta}");
    let style = style.expect("a valid template");
    let bar = ProgressBar::no_length().with_style(style).with_prefix(name);
    bar.enable_steady_tick(Duration::from_secs(1));
    bar
}
