use super::ErrorKind;

/// How to go about a job.
#[derive(Clone, Copy)]
#[non_exhaustive]
pub struct Options<'a> {
    /// Replace what is under the name of the output.
    pub force: bool,
    /// Make the smallest form: all tensors as byte planes, none in the layout of the GPU.
    pub archive: bool,
    /// Told how far the job is, and asked whether it is to go on.
    pub progress: &'a dyn Progress,
}

impl Default for Options<'_> {
    fn default() -> Self {
        Self {
            force: false,
            archive: false,
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

    /// With [`archive`](Self::archive) set to `archive`.
    pub fn archive(mut self, archive: bool) -> Self {
        self.archive = archive;
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

/// Tells nobody, and is never cancelled.
impl Progress for () {}
