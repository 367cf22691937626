//! What goes to the terminal: results on standard output, all else on standard error.

use std::{
    cmp::Reverse,
    collections::BTreeMap,
    env,
    error::Error,
    fmt::Display,
    io::{self, Write},
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use ::console::Term;
use indicatif::{DecimalBytes, ProgressBar, ProgressStyle};
use serde::Serialize;
use zipserv::checkpoint::{Options, Progress, Reason, Report, Storage, TensorReport, shown};

use super::{layout, sentence::sentence, signals};

static QUIET: AtomicBool = AtomicBool::new(false);

/// From now on there are no notes, summaries and progress bars.
pub fn be_quiet() {
    QUIET.store(true, Ordering::Relaxed);
}

fn is_quiet() -> bool {
    QUIET.load(Ordering::Relaxed)
}

/// Prints a line of results.
pub fn print(line: impl Display) -> io::Result<()> {
    match writeln!(io::stdout(), "{line}") {
        // The reader has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        Err(error) => Err(of_stdout(error)),
        Ok(()) => Ok(()),
    }
}

/// The error of standard output, with its name.
pub fn of_stdout(error: io::Error) -> io::Error {
    let text = format!("standard output: {}", sentence(&error));
    io::Error::new(error.kind(), text)
}

/// Prints a JSON document.
pub fn print_json(document: &impl Serialize) -> io::Result<()> {
    print(serde_json::to_string_pretty(document)?)
}

/// Prints what a job has done, unless that is not wanted.
pub fn summary(line: impl Display) -> io::Result<()> {
    match is_quiet() {
        true => Ok(()),
        false => print(line),
    }
}

/// Tells a person something.
pub fn tell(line: impl Display) {
    // There is nowhere to say that this failed.
    let _ = writeln!(io::stderr(), "{line}");
}

/// Tells a person something beside the results, unless that is not wanted.
pub fn note(line: impl Display) {
    if !is_quiet() {
        tell(line);
    }
}

/// Prints an error and its causes, in one line.
pub fn error(error: &(dyn Error + 'static)) {
    tell(format_args!("error: {}", sentence(error)));
}

/// Columns for tables: what `COLUMNS` says, or the terminal. Nothing where the output is none, and all may be shown.
pub fn width() -> Option<usize> {
    let set = env::var("COLUMNS")
        .ok()
        .and_then(|columns| columns.parse().ok());
    let terminal = || Some(Term::stdout().size_checked()?.1.into());
    set.or_else(terminal).filter(|&columns| columns > 0)
}

/// A progress bar, if it is wanted and standard error is a terminal; `count` is the template of how far it is.
pub fn bar(name: &'static str, count: &str) -> ProgressBar {
    if is_quiet() {
        return ProgressBar::hidden();
    }
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
        Some(bits) => format!(", {bits:.3} bits a weight"),
        None if report.compressed().next().is_some() => String::new(),
        None => ", nothing compressed".into(),
    };
    format!(
        "{} -> {} ({:.1} %){bits}",
        DecimalBytes(original),
        DecimalBytes(stored),
        100.0 * report.ratio(),
    )
}

/// Why a tensor is not in the layout of the GPU, or is as it was; nothing for what archives are made of.
pub fn reason(tensor: &TensorReport) -> Option<String> {
    match tensor.storage {
        Storage::Matrix => None,
        Storage::Planes => tensor.unsuited.map(|reason| match reason {
            Reason::Dtype => format!("{}, not BF16", shown(&tensor.dtype)),
            Reason::Dimensions => "fewer than two dimensions".into(),
            Reason::Padding => "too few rows or columns for tiles of 32 x 64".into(),
            Reason::Size => "too large for the layout".into(),
            Reason::Outliers => "too many exponents outside the window".into(),
        }),
        Storage::Raw => Some("would not shrink".into()),
    }
}

/// Says what else a person should know of a job.
pub fn note_warnings(report: &Report) {
    for warning in &report.warnings {
        tell(format_args!("warning: {warning}"));
    }
}

/// What is said of tensors that kernels do not multiply from.
const PLANES: &str = "stored as planes: ";
const PASSED_THROUGH: &str = "passed through: ";
/// Reasons that are told one by one, at most.
const REASONS: usize = 8;

/// Which tensors are stored as planes or as they were, and why: a line for each reason, that of most bytes first, with
/// so much of a name as `width` has room for. Of an archive, where all else is planes, only the latter.
pub fn others(report: &Report, width: Option<usize>) -> Vec<String> {
    let is_planes = |tensor: &TensorReport| tensor.storage == Storage::Planes;
    let is_archive = report
        .tensors()
        .any(|tensor| is_planes(tensor) && tensor.unsuited.is_none());
    let mut groups: BTreeMap<(&str, String), Vec<&TensorReport>> = BTreeMap::new();
    for tensor in report.tensors() {
        let how = if is_planes(tensor) {
            PLANES
        } else {
            PASSED_THROUGH
        };
        if let Some(reason) = reason(tensor)
            && !(is_archive && is_planes(tensor))
        {
            groups.entry((how, reason)).or_default().push(tensor);
        }
    }
    let bytes =
        |tensors: &[&TensorReport]| tensors.iter().map(|tensor| tensor.original_bytes).sum();
    let line = |((how, reason), tensors): ((&str, String), Vec<&TensorReport>)| {
        let size: u64 = bytes(&tensors);
        let text = DecimalBytes(size);
        let more = match tensors.len() - 1 {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        let mut name = shown(&tensors[0].name).to_string();
        let rest = format!("{more} ({text}): {reason}");
        if let Some(width) = width {
            let room = width.saturating_sub(how.len() + rest.len());
            name = layout::elide(&name, room.max(1));
        }
        let line = format!("{how}{name}{rest}");
        (size, line)
    };
    let mut lines: Vec<_> = groups.into_iter().map(line).collect();
    lines.sort_by_key(|(size, _)| Reverse(*size));
    let rest = lines.split_off(lines.len().min(REASONS));
    let mut lines: Vec<_> = lines.into_iter().map(|(_, line)| line).collect();
    if !rest.is_empty() {
        let (count, bytes) = (rest.len(), rest.iter().map(|(bytes, _)| bytes).sum());
        let bytes = DecimalBytes(bytes);
        lines.push(format!("and for {count} other reasons: {bytes}"));
    }
    lines
}
