use std::{
    fs::{File, FileTimes, Metadata, Permissions},
    io,
    os::unix::fs::PermissionsExt,
    time::SystemTime,
};

/// What an output takes over from its input: who may do what with it, and when it was modified. A private file stays
/// private, and what was executable is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Attributes {
    mode: u32,
    modified: Option<SystemTime>,
}

impl Attributes {
    /// Of a file or folder.
    pub fn of(metadata: &Metadata) -> Self {
        Self {
            mode: metadata.permissions().mode() & 0o777,
            modified: metadata.modified().ok(),
        }
    }

    /// Of what holds something of files with these: nobody may do more with it than with each of them, nor execute it.
    pub fn of_all(files: impl IntoIterator<Item = Self>) -> Self {
        let mode = files.into_iter().fold(0o666, |mode, file| mode & file.mode);
        Self {
            mode,
            modified: None,
        }
    }

    /// Gives them to a file or folder, whatever the umask is.
    pub fn give(&self, file: &File) -> io::Result<()> {
        if let Some(modified) = self.modified {
            file.set_times(FileTimes::new().set_modified(modified))?;
        }
        file.set_permissions(Permissions::from_mode(self.mode))
    }
}
