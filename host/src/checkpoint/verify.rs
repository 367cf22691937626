use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use super::{
    Error, ErrorKind, Options,
    checksum::Checksum,
    container::Container,
    error::At,
    files::Files,
    folder::Listing,
    input::Input,
    shown::shown,
    source::{Source, pieces},
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
    /// The bytes of another file, first at this offset.
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
        write!(f, "{}: ", shown(self.file.display()))?;
        match &self.kind {
            DifferenceKind::Header { offset } => write!(f, "header differs at offset {offset}"),
            DifferenceKind::Tensor {
                name,
                index,
                coordinates,
            } => write!(
                f,
                "tensor `{}` differs at index {index}, {coordinates:?}",
                shown(name)
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
                bytes: pair.original.len(),
                difference: pair.difference(original, options)?,
            })
        }
        _ => Err(Error::new(original, ErrorKind::FolderAndFile)),
    }
}

fn verify_folder(compressed: &Path, original: &Path, options: &Options) -> Result<Verdict, Error> {
    let (ours, theirs) = (Files::restored(compressed)?, Listing::of(original)?);
    let checkpoints = by_name(ours.checkpoints.iter().map(|file| (&file.to, &file.from)));
    let texts = by_name(ours.texts.iter().map(|text| (&text.to, &text.text)));
    let copies = by_name(ours.copies.iter().map(|file| (&file.to, &file.from)));
    let others: BTreeSet<_> = texts.keys().chain(copies.keys()).copied().collect();
    let mut verdict = Verdict {
        bytes: 0,
        difference: one_sided(&checkpoints.keys().copied().collect(), &theirs.checkpoints)
            .or_else(|| one_sided(&others, &theirs.others))
            .or_else(|| one_sided(&ours.folders.iter().collect(), &theirs.folders)),
    };
    if verdict.difference.is_some() {
        return Ok(verdict);
    }
    let pairs = theirs
        .checkpoints
        .iter()
        .map(|path| Pair::open(&compressed.join(checkpoints[path]), &original.join(path)))
        .collect::<Result<Vec<_>, _>>()?;
    let bytes = |pair: &Pair| pair.container.header().data_bytes();
    options.progress.start(pairs.iter().map(bytes).sum());
    for (path, pair) in theirs.checkpoints.iter().zip(&pairs) {
        verdict.bytes += pair.original.len();
        verdict.difference = pair.difference(path, options)?;
        if verdict.difference.is_some() {
            return Ok(verdict);
        }
    }
    for path in &theirs.others {
        let theirs = Input::open(&original.join(path))?;
        options.progress.step(0).at(theirs.path())?;
        verdict.bytes += theirs.len();
        let kind = match texts.get(path) {
            Some(text) => different(&Ours::Text(text), &theirs)?,
            None => {
                let ours = Input::open(&compressed.join(copies[path]))?;
                let found = different(&Ours::File(&ours), &theirs)?;
                ours.check_unchanged()?;
                found
            }
        };
        theirs.check_unchanged()?;
        if let Some(kind) = kind {
            let file = path.clone();
            verdict.difference = Some(Difference { file, kind });
            break;
        }
    }
    Ok(verdict)
}

/// What is in a compressed folder, by the names that it has in the original one.
fn by_name<'a, T>(files: impl Iterator<Item = (&'a PathBuf, T)>) -> BTreeMap<&'a PathBuf, T> {
    files.collect()
}

/// What a file is restored to that is no `.safetensors` file.
enum Ours<'a> {
    Text(&'a str),
    File(&'a Input),
}

impl Ours<'_> {
    fn len(&self) -> u64 {
        match self {
            Self::Text(text) => text.len() as u64,
            Self::File(file) => file.len(),
        }
    }

    fn read_at(&self, offset: u64, to: &mut [u8]) -> Result<(), Error> {
        match self {
            Self::Text(text) => to.copy_from_slice(&text.as_bytes()[offset as usize..][..to.len()]),
            Self::File(file) => file.read_at(offset, to)?,
        }
        Ok(())
    }
}

/// How the content of a file differs, if it does.
fn different(ours: &Ours, theirs: &Input) -> Result<Option<DifferenceKind>, Error> {
    let (restored, original) = (ours.len(), theirs.len());
    let mut buffer = Vec::new();
    for piece in pieces(0..restored.min(original)) {
        buffer.resize((piece.end - piece.start) as usize, 0);
        ours.read_at(piece.start, &mut buffer)?;
        if let Some(offset) = first_difference(&buffer, theirs, piece.start)? {
            return Ok(Some(DifferenceKind::Bytes { offset }));
        }
    }
    let length = DifferenceKind::Length { restored, original };
    Ok((restored != original).then_some(length))
}

/// The first path that is restored or in the original folder, but not both.
fn one_sided(ours: &BTreeSet<&PathBuf>, theirs: &[PathBuf]) -> Option<Difference> {
    let theirs = theirs.iter().collect();
    let only = |here: &BTreeSet<&PathBuf>, there: &BTreeSet<_>, kind| {
        let file = here.difference(there).next()?.to_path_buf();
        Some(Difference { file, kind })
    };
    only(ours, &theirs, DifferenceKind::NotInOriginal)
        .or_else(|| only(&theirs, ours, DifferenceKind::NotInCompressed))
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
        if let Some(offset) = first_difference(&header, &self.original, 0)? {
            return found(DifferenceKind::Header { offset });
        }
        let first = AtomicU64::new(u64::MAX);
        let checksum = Checksum::default();
        checksum.add(0, &header);
        self.container.for_each_piece(&|piece| {
            let bytes = piece.bytes.len() as u64;
            options.progress.step(bytes).at(self.container.path())?;
            checksum.add_piece(&piece);
            if let Some(offset) = first_difference(piece.bytes, &self.original, piece.offset)? {
                first.fetch_min(offset, Ordering::Relaxed);
            }
            Ok(())
        })?;
        self.original.check_unchanged()?;
        let restored = self.container.header().file_bytes();
        match first.into_inner() {
            u64::MAX if restored == self.original.len() => {
                // What decompression would refuse must not pass here.
                self.container.check_crc(checksum.finish())?;
                Ok(None)
            }
            u64::MAX => found(DifferenceKind::Length {
                restored,
                original: self.original.len(),
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

/// The first offset in a file at which it has not the bytes that would be there from `start` on, as far as both go.
fn first_difference(bytes: &[u8], file: &Input, start: u64) -> Result<Option<u64>, Error> {
    /// Small enough to stay in a core's cache beside the bytes.
    const BYTES: usize = 256 << 10;
    let len = file.len().saturating_sub(start).min(bytes.len() as u64);
    let bytes = &bytes[..len as usize];
    let mut buffer = vec![0; BYTES.min(bytes.len())];
    for (index, bytes) in bytes.chunks(BYTES).enumerate() {
        let theirs = &mut buffer[..bytes.len()];
        let offset = start + (index * BYTES) as u64;
        file.read_at(offset, theirs)?;
        if bytes != theirs {
            let equal = bytes.iter().zip(theirs).take_while(|(a, b)| a == b);
            return Ok(Some(offset + equal.count() as u64));
        }
    }
    Ok(None)
}
