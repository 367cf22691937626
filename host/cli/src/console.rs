//! What goes to the terminal: results on standard output, all else on standard error.

use std::{
    collections::BTreeMap,
    error::Error,
    fmt::Display,
    io::{self, Write},
    time::{Duration, Instant},
};

use indicatif::{DecimalBytes, ProgressBar, ProgressStyle};
use serde::Serialize;
use zipserv::checkpoint::{Options, Progress, Report, Storage, TensorReport, shown};

use super::signals;

/// Prints a line of results.
pub fn print(line: impl Display) -> io::Result<()> {
    match writeln!(io::stdout(), "{line}") {
        // The reader has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result,
    }
}

/// Prints a JSON document.
pub fn print_json(document: &impl Serialize) -> io::Result<()> {
    print(serde_json::to_string_pretty(document)?)
}

/// Tells a person something beside the results.
pub fn note(line: impl Display) {
    // There is nowhere to say that this failed.
    let _ = writeln!(io::stderr(), "{line}");
}

/// Prints an error and its causes.
pub fn error(error: &dyn Error) {
    note(format_args!("error: {}", shown(error)));
    let mut cause = error.source();
    while let Some(error) = cause {
        note(format_args!("  caused by: {}", shown(error)));
        cause = error.source();
    }
}

/// A progress bar, if standard error is a terminal; `count` is the template of how far it is.
pub fn bar(name: &'static str, count: &str) -> ProgressBar {
    let template = format!("{{prefix:>12}} [{{wide_bar}}] {count} {{eta}}");
    let style = ProgressStyle::with_template(&template).expect("a valid template");
    ProgressBar::no_length().with_style(style).with_prefix(name)
}

/// Runs a job with a progress bar, if standard error is a terminal, and times it. A signal cancels it.
pub fn timed<T>(name: &'static str, force: bool, job: impl FnOnce(&Options) -> T) -> (T, Duration) {
    signals::catch();
    let bar = bar(name, "{decimal_bytes}/{decimal_total_bytes}");
    let progress = Bar(&bar);
    let options = Options::default().force(force).progress(&progress);
    let start = Instant::now();
    let result = job(&options);
    let time = start.elapsed();
    bar.finish_and_clear();
    (result, time)
}

struct Bar<'a>(&'a ProgressBar);

impl Progress for Bar<'_> {
    fn start(&self, bytes: u64) {
        self.0.set_length(bytes);
    }

    fn advance(&self, bytes: u64) {
        self.0.inc(bytes);
    }

    fn is_cancelled(&self) -> bool {
        signals::received().is_some()
    }
}

/// "1.50 GB in 0.50 s, 3.00 GB/s".
pub fn throughput(bytes: u64, time: Duration) -> String {
    let rate = DecimalBytes(bytes_per_second(bytes, time) as u64);
    let (bytes, seconds) = (DecimalBytes(bytes), time.as_secs_f64());
    format!("{bytes} in {seconds:.2} s, {rate}/s")
}

pub fn bytes_per_second(bytes: u64, time: Duration) -> f64 {
    bytes as f64 / time.as_secs_f64().max(1e-9)
}

/// "64.00 MB -> 45.00 MB (70.3 %), 11.23 bits a weight".
pub fn sizes(report: &Report) -> String {
    let (original, stored) = (report.original_bytes(), report.stored_bytes());
    let bits = match report.bits_per_weight() {
        Some(bits) => format!("{bits:.3} bits a weight"),
        None => "nothing compressed".into(),
    };
    format!(
        "{} -> {} ({:.1} %), {bits}",
        DecimalBytes(original),
        DecimalBytes(stored),
        100.0 * report.ratio(),
    )
}

/// Why a tensor is stored as it was, if it is.
pub fn reason(tensor: &TensorReport) -> Option<String> {
    match tensor.storage {
        Storage::Compressed => None,
        Storage::Dtype => Some(format!("{}, not BF16", shown(&tensor.dtype))),
        Storage::Shape => Some("fewer than two dimensions".into()),
        Storage::Incompressible => Some("would not shrink".into()),
    }
}

/// Says what else a person should know of a job.
pub fn note_warnings(report: &Report) {
    for warning in &report.warnings {
        note(format_args!("warning: {warning}"));
    }
}

/// Says which tensors are stored as they were, and why: a line for each reason.
pub fn note_passed_through(report: &Report) {
    let mut groups: BTreeMap<String, Vec<&TensorReport>> = BTreeMap::new();
    for tensor in report.tensors() {
        if let Some(reason) = reason(tensor) {
            groups.entry(reason).or_default().push(tensor);
        }
    }
    for (reason, tensors) in groups {
        let bytes = DecimalBytes(tensors.iter().map(|tensor| tensor.original_bytes).sum());
        let name = shown(&tensors[0].name);
        match tensors.len() - 1 {
            0 => note(format_args!("passed through: {name} ({bytes}): {reason}")),
            more => note(format_args!(
                "passed through: {name} and {more} more ({bytes}): {reason}"
            )),
        }
    }
}
