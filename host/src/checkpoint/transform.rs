use std::{
    fs::{self, File},
    path::Path,
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
    let jobs = listing
        .checkpoints
        .iter()
        .map(|path| T::open(&input.join(path)))
        .collect::<Result<Vec<_>, _>>()?;
    let target = OutputFolder::create(output, input, options.force)?;
    options.progress.start(jobs.iter().map(T::bytes).sum());
    for folder in &listing.folders {
        fs::create_dir(target.path().join(folder)).at(&output.join(folder))?;
    }
    let mut files = Vec::with_capacity(jobs.len());
    for (path, job) in listing.checkpoints.iter().zip(&jobs) {
        let named = output.join(path);
        let file = File::create_new(target.path().join(path)).at(&named)?;
        let mut report = job.write(&file, &named, options.progress)?;
        file.sync_all().at(&named)?;
        report.path = path.clone();
        files.push(report);
        tracing::debug!(file = %path.display(), "written");
    }
    for path in &listing.others {
        copy(&input.join(path), &target.path().join(path)).at(&input.join(path))?;
    }
    target.commit()?;
    Ok(Report {
        files,
        other_files: listing.others.len(),
    })
}

fn copy(from: &Path, to: &Path) -> std::io::Result<()> {
    let (mut from, mut to) = (File::open(from)?, File::create_new(to)?);
    std::io::copy(&mut from, &mut to)?;
    to.sync_all()
}
