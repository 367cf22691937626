use std::path::Path;

use super::{
    Error, Options, Report,
    container::{Container, is_container},
    error::At,
    folder::Listing,
    header::Header,
    input::Input,
    layout::suffix,
    report::FileReport,
    scan::Scan,
    source::{Original, Source},
    writer::Writer,
};

/// Tells what is in a compressed file or folder, or what compressing one would give.
///
/// # Errors
/// [`Error`] names the file, and the tensor and offset where there is one.
pub fn inspect(path: impl AsRef<Path>, options: &Options) -> Result<Report, Error> {
    let path = path.as_ref();
    if !path.is_dir() {
        let file = Opened::open(path)?;
        options.progress.start(file.bytes());
        return Ok(Report {
            files: vec![file.report(options)?],
            ..Report::default()
        });
    }
    let listing = Listing::of(path)?;
    let opened = listing
        .checkpoints
        .iter()
        .map(|file| Opened::open(&path.join(file)))
        .collect::<Result<Vec<_>, _>>()?;
    options
        .progress
        .start(opened.iter().map(Opened::bytes).sum());
    let files = opened.iter().zip(listing.checkpoints).map(|(file, path)| {
        Ok(FileReport {
            path,
            ..file.report(options)?
        })
    });
    Ok(Report {
        files: files.collect::<Result<_, _>>()?,
        other_files: listing.others.len(),
        ..Report::default()
    })
}

enum Opened {
    Original(Original),
    Compressed(Container),
}

impl Opened {
    fn open(path: &Path) -> Result<Self, Error> {
        let input = Input::open(path)?;
        let header = Header::of_file(&input).at(path)?;
        Ok(if is_container(&header) {
            Self::Compressed(Container::new(input, header)?)
        } else {
            Self::Original(Original::new(input, header))
        })
    }

    fn bytes(&self) -> u64 {
        match self {
            Self::Original(original) => original.header().data_bytes(),
            Self::Compressed(container) => container.header().data_bytes(),
        }
    }

    fn report(&self, options: &Options) -> Result<FileReport, Error> {
        match self {
            Self::Original(original) => {
                let writer = Writer {
                    source: original,
                    suffix: &suffix(&original.header().tensors),
                    is_archive: options.archive,
                    file: None,
                    path: original.path(),
                    progress: options.progress,
                };
                Ok(writer.run()?.0)
            }
            Self::Compressed(container) => {
                let scan = Scan::of(container, options.progress)?;
                container.check_crc(scan.crc)?;
                Ok(container.report(Some(scan.exponents)))
            }
        }
    }
}
