use std::{fs::File, path::Path};

use super::{
    Error, ErrorKind, Options, Report,
    container::is_container,
    files::Files,
    header::Header,
    input::Input,
    layout::suffix,
    report::FileReport,
    source::{Original, Source},
    transform::{Transform, transform},
    writer::Writer,
};

/// Compresses a `.safetensors` file, or a folder with any number of them, to `output`.
///
/// BF16 matrices get the layout of the GPU, all other tensors that shrink are byte planes; with [`Options::archive`] all
/// are, which is smaller. In a folder the `.safetensors` files and indexes of shards get other names and `config.json`
/// names zipserv, so that loaders which do not know it fail. All other files are copied as they are. `output` appears
/// when it is whole, not before. Runs on the current rayon pool; memory is bounded however large the files are.
///
/// # Errors
/// [`Error`] names the file, and the tensor and offset where there is one. Nothing is left under
/// the name of the output then.
pub fn compress(
    input: impl AsRef<Path>,
    output: impl AsRef<Path>,
    options: &Options,
) -> Result<Report, Error> {
    let mut report = transform::<Compress>(input.as_ref(), output.as_ref(), options)?;
    report.warn_if_larger();
    Ok(report)
}

struct Compress {
    original: Original,
    suffix: String,
}

impl Transform for Compress {
    fn open(path: &Path) -> Result<Self, Error> {
        let input = Input::open(path)?;
        let (header, json) = Header::of_file(&input)?;
        if is_container(&header) {
            return Err(Error::new(path, ErrorKind::AlreadyCompressed));
        }
        Ok(Self {
            suffix: suffix(&header.tensors),
            original: Original::new(input, header, json),
        })
    }

    fn files(root: &Path) -> Result<Files, Error> {
        Files::compressed(root)
    }

    /// One index may have tensors of many files, by the names that they are stored under.
    fn agree(jobs: &mut [Self]) {
        let tensors = jobs.iter().flat_map(|job| &job.original.header().tensors);
        let suffix = suffix(tensors);
        for job in jobs {
            job.suffix.clone_from(&suffix);
        }
    }

    fn finish(files: &mut Files, root: &Path, reports: &[FileReport]) -> Result<(), Error> {
        files.mark(root, reports)
    }

    fn bytes(&self) -> u64 {
        self.original.header().data_bytes()
    }

    fn write(&self, file: &File, path: &Path, options: &Options) -> Result<FileReport, Error> {
        let writer = Writer {
            source: &self.original,
            suffix: &self.suffix,
            is_archive: options.archive,
            file: Some(file),
            path,
            progress: options.progress,
        };
        Ok(writer.run()?.0)
    }
}
