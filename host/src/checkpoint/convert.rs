use std::{fs::File, path::Path};

use super::{
    Error, Options, Report,
    container::Container,
    files::Files,
    layout::suffix,
    report::FileReport,
    source::Source,
    transform::{Transform, transform},
    writer::Writer,
};

/// Turns a compressed file or folder into what [`compress`](super::compress()) makes of its original with the same
/// options: an archive into the form for GPUs, and with [`Options::archive`] that into an archive.
///
/// The original is not written anywhere. `output` appears when it is whole and the checksum of the original is right, not
/// before. Runs on the current rayon pool; the largest tensors are held in memory.
///
/// # Errors
/// [`Error`] names the file, and the tensor and offset where there is one. Nothing is left under
/// the name of the output then.
pub fn convert(
    input: impl AsRef<Path>,
    output: impl AsRef<Path>,
    options: &Options,
) -> Result<Report, Error> {
    transform::<Convert>(input.as_ref(), output.as_ref(), options)
}

struct Convert {
    container: Container,
    suffix: String,
}

impl Transform for Convert {
    fn open(path: &Path) -> Result<Self, Error> {
        let container = Container::open(path)?;
        Ok(Self {
            suffix: suffix(&container.header().tensors),
            container,
        })
    }

    fn files(root: &Path) -> Result<Files, Error> {
        Files::converted(root)
    }

    fn agree(jobs: &mut [Self]) {
        let tensors = jobs.iter().flat_map(|job| &job.container.header().tensors);
        let suffix = suffix(tensors);
        for job in jobs {
            job.suffix.clone_from(&suffix);
        }
    }

    fn finish(files: &mut Files, root: &Path, reports: &[FileReport]) -> Result<(), Error> {
        files.mark(root, reports)
    }

    fn bytes(&self) -> u64 {
        self.container.header().data_bytes()
    }

    fn write(&self, file: &File, path: &Path, options: &Options) -> Result<FileReport, Error> {
        let writer = Writer {
            source: &self.container,
            suffix: &self.suffix,
            is_archive: options.archive,
            file: Some(file),
            path,
            progress: options.progress,
        };
        let (report, crc) = writer.run()?;
        self.container.check_crc(crc)?;
        Ok(report)
    }
}
