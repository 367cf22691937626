use std::sync::atomic::{AtomicU64, Ordering};

use super::ErrorKind;

/// How to go about a job.
#[derive(Clone, Copy)]
#[non_exhaustive]
pub struct Options<'a> {
    /// Replace what is under the name of the output.
    pub force: bool,
    /// Told how far the job is, and asked whether it is to go on.
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
    /// The job is about `bytes` bytes of tensors as they are uncompressed. Each counts once, however often it is read.
    fn start(&self, bytes: u64) {
        let _ = bytes;
    }

    /// `bytes` more bytes are done.
    fn advance(&self, bytes: u64) {
        let _ = bytes;
    }

    /// Whether the job is to stop: asked after every few megabytes, and before the output gets its name. The job
    /// then fails with [`ErrorKind::Cancelled`] and removes what it has written.
    fn is_cancelled(&self) -> bool {
        false
    }
}

impl dyn Progress + '_ {
    /// [`advance`](Progress::advance), and an error if the job is to stop.
    pub(crate) fn step(&self, bytes: u64) -> Result<(), ErrorKind> {
        self.advance(bytes);
        match self.is_cancelled() {
            true => Err(ErrorKind::Cancelled),
            false => Ok(()),
        }
    }
}

/// The progress of a job that goes through its bytes several times: of `N` passes each advances by its share.
pub(crate) struct Passes<'a, const N: u64> {
    progress: &'a dyn Progress,
    /// Bytes of all passes.
    done: AtomicU64,
    /// Bytes that `progress` knows of.
    told: AtomicU64,
}

impl<'a, const N: u64> Passes<'a, N> {
    pub fn new(progress: &'a dyn Progress) -> Self {
        Self {
            progress,
            done: AtomicU64::new(0),
            told: AtomicU64::new(0),
        }
    }
}

impl<const N: u64> Progress for Passes<'_, N> {
    fn advance(&self, bytes: u64) {
        let now = (self.done.fetch_add(bytes, Ordering::Relaxed) + bytes) / N;
        // Another thread may be further, and has told that already.
        let before = self.told.fetch_max(now, Ordering::Relaxed);
        self.progress.advance(now.saturating_sub(before));
    }

    fn is_cancelled(&self) -> bool {
        self.progress.is_cancelled()
    }
}

/// Tells nobody, and is never cancelled.
impl Progress for () {}

#[cfg(test)]
mod tests {
    use rayon::prelude::*;

    use super::*;

    #[derive(Default)]
    struct Count(AtomicU64);

    impl Progress for Count {
        fn advance(&self, bytes: u64) {
            self.0.fetch_add(bytes, Ordering::Relaxed);
        }
    }

    #[test]
    fn passes_share_the_bytes() {
        let count = Count::default();
        let passes = Passes::<2>::new(&count);
        // Odd pieces, from many threads.
        let pass = || (1..1000u64).into_par_iter().for_each(|n| passes.advance(n));
        pass();
        assert_eq!(count.0.load(Ordering::Relaxed), 999 * 1000 / 2 / 2);
        pass();
        assert_eq!(count.0.load(Ordering::Relaxed), 999 * 1000 / 2);
    }
}
