//! `-`, which stands for standard input and output.
//!
//! Files are read and written at any place, which pipes cannot do. So what comes from a pipe is kept in a file without a
//! name first, and what goes to standard output is written to a file and follows when it is whole.

use std::{
    env,
    error::Error,
    fmt::Display,
    fs::{self, File},
    io::{self, IsTerminal, Read, Write},
    os::fd::{AsFd, AsRawFd},
    path::{Path, PathBuf},
};

use zipserv::checkpoint::shown;

use super::{
    console,
    sentence::{of_file, sentence},
    signals,
};

/// Where the system has the open files of a process.
const OPEN: &str = "/proc/self/fd";
/// Bytes that go to standard output between two looks for signals.
const COPY_BYTES: u64 = 1 << 20;

/// Whether a path stands for standard input or output. A file of that name is `./-`.
pub fn is_dash(path: &Path) -> bool {
    path == "-"
}

/// A path as it is shown, also one of an [`Input`].
pub fn name(path: &Path) -> String {
    match path.starts_with(OPEN) {
        true => "standard input".into(),
        false => shown(path.display()).to_string(),
    }
}

/// A file to read: as it was named, or standard input.
pub struct Input {
    path: PathBuf,
    /// What came from a pipe; it goes when this does.
    _kept: Option<File>,
}

impl Input {
    /// Keeps what comes from a pipe in `folder`.
    pub fn open(path: &Path, folder: &Path) -> Result<Self, Box<dyn Error>> {
        if !is_dash(path) {
            return Ok(Self {
                path: path.into(),
                _kept: None,
            });
        }
        let stdin = io::stdin();
        if stdin.is_terminal() {
            return Err("standard input is a terminal; give a file, or pipe one in".into());
        }
        let opened = File::from(stdin.as_fd().try_clone_to_owned()?);
        if opened.metadata()?.is_file() {
            return Ok(Self::of(opened));
        }
        let mut kept = tempfile::tempfile_in(folder).map_err(|error| of_file(folder, &error))?;
        io::copy(&mut stdin.lock(), &mut kept).map_err(|error| {
            let (error, folder) = (sentence(&error), name(folder));
            format!("standard input, which is kept in {folder}: {error}")
        })?;
        Ok(Self::of(kept))
    }

    fn of(file: File) -> Self {
        Self {
            path: Path::new(OPEN).join(file.as_raw_fd().to_string()),
            _kept: Some(file),
        }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// A folder that has room for a file as large as the output: its own, or that for temporary files.
pub fn room_beside(output: &Path) -> PathBuf {
    match output.parent() {
        _ if is_dash(output) => env::temp_dir(),
        Some(parent) if parent != "" => parent.into(),
        _ => ".".into(),
    }
}

/// Has `job` write a file: the one that is named, or one that goes to standard output when it is whole.
pub fn output<T>(
    path: &Path,
    job: impl FnOnce(&Path) -> Result<T, Box<dyn Error>>,
) -> Result<T, Box<dyn Error>> {
    if !is_dash(path) {
        return job(path);
    }
    let mut stdout = io::stdout();
    if stdout.is_terminal() {
        return Err("standard output is a terminal; name a file, or pipe it on".into());
    }
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("output");
    let result = job(&path)?;
    let file = File::open(&path)?;
    fs::remove_file(&path)?;
    drop(folder);
    let at = |error: io::Error| of_file(Path::new("standard output"), &error);
    while io::copy(&mut (&file).take(COPY_BYTES), &mut stdout).map_err(at)? > 0 {
        if signals::received().is_some() {
            return Err("cancelled".into());
        }
    }
    stdout.flush().map_err(at)?;
    Ok(result)
}

/// Refuses JSON on standard output together with the output itself.
pub fn check_json(json: bool, output: &Path) -> Result<(), &'static str> {
    match json && is_dash(output) {
        true => Err("--json prints where the output goes; name a file for that"),
        false => Ok(()),
    }
}

/// Prints what a job has done, beside an output that goes to standard output.
pub fn summary(output: &Path, line: impl Display) -> io::Result<()> {
    match is_dash(output) {
        true => console::note(line),
        false => console::summary(line)?,
    }
    Ok(())
}
