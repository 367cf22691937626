//! Names for finished outputs: given to nothing that is there, or in the place of just what was looked at.
//!
//! Linux can do both in one step, but not on all file systems: the network's (NFS, CephFS) know no flags of renaming.
//! There a name is taken first, by a folder or file that is empty and new, and then renamed over.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use rustix::fs::{CWD, RenameFlags, renameat_with};
use walkdir::WalkDir;

use super::names;

/// What is under a name, as far as it can be told without reading all of it: the number, length and time of each
/// file and folder in it. Links are not followed.
#[derive(PartialEq)]
pub(crate) struct Seen(Vec<(PathBuf, [u64; 3], [i64; 2])>);

impl Seen {
    /// What is under a name now.
    pub fn of(path: &Path) -> io::Result<Self> {
        let entries = WalkDir::new(path).sort_by_file_name().into_iter();
        let entries = entries.map(|entry| {
            let entry = entry?;
            let found = entry.metadata()?;
            // Names, numbers and times say enough of folders; their length is the file system's affair.
            let len = if found.is_dir() { 0 } else { found.len() };
            let name = entry.path().strip_prefix(path).unwrap_or(entry.path());
            let numbers = [found.dev(), found.ino(), len];
            let time = [found.mtime(), found.mtime_nsec()];
            Ok((name.into(), numbers, time))
        });
        entries.collect::<io::Result<_>>().map(Self)
    }

    fn is_at(&self, path: &Path) -> bool {
        Self::of(path).is_ok_and(|now| now == *self)
    }
}

/// Renames, unless the new name is taken.
pub(crate) fn put(from: &Path, to: &Path) -> io::Result<()> {
    match rename(from, to, RenameFlags::NOREPLACE) {
        Err(error) if is_unsupported(&error) => put_on_new(from, to),
        result => result,
    }
}

/// Renames to a name under which there was what is given. It takes the old name, and is there to be removed. False if
/// there is something else now: then nothing is renamed.
pub(crate) fn replace(from: &Path, to: &Path, old: &Seen) -> io::Result<bool> {
    match rename(from, to, RenameFlags::EXCHANGE) {
        Ok(()) if old.is_at(from) => Ok(true),
        Ok(()) => rename(from, to, RenameFlags::EXCHANGE).map(|()| false),
        Err(error) if error.kind() == io::ErrorKind::NotFound => put(from, to).map(|()| true),
        Err(error) if is_unsupported(&error) => replace_in_steps(from, to, old),
        Err(error) => Err(error),
    }
}

fn rename(from: &Path, to: &Path, flags: RenameFlags) -> io::Result<()> {
    Ok(renameat_with(CWD, from, CWD, to, flags)?)
}

/// Whether an error says that the file system has no such call.
pub(crate) fn is_unsupported(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let number = error.raw_os_error().map(Errno::from_raw_os_error);
    matches!(number, Some(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP))
}

fn put_on_new(from: &Path, to: &Path) -> io::Result<()> {
    if from.symlink_metadata()?.is_dir() {
        fs::create_dir(to)?;
        // Were there something in it by now, this would fail.
        return fs::rename(from, to).inspect_err(|_| drop(fs::remove_dir(to)));
    }
    match fs::hard_link(from, to) {
        Ok(()) => fs::remove_file(from),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Err(error),
        Err(_) => {
            File::create_new(to)?;
            fs::rename(from, to).inspect_err(|_| drop(fs::remove_file(to)))
        }
    }
}

fn replace_in_steps(from: &Path, to: &Path, old: &Seen) -> io::Result<bool> {
    if to.symlink_metadata().is_err() {
        return put(from, to).map(|()| true);
    }
    if !from.symlink_metadata()?.is_dir() {
        return match old.is_at(to) {
            true => fs::rename(from, to).map(|()| true),
            false => Ok(false),
        };
    }
    // If the process ends here, the old folder is beside its name, and no next run takes it for litter.
    let aside = from.with_extension(names::REPLACED_EXTENSION);
    put(to, &aside)?;
    let is_old = old.is_at(&aside);
    let done = if is_old { put(from, to) } else { Ok(()) };
    if !is_old || done.is_err() {
        put(&aside, to)?;
        return done.map(|()| false);
    }
    // Where the caller removes it.
    fs::rename(&aside, from).map(|()| true)
}
