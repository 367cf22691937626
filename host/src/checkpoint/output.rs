use std::{
    ffi::OsStr,
    fs::{self, File, OpenOptions, Permissions},
    io,
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::fs::{FlockOperation, OFlags, flock};
use tempfile::{Builder, NamedTempFile, TempDir};

use super::{
    Error, ErrorKind,
    error::At,
    names,
    place::{self, Seen},
    shown::shown,
};

/// A file that appears under its name when it is whole. Until then, and if it never is, it has
/// another name in the same folder, and is removed if the process lives to do so.
pub(crate) struct OutputFile {
    temporary: NamedTempFile,
    target: Target,
}

/// A folder that appears under its name when it is whole, as [`OutputFile`] does.
pub(crate) struct OutputFolder {
    temporary: TempDir,
    target: Target,
    /// Holds the lock that says that it is being written.
    _open: File,
}

struct Target {
    path: PathBuf,
    parent: PathBuf,
    /// What is to be replaced.
    old: Option<Seen>,
    /// What interrupted runs had left beside it.
    removed: Vec<PathBuf>,
}

impl Target {
    fn new(path: &Path, force: bool) -> Result<Self, Error> {
        if path.file_name().is_none() {
            return Err(Error::new(path, ErrorKind::OutputName("not a name")));
        }
        let exists = path.symlink_metadata().is_ok();
        if !force && exists {
            return Err(Error::new(path, ErrorKind::OutputExists));
        }
        let parent = match path.parent() {
            Some(parent) if parent != "" => parent,
            _ => Path::new("."),
        };
        Ok(Self {
            path: path.into(),
            parent: parent.into(),
            old: exists.then(|| Seen::of(path)).transpose().at(path)?,
            removed: remove_litter(parent),
        })
    }

    /// Until it is whole, it is its owner's alone.
    fn temporary<T>(
        &self,
        mode: u32,
        create: impl FnOnce(&Builder, &Path) -> io::Result<T>,
    ) -> Result<T, Error> {
        let mut builder = Builder::new();
        builder
            .prefix(names::UNFINISHED_PREFIX)
            .suffix(names::UNFINISHED_SUFFIX);
        builder.permissions(Permissions::from_mode(mode));
        create(&builder, &self.parent).at(&self.path)
    }

    /// Gives the output its name. What it replaces gets the temporary one. Says what a person should know.
    fn commit(&self, temporary: &Path) -> Result<Vec<String>, Error> {
        let placed = match &self.old {
            Some(old) => place::replace(temporary, &self.path, old),
            None => place::put(temporary, &self.path).map(|()| true),
        };
        match placed {
            Ok(true) => (),
            Ok(false) => return Err(Error::new(&self.path, ErrorKind::OutputChanged)),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                return Err(Error::new(&self.path, ErrorKind::OutputChanged));
            }
            Err(error) => return Err(Error::new(&self.path, error)),
        }
        let litter = self.removed.iter().map(|path| {
            let path = shown(path.display());
            format!("removed {path}, which an interrupted run had left")
        });
        let mut warnings: Vec<_> = litter.collect();
        match sync(&self.parent) {
            Ok(()) => (),
            // Whoever may write a folder need not be one who may open it.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                let path = shown(self.path.display());
                warnings.push(format!(
                    "{path} is complete, but its folder cannot be synced ({error}): if the system crashes now, it may be lost"
                ));
            }
            Err(error) => return Err(Error::new(&self.path, ErrorKind::NotSynced(error))),
        }
        Ok(warnings)
    }
}

impl OutputFile {
    /// `input`, if any, is not to be replaced by what is made of it.
    pub fn create(path: &Path, input: Option<&Path>, force: bool) -> Result<Self, Error> {
        let target = Target::new(path, force)?;
        let canonical = |path: &Path| path.canonicalize().ok();
        if canonical(path).is_some_and(|path| input.and_then(canonical) == Some(path)) {
            return Err(Error::new(path, ErrorKind::OutputName("it is the input")));
        }
        if path.is_dir() {
            return Err(Error::new(path, ErrorKind::OutputName("it is a folder")));
        }
        let temporary = target.temporary(0o600, |builder, parent| builder.tempfile_in(parent))?;
        lock(temporary.as_file());
        Ok(Self { temporary, target })
    }

    pub fn file(&self) -> &File {
        self.temporary.as_file()
    }

