use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use super::{
    Error, ErrorKind, Options, checksum::Checksum, container::Container, folder::Listing,
    input::Input, options::advance, source::Source, stand_ins::Restored,
};

/// What a comparison found.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Verdict {
    /// Bytes of the original files.
    pub bytes: u64,
    /// The first difference, if there is one.
    pub difference: Option<Difference>,
}

/// A place at which restored and original differ.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The file in which they differ: relative to the folder, or the original as it was given.
    pub file: PathBuf,
    /// What differs.
    pub kind: DifferenceKind,
}

/// What differs.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DifferenceKind {
    /// The header, first at this offset in the file.
    Header {
        /// Bytes from the start of the file.
        offset: u64,
    },
    /// A tensor.
    Tensor {
        /// Its name.
        name: String,
        /// The first element that differs, counted row after row.
        index: u64,
        /// The same as one index for each dimension.
        coordinates: Vec<u64>,
    },
    /// The bytes of a file that is copied, first at this offset.
    Bytes {
        /// Bytes from the start of the file.
        offset: u64,
    },
    /// The length; the bytes are equal as far as both go.
    Length {
        /// Bytes of the restored file.
        restored: u64,
        /// Bytes of the original file.
        original: u64,
    },
    /// Only the compressed checkpoint has the file.
    NotInOriginal,
    /// Only the original checkpoint has the file.
    NotInCompressed,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}: ", self.file.display())?;
        match &self.kind {
            DifferenceKind::Header { offset } => write!(f, "header differs at offset {offset}"),
            DifferenceKind::Tensor {
                name,
                index,
                coordinates,
            } => write!(
                f,
                "tensor `{name}` differs at index {index}, {coordinates:?}"
            ),
            DifferenceKind::Bytes { offset } => write!(f, "differs at offset {offset}"),
            DifferenceKind::Length { restored, original } => {
                write!(
                    f,
                    "restored to {restored} bytes, but the original has {original}"
                )
            }
            DifferenceKind::NotInOriginal => f.write_str("missing in the original"),
            DifferenceKind::NotInCompressed => f.write_str("missing in the compressed checkpoint"),
        }
    }
}

/// Compares a compressed file or folder with its original, without writing anything.
///
/// Every byte counts: tensors, headers, and the other files of a folder.
///
/// # Errors
/// [`Error`] when one of them cannot be read, or the compressed one is damaged. A difference is
/// not an error.
pub fn verify(
    compressed: impl AsRef<Path>,
    original: impl AsRef<Path>,
    options: &Options,
) -> Result<Verdict, Error> {
    let (compressed, original) = (compressed.as_ref(), original.as_ref());
    match (compressed.is_dir(), original.is_dir()) {
        (true, true) => verify_folder(compressed, original, options),
        (false, false) => {
            let pair = Pair::open(compressed, original)?;
            options.progress.start(pair.container.header().data_bytes());
            Ok(Verdict {
                bytes: pair.original.len() as u64,
                difference: pair.difference(original, options)?,
            })
        }
        _ => Err(Error::new(original, ErrorKind::FolderAndFile)),
    }
}

fn verify_folder(compressed: &Path, original: &Path, options: &Options) -> Result<Verdict, Error> {
    let ours = Restored::new(&Listing::of(compressed)?);
    let theirs = Listing::of(original)?;
    let names = |files: &BTreeMap<PathBuf, PathBuf>| files.keys().cloned().collect::<Vec<_>>();
    let mut verdict = Verdict {
        bytes: 0,
        difference: one_sided(&names(&ours.checkpoints), &theirs.checkpoints)
            .or_else(|| one_sided(&names(&ours.others), &theirs.others))
            .or_else(|| one_sided(&ours.folders, &theirs.folders)),
    };
    if verdict.difference.is_some() {
        return Ok(verdict);
    }
    let pairs = theirs
        .checkpoints
        .iter()
        .map(|path| {
            Pair::open(
                &compressed.join(&ours.checkpoints[path]),
                &original.join(path),
            )
        })
        .collect::<Result<Vec<_>, _>>()?;
    let bytes = |pair: &Pair| pair.container.header().data_bytes();
    options.progress.start(pairs.iter().map(bytes).sum());
    for (path, pair) in theirs.checkpoints.iter().zip(&pairs) {
        verdict.bytes += pair.original.len() as u64;
        verdict.difference = pair.difference(path, options)?;
        if verdict.difference.is_some() {
            return Ok(verdict);
        }
    }
    for path in &theirs.others {
        let ours = Input::open(&compressed.join(&ours.others[path]))?;
        let theirs = Input::open(&original.join(path))?;
        verdict.bytes += theirs.len() as u64;
        let kind = match first_difference(&ours, &theirs) {
            Some(offset) => DifferenceKind::Bytes { offset },
            None if ours.len() != theirs.len() => DifferenceKind::Length {
                restored: ours.len() as u64,
                original: theirs.len() as u64,
            },
            None => continue,
        };
        let file = path.clone();
        verdict.difference = Some(Difference { file, kind });
        break;
    }
    Ok(verdict)
}

