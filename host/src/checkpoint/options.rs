use std::path::Path;

use super::{Error, ErrorKind};

/// How to go about a job.
#[derive(Clone, Copy)]
#[non_exhaustive]
pub struct Options<'a> {
    /// Replace what is under the name of the output.
    pub force: bool,
    /// Told how far the job is.
    pub progress: &'a dyn Progress,
}

impl Default for Options<'_> {
    fn default() -> Self {
        Self {
            force: false,
            progress: &(),
        }
    }
}

impl<'a> Options<'a> {
    /// With [`force`](Self::force) set to `force`.
    pub fn force(mut self, force: bool) -> Self {
        self.force = force;
        self
    }

    /// Reporting to `progress`.
    pub fn progress(mut self, progress: &'a dyn Progress) -> Self {
        self.progress = progress;
        self
    }
}

/// Told how far a job is. The calls come from many threads.
pub trait Progress: Sync {
    /// The job is going to go through `bytes` bytes, counting each as often as it is read.
    fn start(&self, bytes: u64) {
        let _ = bytes;
    }

    /// `bytes` more bytes are done.
    fn advance(&self, bytes: u64) {
        let _ = bytes;
    }

    /// Whether the job is to end: then it fails with [`ErrorKind::Cancelled`](super::ErrorKind::Cancelled), and leaves
    /// nothing under the name of its output. It is asked after each [`advance`](Self::advance).
    fn is_cancelled(&self) -> bool {
        false
    }
}

/// Tells how far a job on the file at `path` is, and whether it is to end.
pub(crate) fn advance(progress: &dyn Progress, bytes: u64, path: &Path) -> Result<(), Error> {
    progress.advance(bytes);
    match progress.is_cancelled() {
        true => Err(Error::new(path, ErrorKind::Cancelled)),
        false => Ok(()),
    }
}

/// Tells nobody.
impl Progress for () {}
