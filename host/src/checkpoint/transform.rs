use std::{
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
};

use super::{
    Error, Options, Progress, Report,
    error::At,
    folder::Listing,
    output::{OutputFile, OutputFolder},
    report::FileReport,
};

/// A job that makes one file of another: compression or its reverse.
pub(crate) trait Transform: Sized {
    /// Opens the input and checks its header.
    fn open(path: &Path) -> Result<Self, Error>;

    /// Bytes to go through.
    fn bytes(&self) -> u64;

    /// Writes the output to an empty file; `path` is for errors.
    fn write(&self, file: &File, path: &Path, progress: &dyn Progress)
    -> Result<FileReport, Error>;

    /// What becomes of the files of a folder at `root`.
    fn folder(root: &Path, listing: &Listing) -> Result<Contents, Error>;

    /// Writes what else the output folder has, once all other files are there.
    fn finish(folder: &Path, listing: &Listing) -> Result<(), Error>;
}

/// What an output folder gets of its input: names in the output, and in the input.
#[derive(Default)]
pub(crate) struct Contents {
    /// Folders of the output, parents first.
    pub folders: Vec<PathBuf>,
    /// Files that the job makes.
    pub made: Vec<(PathBuf, PathBuf)>,
    /// Files that are copied.
    pub copied: Vec<(PathBuf, PathBuf)>,
    /// Files that are written as given.
    pub written: Vec<(PathBuf, String)>,
}

/// Runs a job on a file, or on all files of a folder.
pub(crate) fn transform<T: Transform>(
    input: &Path,
    output: &Path,
    options: &Options,
) -> Result<Report, Error> {
    if input.is_dir() {
        return transform_folder::<T>(input, output, options);
    }
    let job = T::open(input)?;
    let target = OutputFile::create(output, Some(input), options.force)?;
    options.progress.start(job.bytes());
    let report = job.write(target.file(), output, options.progress)?;
    target.commit()?;
    Ok(Report {
        files: vec![report],
        other_files: 0,
    })
}

fn transform_folder<T: Transform>(
    input: &Path,
    output: &Path,
    options: &Options,
) -> Result<Report, Error> {
    let listing = Listing::of(input)?;
    let contents = T::folder(input, &listing)?;
    let jobs = contents
        .made
        .iter()
        .map(|(_, from)| T::open(&input.join(from)))
        .collect::<Result<Vec<_>, _>>()?;
    let target = OutputFolder::create(output, input, options.force)?;
    options.progress.start(jobs.iter().map(T::bytes).sum());
    for folder in &contents.folders {
        fs::create_dir(target.path().join(folder)).at(&output.join(folder))?;
    }
    let mut files = Vec::with_capacity(jobs.len());
    for ((path, from), job) in contents.made.iter().zip(&jobs) {
        let named = output.join(path);
        let file = File::create_new(target.path().join(path)).at(&named)?;
        let mut report = job.write(&file, &named, options.progress)?;
        file.sync_all().at(&named)?;
        report.path = from.clone();
        files.push(report);
        tracing::debug!(file = %path.display(), "written");
    }
    for (path, from) in &contents.copied {
        copy(&input.join(from), &target.path().join(path)).at(&input.join(from))?;
    }
    for (path, text) in &contents.written {
        write(&target.path().join(path), text).at(&output.join(path))?;
    }
    T::finish(target.path(), &listing)?;
    target.commit()?;
    Ok(Report {
        files,
        other_files: contents.copied.len(),
    })
}

/// Writes a new file, to last.
pub(crate) fn write(path: &Path, text: &str) -> std::io::Result<()> {
    let mut file = File::create_new(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

fn copy(from: &Path, to: &Path) -> std::io::Result<()> {
    let (mut from, mut to) = (File::open(from)?, File::create_new(to)?);
    std::io::copy(&mut from, &mut to)?;
    to.sync_all()
}