    /// Makes it last, and gives it its name. Says what a person should know.
    pub fn commit(self) -> Result<Vec<String>, Error> {
        let Self { temporary, target } = self;
        temporary.as_file().sync_all().at(&target.path)?;
        // What has the temporary name then, if anything, goes with it.
        target.commit(temporary.path())
    }
}

impl OutputFolder {
    /// `input` is not to be lost when the output replaces a folder.
    pub fn create(path: &Path, input: &Path, force: bool) -> Result<Self, Error> {
        let target = Target::new(path, force)?;
        // Else the output would be part of what the next run or a verification reads.
        let inside = |parent: PathBuf| input.canonicalize().is_ok_and(|i| parent.starts_with(i));
        if target.parent.canonicalize().is_ok_and(inside) {
            return Err(Error::new(
                path,
                ErrorKind::OutputName("it is inside the input"),
            ));
        }
        if path.symlink_metadata().is_ok() {
            check_replaceable(path, input)?;
        }
        let temporary = target.temporary(0o700, |builder, parent| builder.tempdir_in(parent))?;
        let open = File::open(temporary.path()).at(path)?;
        lock(&open);
        Ok(Self {
            temporary,
            target,
            _open: open,
        })
    }

    pub fn path(&self) -> &Path {
        self.temporary.path()
    }

    /// Makes all in it last, and gives it its name. Says what a person should know.
    pub fn commit(self) -> Result<Vec<String>, Error> {
        let Self {
            temporary, target, ..
        } = self;
        sync_folders(temporary.path()).at(&target.path)?;
        target.commit(temporary.path())
    }
}

/// A folder that is replaced is lost with all in it, so it must look like our own output.
fn check_replaceable(path: &Path, input: &Path) -> Result<(), Error> {
    let refuse = |why| Err(Error::new(path, ErrorKind::OutputName(why)));
    if !path.symlink_metadata().at(path)?.is_dir() {
        return refuse("it is not a folder");
    }
    let (old, input) = (
        path.canonicalize().at(path)?,
        input.canonicalize().at(input)?,
    );
    if input.starts_with(&old) {
        return refuse("it contains the input");
    }
    let names = fs::read_dir(path).at(path)?;
    let names = names
        .map(|entry| Ok(entry?.file_name()))
        .collect::<io::Result<Vec<_>>>()
        .at(path)?;
    let is_checkpoint = |name| names::is_checkpoint(OsStr::new(name));
    if !names.is_empty() && !names.iter().any(is_checkpoint) {
        return refuse("it is a folder without a .safetensors file");
    }
    Ok(())
}

/// Says that an output is being written, as long as it is open. Where there are no locks, it stays unsaid.
fn lock(file: &File) {
    let _ = flock(file, FlockOperation::NonBlockingLockExclusive);
}

/// An output is locked right after it is made, and never looks older than this before.
const NEW: Duration = Duration::from_secs(10);

/// Removes unfinished outputs that nobody writes any more, and says which.
fn remove_litter(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let unfinished = entries.filter(|entry| names::is_unfinished(&entry.file_name()));
    let litter = unfinished.map(|entry| entry.path()).filter(|path| {
        let mut options = OpenOptions::new();
        let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
        options.read(true).custom_flags(flags.bits() as i32);
        let Ok(file) = options.open(path) else {
            return false;
        };
        let Ok(metadata) = file.metadata() else {
            return false;
        };
        let age = metadata
            .modified()
            .ok()
            .and_then(|time| time.elapsed().ok());
        // A process that is gone holds no lock.
        let is_left = age.is_some_and(|age| age > NEW)
            && flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok();
        match is_left {
            true if metadata.is_dir() => fs::remove_dir_all(path).is_ok(),
            true if metadata.is_file() => fs::remove_file(path).is_ok(),
            _ => false,
        }
    });
    litter.collect()
}

/// Makes the names in a folder last, where the file system can be asked to.
fn sync(folder: &Path) -> io::Result<()> {
    match File::open(folder)?.sync_all() {
        Err(error) if place::is_unsupported(&error) => Ok(()),
        result => result,
    }
}

fn sync_folders(root: &Path) -> io::Result<()> {
    for entry in walkdir::WalkDir::new(root) {
        let entry = entry?;
        if entry.file_type().is_dir() {
            sync(entry.path())?;
        }
    }
    Ok(())
}
