use std::{collections::HashMap, ops::Range, path::Path};

use rayon::prelude::*;
use zipserv_gpu::layout::{TILE_COLS, TILE_ROWS, tile_grid};

use super::{
    Error, ErrorKind,
    error::At,
    header::{Header, LENGTH_BYTES, Tensor},
    input::Input,
    names::{CRC_KEY, HEADER_KEY, SUFFIX_KEY, VERSION, VERSION_KEY},
    report::{FileReport, Storage, TensorReport},
    source::{PIECE_BYTES, Piece, Source},
};
use crate::{CompressedMatrix, Histogram, MatrixHeader, codec::decode_panel};

/// Matrices are checked and then decoded in groups of about so many stored bytes, so that a
/// group is still in memory when it is read for the second time.
const GROUP_BYTES: u64 = 256 << 20;
/// A strip whose rows take more than this in all is decoded in panels of columns.
const STRIP_BYTES: usize = 4 * PIECE_BYTES;
/// Bytes of a restored tile.
pub(crate) const TILE_ORIGINAL_BYTES: usize = 2 * TILE_ROWS * TILE_COLS;

/// A file that zipserv has written.
pub(crate) struct Container {
    input: Input,
    stored: Header,
    original_json: String,
    original: Header,
    crc: u32,
    /// Where the tensors of the original header are.
    places: Vec<Place>,
}

/// Where a tensor is in the compressed file.
struct Place {
    /// Index in the stored header.
    index: usize,
    /// The header of a compressed matrix; nothing for a tensor stored as it was.
    matrix: Option<MatrixHeader>,
}

/// Whether a header is that of a compressed file.
pub(crate) fn is_container(header: &Header) -> bool {
    header.metadata.contains_key(VERSION_KEY)
}

impl Container {
    /// Opens a compressed file and checks its header, and those of its matrices.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let input = Input::open(path)?;
        let header = Header::of_file(&input).at(path)?;
        Self::new(input, header)
    }

    /// `stored` is the header of `input`.
    pub fn new(input: Input, mut stored: Header) -> Result<Self, Error> {
        let path = input.path().to_path_buf();
        let Some(version) = stored.metadata.remove(VERSION_KEY) else {
            return Err(Error::new(path, ErrorKind::NotCompressed));
        };
        if version != VERSION {
            return Err(Error::new(path, ErrorKind::Version(version)));
        }
        let mut take = |key| stored.metadata.remove(key).ok_or(ErrorKind::Metadata(key));
        let suffix = take(SUFFIX_KEY).at(&path)?;
        let original_json = take(HEADER_KEY).at(&path)?;
        let crc = take(CRC_KEY).at(&path)?;
        let crc = u32::from_str_radix(&crc, 16)
            .map_err(|_| ErrorKind::Metadata(CRC_KEY))
            .at(&path)?;
        let original = Header::of_json(&original_json)
            .map_err(|e| ErrorKind::OriginalHeader(Box::new(e)))
            .at(&path)?;
        let places = places(&input, &stored, &original, &suffix).at(&path)?;
        Ok(Self {
            input,
            stored,
            original_json,
            original,
            crc,
            places,
        })
    }

    /// Compares the checksum of the restored file with that of the original.
    pub fn check_crc(&self, found: u32) -> Result<(), Error> {
        let expected = self.crc;
        if expected != found {
            let kind = ErrorKind::Checksum { expected, found };
            return Err(Error::new(self.input.path(), kind));
        }
        Ok(())
    }

    /// What is in the file; `exponents` are those of its tensors where they were counted.
    pub fn report(&self, exponents: Option<Vec<Option<Box<Histogram>>>>) -> FileReport {
        let mut exponents = exponents.into_iter().flatten();
        let tensors = self.original.tensors.iter().enumerate();
        let tensors = tensors.map(|(index, tensor)| {
            let (stored_bytes, is_matrix) = self.storage(index);
            TensorReport {
                name: tensor.name.clone(),
                dtype: tensor.dtype.clone(),
                shape: tensor.shape.clone(),
                original_bytes: tensor.bytes(),
                stored_bytes,
                storage: match is_matrix {
                    true => Storage::Compressed,
                    false if tensor.dtype != "BF16" => Storage::Dtype,
                    false if tensor.shape.len() < 2 => Storage::Shape,
                    false => Storage::Incompressible,
                },
                exponents: exponents.next().flatten(),
            }
        });
        FileReport {
            path: self.input.path().into(),
            original_bytes: self.original.file_bytes(),
            stored_bytes: self.stored.file_bytes(),
            tensors: tensors.collect(),
        }
    }

    /// Stored bytes of a tensor, and whether they are a compressed matrix.
    pub fn storage(&self, tensor: usize) -> (u64, bool) {
        let place = &self.places[tensor];
        (
            self.stored.tensors[place.index].bytes(),
            place.matrix.is_some(),
        )
    }

    /// The name under which a tensor is stored.
    pub fn stored_name(&self, tensor: usize) -> &str {
        &self.stored.tensors[self.places[tensor].index].name
    }

    /// The bytes of a tensor as they are stored.
    pub fn stored_slice(&self, tensor: usize) -> &[u8] {
        let stored = &self.stored.tensors[self.places[tensor].index];
        self.stored.slice(&self.input, stored)
    }

    /// The header of the compressed matrix of a tensor; nothing for a tensor stored as it was.
    pub fn matrix_header(&self, tensor: usize) -> Option<&MatrixHeader> {
        self.places[tensor].matrix.as_ref()
    }

    /// The compressed matrix of a tensor, checked in full; nothing for a tensor stored as it was.
    pub fn matrix(&self, tensor: usize) -> Result<Option<CompressedMatrix<'_>>, Error> {
        let place = &self.places[tensor];
        if place.matrix.is_none() {
            return Ok(None);
        }
        let matrix = CompressedMatrix::from_bytes(self.stored_slice(tensor));
        let header = matrix.as_ref().map(|m| *m.header()).map_err(Clone::clone);
        let start = self
            .stored
            .file_range(&self.stored.tensors[place.index])
            .start;
        check_shape(&self.original.tensors[tensor], start, header).at(self.path())?;
        Ok(matrix.ok())
    }

    /// Runs of tensors of about [`GROUP_BYTES`] in all, at least one each.
    fn groups(&self) -> impl Iterator<Item = Range<usize>> {
        let mut start = 0;
        std::iter::from_fn(move || {
            let mut end = start;
            let mut bytes = 0;
            while end < self.places.len() && (end == start || bytes < GROUP_BYTES) {
                bytes += self.storage(end).0;
                end += 1;
            }
            let group = start..end;
            start = end;
            (!group.is_empty()).then_some(group)
        })
    }
}

