//! The library's functions for files and folders.
//!
//! The job has a thread of its own, so that the caller's can report progress and take Ctrl-C meanwhile.

use std::{
    path::PathBuf,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::Duration,
};

use pyo3::prelude::*;
use zipserv::checkpoint::{self, Error, Options, Progress};

use crate::{
    error,
    report::{Report, Verdict},
};

/// How often progress is reported.
const TICK: Duration = Duration::from_millis(50);

/// How far a job is, and whether it is to go on.
#[derive(Default)]
struct State {
    total: AtomicU64,
    done: AtomicU64,
    is_cancelled: AtomicBool,
}

impl Progress for State {
    fn start(&self, bytes: u64) {
        self.total.store(bytes, Ordering::Relaxed);
    }

    fn advance(&self, bytes: u64) {
        self.done.fetch_add(bytes, Ordering::Relaxed);
    }

    fn is_cancelled(&self) -> bool {
        self.is_cancelled.load(Ordering::Relaxed)
    }
}

impl State {
    /// Calls `progress(done, total)`, and whatever handles signals.
    fn report(&self, py: Python, progress: Option<&Py<PyAny>>) -> PyResult<()> {
        py.check_signals()?;
        let total = self.total.load(Ordering::Relaxed);
        if let Some(progress) = progress
            && total > 0
        {
            let done = self.done.load(Ordering::Relaxed);
            progress.call1(py, (done.min(total), total))?;
        }
        Ok(())
    }
}

/// Runs a job, which stops when `progress` or a handler of signals raises.
fn with_progress<T: Send>(
    py: Python,
    force: bool,
    progress: Option<Py<PyAny>>,
    job: impl FnOnce(&Options) -> Result<T, Error> + Send,
) -> PyResult<T> {
    let state = State::default();
    let caller = thread::current();
    let mut raised = None;
    let result = thread::scope(|scope| {
        let state = &state;
        let worker = scope.spawn(move || {
            let result = job(&Options::default().force(force).progress(state));
            caller.unpark();
            result
        });
        while !worker.is_finished() {
            py.detach(|| thread::park_timeout(TICK));
            if raised.is_none()
                && let Err(error) = state.report(py, progress.as_ref())
            {
                state.is_cancelled.store(true, Ordering::Relaxed);
                raised = Some(error);
            }
        }
        worker.join()
    });
    if let Some(raised) = raised {
        return Err(raised);
    }
    let result = result.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    let result = result.map_err(|error| error::of_file(py, &error))?;
    state.report(py, progress.as_ref())?;
    Ok(result)
}

/// `zipserv.compress`.
#[pyfunction]
pub fn compress(
    py: Python,
    input: PathBuf,
    output: PathBuf,
    force: bool,
    archive: bool,
    progress: Option<Py<PyAny>>,
) -> PyResult<Report> {
    with_progress(py, force, progress, |options| {
        checkpoint::compress(&input, &output, &options.archive(archive))
    })
    .map(Report::new)
}

/// `zipserv.convert`.
#[pyfunction]
pub fn convert(
    py: Python,
    input: PathBuf,
    output: PathBuf,
    force: bool,
    archive: bool,
    progress: Option<Py<PyAny>>,
) -> PyResult<Report> {
    with_progress(py, force, progress, |options| {
        checkpoint::convert(&input, &output, &options.archive(archive))
    })
    .map(Report::new)
}

/// `zipserv.decompress`.
#[pyfunction]
pub fn decompress(
    py: Python,
    input: PathBuf,
    output: PathBuf,
    force: bool,
    progress: Option<Py<PyAny>>,
) -> PyResult<Report> {
    with_progress(py, force, progress, |options| {
        checkpoint::decompress(&input, &output, options)
    })
    .map(Report::new)
}

/// `zipserv.verify`.
#[pyfunction]
pub fn verify(
    py: Python,
    compressed: PathBuf,
    original: PathBuf,
    progress: Option<Py<PyAny>>,
) -> PyResult<Verdict> {
    with_progress(py, false, progress, |options| {
        checkpoint::verify(&compressed, &original, options)
    })
    .map(Verdict::new)
}

/// `zipserv.inspect`.
#[pyfunction]
pub fn inspect(py: Python, path: PathBuf, progress: Option<Py<PyAny>>) -> PyResult<Report> {
    with_progress(py, false, progress, |options| {
        checkpoint::inspect(&path, options)
    })
    .map(Report::new)
}
