use std::path::Path;

use super::{
    Error, Options, Report,
    container::{Container, is_container},
    folder::Listing,
    header::Header,
    input::Input,
    layout::suffix,
    report::{FileReport, TensorReport},
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
    let files = files.collect::<Result<Vec<_>, _>>()?;
    let tensors = opened.iter().zip(&files).flat_map(|(opened, file)| {
        file.tensors.iter().map(|tensor| {
            let (name, bytes) = opened.in_index(tensor);
            ((&*file.path, name), bytes)
        })
    });
    let tensors = tensors.collect();
    let mistakes = listing.indexes.iter();
    let mistakes = mistakes.flat_map(|(path, index)| index.mistakes(path, &tensors));
    Ok(Report {
        warnings: mistakes.collect(),
        other_files: listing.others.len(),
        files,
    })
}

enum Opened {
    Original(Original),
    Compressed(Container),
}

impl Opened {
    fn open(path: &Path) -> Result<Self, Error> {
        let input = Input::open(path)?;
        let (header, json) = Header::of_file(&input)?;
        Ok(if is_container(&header) {
            Self::Compressed(Container::new(input, header)?)
        } else {
            Self::Original(Original::new(input, header, json))
        })
    }

    fn bytes(&self) -> u64 {
        match self {
            Self::Original(original) => original.header().data_bytes(),
            Self::Compressed(container) => container.header().data_bytes(),
        }
    }

    /// The name by which an index has a tensor, and its bytes in the file.
    fn in_index<'a>(&self, tensor: &'a TensorReport) -> (&'a str, u64) {
        match self {
            Self::Original(_) => (&tensor.name, tensor.original_bytes),
            Self::Compressed(_) => (&tensor.stored_name, tensor.stored_bytes),
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
