use std::{fs::File, os::unix::fs::FileExt, path::Path};

use super::{
    Error, Options, Report,
    checksum::Checksum,
    container::Container,
    error::At,
    files::Files,
    report::FileReport,
    source::Source,
    transform::{Transform, transform},
};

/// Restores what [`compress`](super::compress) made of a file or folder, byte for byte.
///
/// `output` appears when it is whole and its checksum is right, not before. Runs on the current
/// rayon pool; memory is bounded however large the files are.
///
/// # Errors
/// [`Error`] names the file, and the tensor and offset where there is one. Nothing is left under
/// the name of the output then.
pub fn decompress(
    input: impl AsRef<Path>,
    output: impl AsRef<Path>,
    options: &Options,
) -> Result<Report, Error> {
    transform::<Decompress>(input.as_ref(), output.as_ref(), options)
}

struct Decompress(Container);

impl Transform for Decompress {
    fn open(path: &Path) -> Result<Self, Error> {
        Container::open(path).map(Self)
    }

    fn files(root: &Path) -> Result<Files, Error> {
        Files::restored(root)
    }

    fn bytes(&self) -> u64 {
        self.0.header().data_bytes()
    }

    fn write(&self, file: &File, path: &Path, options: &Options) -> Result<FileReport, Error> {
        let Self(container) = self;
        file.set_len(container.header().file_bytes()).at(path)?;
        let header = container.header_bytes();
        file.write_all_at(&header, 0).at(path)?;
        let checksum = Checksum::default();
        checksum.add(0, &header);
        container.for_each_piece(&|piece| {
            checksum.add_piece(&piece);
            file.write_all_at(piece.bytes, piece.offset).at(path)?;
            options.progress.step(piece.bytes.len() as u64).at(path)
        })?;
        container.check_crc(checksum.finish())?;
        Ok(container.report(None))
    }
}