/// The first path that is in one of two sorted lists only.
fn one_sided(ours: &[PathBuf], theirs: &[PathBuf]) -> Option<Difference> {
    let only = |here: &[PathBuf], there: &[PathBuf], kind: DifferenceKind| {
        let file = here.iter().find(|path| !there.contains(path))?.clone();
        Some(Difference { file, kind })
    };
    only(ours, theirs, DifferenceKind::NotInOriginal)
        .or_else(|| only(theirs, ours, DifferenceKind::NotInCompressed))
}

struct Pair {
    container: Container,
    original: Input,
}

impl Pair {
    fn open(compressed: &Path, original: &Path) -> Result<Self, Error> {
        Ok(Self {
            container: Container::open(compressed)?,
            original: Input::open(original)?,
        })
    }

    /// The first difference; `file` is the name for it.
    fn difference(&self, file: &Path, options: &Options) -> Result<Option<Difference>, Error> {
        let found = |kind| {
            let file = file.into();
            Ok(Some(Difference { file, kind }))
        };
        let header = self.container.header_bytes();
        if let Some(offset) = first_difference(&header, &self.original) {
            return found(DifferenceKind::Header { offset });
        }
        let first = AtomicU64::new(u64::MAX);
        let checksum = Checksum::default();
        checksum.add(0, &header);
        self.container.for_each_piece(&|piece| {
            advance(options.progress, piece.bytes.len() as u64, file)?;
            checksum.add(piece.offset, piece.bytes);
            let rest = usize::try_from(piece.offset)
                .ok()
                .and_then(|offset| self.original.get(offset..))
                .unwrap_or_default();
            if let Some(offset) = first_difference(piece.bytes, rest) {
                first.fetch_min(piece.offset + offset, Ordering::Relaxed);
            }
            Ok(())
        })?;
        let restored = self.container.header().file_bytes();
        match first.into_inner() {
            u64::MAX if restored == self.original.len() as u64 => {
                // What decompression would refuse must not pass here.
                self.container.check_crc(checksum.finish())?;
                Ok(None)
            }
            u64::MAX => found(DifferenceKind::Length {
                restored,
                original: self.original.len() as u64,
            }),
            offset => found(self.locate(offset)),
        }
    }

    /// The element at an offset behind the header.
    fn locate(&self, offset: u64) -> DifferenceKind {
        let header = self.container.header();
        let at = |tensor| header.file_range(tensor);
        let tensor = header
            .tensors
            .iter()
            .find(|tensor| at(tensor).contains(&offset))
            .expect("tensors cover the data");
        let bits = 8 * (offset - at(tensor).start);
        let index = bits / tensor.dtype_bits().unwrap_or(8);
        let mut rest = index;
        let mut coordinates: Vec<_> = tensor
            .shape
            .iter()
            .rev()
            .map(|&dim| {
                let coordinate = rest % dim.max(1);
                rest /= dim.max(1);
                coordinate
            })
            .collect();
        coordinates.reverse();
        DifferenceKind::Tensor {
            name: tensor.name.clone(),
            index,
            coordinates,
        }
    }
}

/// The first place at which two runs of bytes differ, as far as both go.
fn first_difference(a: &[u8], b: &[u8]) -> Option<u64> {
    let len = a.len().min(b.len());
    if a[..len] == b[..len] {
        return None;
    }
    let at = a.iter().zip(b).position(|(a, b)| a != b)?;
    Some(at as u64)
}
