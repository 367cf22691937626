use std::{
    fs::{self, File, Metadata},
    io,
    ops::Range,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    time::SystemTime,
};

use super::{Error, ErrorKind, error::At};
use crate::codec::try_zeroed;

/// The longest text, such as an index, that is read as a whole: as long as a header may be.
const MAX_TEXT_BYTES: u64 = super::header::MAX_HEADER_BYTES;

/// A file that is read at offsets. It is never mapped: what is cut off a mapped file while it is read ends the
/// process, and bytes that were checked may be others when they are used.
pub(crate) struct Input {
    path: PathBuf,
    file: File,
    len: u64,
    modified: Option<SystemTime>,
}

impl Input {
    pub fn open(path: &Path) -> Result<Self, Error> {
        // Before it is opened: opening a pipe would wait for a writer.
        if !fs::metadata(path).at(path)?.is_file() {
            return Err(Error::new(path, ErrorKind::FileType));
        }
        let file = File::open(path).at(path)?;
        let metadata = file.metadata().at(path)?;
        Ok(Self {
            path: path.into(),
            file,
            len: metadata.len(),
            modified: modified(&metadata),
        })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes of the file, when it was opened.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Fills `buffer` with the bytes from `offset` on. An error if the file has no longer so many.
    pub fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), Error> {
        let read = self.file.read_exact_at(buffer, offset);
        let read = read.map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => ErrorKind::Changed,
            _ => error.into(),
        });
        read.at(&self.path)
    }

    /// The bytes in a range, in memory of their own.
    pub fn read(&self, range: Range<u64>) -> Result<Vec<u8>, Error> {
        let memory = usize::try_from(range.end - range.start)
            .ok()
            .and_then(try_zeroed);
        let memory = memory.ok_or(io::Error::from(io::ErrorKind::OutOfMemory));
        let mut bytes = memory.at(&self.path)?;
        self.read_at(range.start, &mut bytes)?;
        Ok(bytes)
    }

    /// All of a file that is not to be long.
    pub fn read_text(path: &Path) -> Result<Vec<u8>, Error> {
        let input = Self::open(path)?;
        if input.len > MAX_TEXT_BYTES {
            return Err(Error::new(path, ErrorKind::TextTooLong(input.len)));
        }
        let text = input.read(0..input.len)?;
        input.check_unchanged()?;
        Ok(text)
    }

    /// An error when the file has been written to since it was opened.
    pub fn check_unchanged(&self) -> Result<(), Error> {
        let now = self.file.metadata().at(&self.path)?;
        if now.len() != self.len || modified(&now) != self.modified {
            return Err(Error::new(&self.path, ErrorKind::Changed));
        }
        Ok(())
    }
}

fn modified(metadata: &Metadata) -> Option<SystemTime> {
    metadata.modified().ok()
}