/// Compares what the matrix stored at `offset` says of itself with the tensor that it is.
fn check_shape(
    tensor: &Tensor,
    offset: u64,
    found: Result<MatrixHeader, crate::Error>,
) -> Result<MatrixHeader, ErrorKind> {
    match found {
        Ok(header) if tensor.matrix_shape() == Some((header.rows(), header.cols())) => Ok(header),
        Ok(header) => Err(ErrorKind::MatrixShape {
            tensor: tensor.name.clone(),
            shape: tensor.shape.clone(),
            rows: header.rows(),
            cols: header.cols(),
        }),
        Err(source) => Err(ErrorKind::Tensor {
            tensor: tensor.name.clone(),
            offset,
            source,
        }),
    }
}

/// Finds each original tensor among the stored ones: under its own name, or with the suffix.
///
/// A few bytes can claim a matrix of any size. That is found out here, before an output of that size
/// is made; the matrices themselves are checked when they are decoded.
fn places(
    file: &[u8],
    stored: &Header,
    original: &Header,
    suffix: &str,
) -> Result<Vec<Place>, ErrorKind> {
    let mut by_name: HashMap<&str, usize> = stored
        .tensors
        .iter()
        .enumerate()
        .map(|(index, tensor)| (tensor.name.as_str(), index))
        .collect();
    let places = original.tensors.iter().map(|tensor| {
        let mismatch = || ErrorKind::TensorMismatch(tensor.name.clone());
        if let Some(index) = by_name.remove(tensor.name.as_str()) {
            let Tensor { dtype, shape, .. } = &stored.tensors[index];
            let same = (dtype, shape) == (&tensor.dtype, &tensor.shape)
                && stored.tensors[index].bytes() == tensor.bytes();
            let place = Place {
                index,
                matrix: None,
            };
            return same.then_some(place).ok_or_else(mismatch);
        }
        let index = by_name
            .remove(format!("{}{suffix}", tensor.name).as_str())
            .ok_or_else(|| ErrorKind::MissingTensor(tensor.name.clone()))?;
        let blob = &stored.tensors[index];
        if tensor.matrix_shape().is_none() || blob.dtype != "U8" {
            return Err(mismatch());
        }
        let header = MatrixHeader::of(stored.slice(file, blob));
        let header = check_shape(tensor, stored.file_range(blob).start, header)?;
        Ok(Place {
            index,
            matrix: Some(header),
        })
    });
    let places = places.collect::<Result<_, _>>()?;
    match by_name.into_keys().min() {
        Some(name) => Err(ErrorKind::UnexpectedTensor(name.into())),
        None => Ok(places),
    }
}

