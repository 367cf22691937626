use std::{
    fs::{self, File, Metadata},
    ops::Deref,
    path::{Path, PathBuf},
    time::SystemTime,
};

use memmap2::Mmap;

use super::{Error, ErrorKind, error::At};

/// A memory-mapped file.
pub(crate) struct Input {
    path: PathBuf,
    file: File,
    map: Mmap,
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
        // SAFETY: the map is read-only and used as bytes, of which any value is valid. What
        // remains is the known gap of all memory-mapped input: another process that writes to
        // the file meanwhile changes bytes behind a shared reference, and one that truncates it
        // raises SIGBUS. Neither can be prevented here; nothing read is trusted to stay as it
        // was checked for the safety of memory, and `check_unchanged` refuses what it can see.
        let map = unsafe { Mmap::map(&file) }.at(path)?;
        Ok(Self {
            path: path.into(),
            file,
            map,
            modified: modified(&metadata),
        })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// An error when the file has been written to since it was opened.
    pub fn check_unchanged(&self) -> Result<(), Error> {
        let now = self.file.metadata().at(&self.path)?;
        if now.len() != self.map.len() as u64 || modified(&now) != self.modified {
            return Err(Error::new(&self.path, ErrorKind::Changed));
        }
        Ok(())
    }
}

fn modified(metadata: &Metadata) -> Option<SystemTime> {
    metadata.modified().ok()
}

impl Deref for Input {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.map
    }
}
