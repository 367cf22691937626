use std::{
    fs::{self, File},
    io::{self, Read, Write},
    path::{Path, PathBuf},
};

use super::{
    Error, ErrorKind, Options, Progress, Report,
    attributes::Attributes,
    error::At,
    files::{Files, Renamed, Text},
    output::{OutputFile, OutputFolder},
    report::FileReport,
    shown::shown,
};

/// Bytes of a file that are copied at a time.
const COPY_BYTES: u64 = 64 << 20;

/// A job that makes one file of another: compression or its reverse.
pub(crate) trait Transform: Sized {
    /// Opens the input and checks its header.
    fn open(path: &Path) -> Result<Self, Error>;

    /// What the files of a folder become.
    fn files(root: &Path) -> Result<Files, Error>;

    /// Prepares the jobs on the files of a folder for each other.
    fn agree(jobs: &mut [Self]) {
        let _ = jobs;
    }

    /// Completes the texts, when all jobs on the folder `root` are done.
    fn finish(files: &mut Files, root: &Path, reports: &[FileReport]) -> Result<(), Error> {
        let _ = (files, root, reports);
        Ok(())
    }

    /// Bytes to go through.
    fn bytes(&self) -> u64;

    /// Writes the output to an empty file; `path` is for errors.
    fn write(&self, file: &File, path: &Path, options: &Options) -> Result<FileReport, Error>;
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
    let attributes = attributes(input)?;
    let job = T::open(input)?;
    let target = OutputFile::create(output, Some(input), options.force)?;
    options.progress.start(job.bytes());
    let report = job.write(target.file(), output, options)?;
    options.progress.step(0).at(output)?;
    attributes.give(target.file()).at(output)?;
    Ok(Report {
        files: vec![report],
        warnings: target.commit()?,
        ..Report::default()
    })
}

fn transform_folder<T: Transform>(
    input: &Path,
    output: &Path,
    options: &Options,
) -> Result<Report, Error> {
    let mut files = T::files(input)?;
    let jobs = files
        .checkpoints
        .iter()
        .map(|file| T::open(&input.join(&file.from)));
    let mut jobs = jobs.collect::<Result<Vec<_>, _>>()?;
    T::agree(&mut jobs);
    let target = OutputFolder::create(output, input, options.force)?;
    options.progress.start(jobs.iter().map(T::bytes).sum());
    for folder in &files.folders {
        fs::create_dir(target.path().join(folder)).at(&output.join(folder))?;
    }
    let mut reports = Vec::with_capacity(jobs.len());
    for (Renamed { from, to, .. }, job) in files.checkpoints.iter().zip(&jobs) {
        let named = output.join(to);
        let file = File::create_new(target.path().join(to)).at(&named)?;
        let mut report = job.write(&file, &named, options)?;
        attributes(&input.join(from))?.give(&file).at(&named)?;
        file.sync_all().at(&named)?;
        report.path = from.clone();
        reports.push(report);
        tracing::debug!(file = %shown(to.display()), "written");
    }
    for Renamed { from, to, .. } in &files.copies {
        let from = input.join(from);
        copy(&from, &target.path().join(to), options.progress).at(&from)?;
    }
    let other_files = files.copies.len() + files.texts.len();
    T::finish(&mut files, input, &reports)?;
    let sources = files.checkpoints.iter().map(|file| &file.from);
    let sources: Vec<_> = sources
        .chain(files.texts.iter().map(|text| &text.from))
        .collect();
    for Text { from, to, text, .. } in &files.texts {
        let attributes = match input.join(from) {
            from if from.exists() => attributes(&from)?,
            // Made of several files, as a manifest is of all in its folder.
            _ => {
                let beside = sources
                    .iter()
                    .filter(|source| source.parent() == from.parent());
                let beside = beside
                    .map(|source| input.join(source))
                    .filter(|source| source.exists());
                Attributes::of_all(
                    beside
                        .map(|source| attributes(&source))
                        .collect::<Result<Vec<_>, _>>()?,
                )
            }
        };
        write(&target.path().join(to), text, &attributes).at(&output.join(to))?;
    }
    options.progress.step(0).at(output)?;
    // Those inside first: whoever may not write a folder cannot fill it, and what is written changes its time.
    for folder in files
        .folders
        .iter()
        .rev()
        .map(PathBuf::as_path)
        .chain([Path::new("")])
    {
        let made = File::open(target.path().join(folder)).at(&output.join(folder))?;
        attributes(&input.join(folder))?
            .give(&made)
            .at(&output.join(folder))?;
    }
    files.warnings.extend(target.commit()?);
    Ok(Report {
        files: reports,
        other_files,
        warnings: files.warnings,
    })
}

fn copy(from: &Path, to: &Path, progress: &dyn Progress) -> Result<(), ErrorKind> {
    let (from, mut to) = (File::open(from)?, File::create_new(to)?);
    let before = from.metadata()?;
    let mut copied = 0;
    loop {
        match io::copy(&mut (&from).take(COPY_BYTES), &mut to)? {
            0 => break,
            more => copied += more,
        }
        progress.step(0)?;
    }
    let after = from.metadata()?;
    if copied != before.len() || before.modified().ok() != after.modified().ok() {
        return Err(ErrorKind::Changed);
    }
    Attributes::of(&before).give(&to)?;
    Ok(to.sync_all()?)
}

fn write(to: &Path, text: &str, attributes: &Attributes) -> io::Result<()> {
    let mut file = File::create_new(to)?;
    file.write_all(text.as_bytes())?;
    attributes.give(&file)?;
    file.sync_all()
}

fn attributes(path: &Path) -> Result<Attributes, Error> {
    Ok(Attributes::of(&fs::metadata(path).at(path)?))
}