/// Part of a tensor that one thread restores.
enum Job<'a> {
    Copy(Piece<'a>),
    Decode {
        tensor: usize,
        start: u64,
        matrix: &'a CompressedMatrix<'a>,
        strips: Range<usize>,
        /// All of them, or some of a single strip.
        tile_cols: Range<usize>,
    },
}

impl Job<'_> {
    fn run(
        &self,
        buffer: &mut Vec<u8>,
        each: &(dyn Fn(Piece) -> Result<(), Error> + Sync),
    ) -> Result<(), Error> {
        let (tensor, start, matrix, strips, tile_cols) = match self {
            Job::Copy(piece) => return each(*piece),
            Job::Decode {
                tensor,
                start,
                matrix,
                strips,
                tile_cols,
            } => (*tensor, *start, *matrix, strips.clone(), tile_cols.clone()),
        };
        let first_row = strips.start * TILE_ROWS;
        let rows = (strips.end * TILE_ROWS).min(matrix.rows()) - first_row;
        let first_col = tile_cols.start * TILE_COLS;
        let cols = (tile_cols.end * TILE_COLS).min(matrix.cols()) - first_col;
        buffer.resize(2 * rows * cols, 0);
        for (strip, panel) in strips.zip(buffer.chunks_mut(2 * TILE_ROWS * cols)) {
            decode_panel(matrix, strip, tile_cols.clone(), panel);
        }
        // Whole rows follow each other in the file, parts of rows do not.
        let run = if cols == matrix.cols() { rows } else { 1 } * 2 * cols;
        for (index, bytes) in buffer.chunks(run).enumerate() {
            let at = 2 * ((first_row + index) * matrix.cols() + first_col);
            each(Piece {
                tensor,
                offset: start + at as u64,
                bytes,
            })?;
        }
        Ok(())
    }
}

fn copy_jobs(tensor: usize, start: u64, bytes: &[u8]) -> impl Iterator<Item = Job<'_>> {
    let pieces = bytes.chunks(PIECE_BYTES).enumerate();
    pieces.map(move |(index, bytes)| {
        Job::Copy(Piece {
            tensor,
            offset: start + (index * PIECE_BYTES) as u64,
            bytes,
        })
    })
}

fn decode_jobs<'a>(
    tensor: usize,
    start: u64,
    matrix: &'a CompressedMatrix<'a>,
) -> impl Iterator<Item = Job<'a>> {
    let (tile_rows, tile_cols) = tile_grid(matrix.rows(), matrix.cols());
    let strip_bytes = tile_cols * TILE_ORIGINAL_BYTES;
    let (strips, panel) = if strip_bytes > STRIP_BYTES {
        (1, PIECE_BYTES / TILE_ORIGINAL_BYTES)
    } else {
        ((PIECE_BYTES / strip_bytes.max(1)).max(1), tile_cols.max(1))
    };
    (0..tile_rows).step_by(strips).flat_map(move |strip| {
        (0..tile_cols).step_by(panel).map(move |col| Job::Decode {
            tensor,
            start,
            matrix,
            strips: strip..(strip + strips).min(tile_rows),
            tile_cols: col..(col + panel).min(tile_cols),
        })
    })
}

impl Source for Container {
    fn path(&self) -> &Path {
        self.input.path()
    }

    fn header(&self) -> &Header {
        &self.original
    }

    fn header_bytes(&self) -> Vec<u8> {
        let json = self.original_json.as_bytes();
        let length = (json.len() as u64).to_le_bytes();
        let mut bytes = Vec::with_capacity(LENGTH_BYTES + json.len());
        bytes.extend_from_slice(&length);
        bytes.extend_from_slice(json);
        bytes
    }

    fn for_each_piece(
        &self,
        each: &(dyn Fn(Piece) -> Result<(), Error> + Sync),
    ) -> Result<(), Error> {
        for group in self.groups() {
            let matrices = group
                .clone()
                .into_par_iter()
                .map(|tensor| self.matrix(tensor))
                .collect::<Result<Vec<_>, _>>()?;
            let mut jobs = Vec::new();
            for (tensor, matrix) in group.zip(&matrices) {
                let start = self
                    .original
                    .file_range(&self.original.tensors[tensor])
                    .start;
                match matrix {
                    Some(matrix) => jobs.extend(decode_jobs(tensor, start, matrix)),
                    None => jobs.extend(copy_jobs(tensor, start, self.stored_slice(tensor))),
                }
            }
            jobs.par_iter()
                .try_for_each_init(Vec::new, |buffer, job| job.run(buffer, each))?;
        }
        Ok(())
    }
}
