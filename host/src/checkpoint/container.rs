use std::{borrow::Cow, collections::HashMap, ops::Range, path::Path};

use rayon::prelude::*;
use zipserv_gpu::layout::{TILE_COLS, TILE_ROWS, tile_grid};

use super::{
    Error, ErrorKind,
    error::At,
    header::{Header, LENGTH_BYTES, Tensor},
    input::Input,
    layout::unsuited,
    names::{CRC_KEY, HEADER_KEY, SUFFIX_KEY, VERSION, VERSION_KEY, VERSION_WITHOUT_PLANES},
    report::{FileReport, Storage, TensorReport},
    source::{PIECE_BYTES, Piece, Source},
};
use crate::{
    CompressedMatrix, Histogram, Matrix, MatrixHeader, Planes,
    codec::{
        decode_into, decode_panel,
        planes::{Table, Unpacker},
        zeroed,
    },
    encode,
};

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
    form: Form,
}

/// How a tensor is stored.
pub(crate) enum Form {
    /// As a compressed matrix with this header.
    Matrix(MatrixHeader),
    Planes,
    /// As it was.
    Raw,
}

/// What it takes to restore a tensor, as far as it can be checked before that.
enum Stored<'a> {
    Matrix(CompressedMatrix<'a>),
    Planes(Planes<'a>),
    Raw(&'a [u8]),
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
        if ![VERSION, VERSION_WITHOUT_PLANES].contains(&&*version) {
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
            let exponents = exponents.next().flatten();
            TensorReport {
                name: tensor.name.clone(),
                stored_name: self.stored_name(index).into(),
                dtype: tensor.dtype.clone(),
                shape: tensor.shape.clone(),
                original_bytes: tensor.bytes(),
                stored_bytes: self.stored(index).bytes(),
                storage: match self.form(index) {
                    Form::Matrix(_) => Storage::Matrix,
                    Form::Planes => Storage::Planes,
                    Form::Raw => Storage::Raw,
                },
                unsuited: unsuited(tensor, exponents.as_deref()),
                exponents,
            }
        });
        FileReport {
            path: self.input.path().into(),
            original_bytes: self.original.file_bytes(),
            stored_bytes: self.stored.file_bytes(),
            tensors: tensors.collect(),
        }
    }

    fn stored(&self, tensor: usize) -> &Tensor {
        &self.stored.tensors[self.places[tensor].index]
    }

    /// How a tensor is stored.
    pub fn form(&self, tensor: usize) -> &Form {
        &self.places[tensor].form
    }

    /// The bytes of a tensor as they are stored.
    pub fn stored_slice(&self, tensor: usize) -> &[u8] {
        self.stored.slice(&self.input, self.stored(tensor))
    }

    /// The name of a tensor in the compressed file.
    pub fn stored_name(&self, tensor: usize) -> &str {
        &self.stored(tensor).name
    }

    /// The compressed matrix of a tensor, checked in full, or made of its byte planes; nothing for other tensors.
    pub fn matrix(&self, tensor: usize) -> Result<Option<CompressedMatrix<'_>>, Error> {
        let planes = match self.checked(tensor)? {
            Stored::Matrix(matrix) => return Ok(Some(matrix)),
            Stored::Raw(_) => return Ok(None),
            Stored::Planes(planes) => planes,
        };
        let Some((rows, cols)) = self.original.tensors[tensor].matrix_shape() else {
            return Ok(None);
        };
        let bytes = planes.decode();
        let matrix = bytes.and_then(|bytes| {
            let matrix = Matrix::from_le_bytes(rows, cols, &bytes)?;
            encode(&matrix)
        });
        matrix
            .map(Some)
            .map_err(|error| self.damaged(tensor, error))
    }

    fn checked(&self, tensor: usize) -> Result<Stored<'_>, Error> {
        let (original, bytes) = (&self.original.tensors[tensor], self.stored_slice(tensor));
        let start = self.stored.file_range(self.stored(tensor)).start;
        match self.form(tensor) {
            Form::Raw => Ok(Stored::Raw(bytes)),
            Form::Matrix(_) => {
                let matrix = CompressedMatrix::from_bytes(bytes);
                let header = matrix.as_ref().map(|m| *m.header()).map_err(Clone::clone);
                check_shape(original, start, header).at(self.path())?;
                matrix.map(Stored::Matrix)
            }
            Form::Planes => {
                let planes = Planes::from_bytes(bytes);
                let found = planes.as_ref().map(Planes::original_bytes);
                check_bytes(original, start, found.map_err(Clone::clone)).at(self.path())?;
                planes.map(Stored::Planes)
            }
        }
        .map_err(|error| self.damaged(tensor, error))
    }

    /// What is wrong with how a tensor is stored.
    fn damaged(&self, tensor: usize, source: crate::Error) -> Error {
        let offset = self.stored.file_range(self.stored(tensor)).start;
        let tensor = self.original.tensors[tensor].name.clone();
        let kind = ErrorKind::Tensor {
            tensor,
            offset,
            source,
        };
        Error::new(self.path(), kind)
    }

    /// Runs of tensors of about [`GROUP_BYTES`] in all, at least one each.
    fn groups(&self) -> impl Iterator<Item = Range<usize>> {
        let mut start = 0;
        std::iter::from_fn(move || {
            let mut end = start;
            let mut bytes = 0;
            while end < self.places.len() && (end == start || bytes < GROUP_BYTES) {
                bytes += self.stored(end).bytes();
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
            offset,
        }),
        Err(source) => Err(ErrorKind::Tensor {
            tensor: tensor.name.clone(),
            offset,
            source,
        }),
    }
}

/// Compares the number of bytes that planes stored at `offset` give with those of the tensor that they are.
fn check_bytes(
    tensor: &Tensor,
    offset: u64,
    found: Result<usize, crate::Error>,
) -> Result<(), ErrorKind> {
    match found {
        Ok(found) if found as u64 == tensor.bytes() => Ok(()),
        Ok(found) => Err(ErrorKind::PlanesSize {
            tensor: tensor.name.clone(),
            expected: tensor.bytes(),
            found: found as u64,
            offset,
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
/// A few bytes can claim a tensor of any size. That is found out here, before an output of that size
/// is made; matrices and planes themselves are checked when they are decoded.
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
                form: Form::Raw,
            };
            return same.then_some(place).ok_or_else(mismatch);
        }
        let index = by_name
            .remove(format!("{}{suffix}", tensor.name).as_str())
            .ok_or_else(|| ErrorKind::MissingTensor(tensor.name.clone()))?;
        let blob = &stored.tensors[index];
        if blob.dtype != "U8" {
            return Err(mismatch());
        }
        let (bytes, offset) = (stored.slice(file, blob), stored.file_range(blob).start);
        let form = if Planes::is_at(bytes) {
            let found = Table::parse(bytes).map(|table| table.original_bytes());
            check_bytes(tensor, offset, found)?;
            Form::Planes
        } else if tensor.matrix_shape().is_some() {
            Form::Matrix(check_shape(tensor, offset, MatrixHeader::of(bytes))?)
        } else {
            return Err(mismatch());
        };
        Ok(Place { index, form })
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
    Unpack {
        tensor: usize,
        start: u64,
        planes: &'a Planes<'a>,
        chunk: usize,
    },
}

impl Job<'_> {
    fn run(
        &self,
        container: &Container,
        (buffer, unpacker): &mut (Vec<u8>, Unpacker),
        each: &(dyn Fn(Piece) -> Result<(), Error> + Sync),
    ) -> Result<(), Error> {
        let (tensor, start, matrix, strips, tile_cols) = match self {
            Job::Copy(piece) => return each(*piece),
            Job::Unpack {
                tensor,
                start,
                planes,
                chunk,
            } => {
                let range = planes.table().chunk_range(*chunk);
                buffer.resize(range.len(), 0);
                let crc = planes.decode_chunk(*chunk, buffer, unpacker);
                let crc = crc.map_err(|error| container.damaged(*tensor, error))?;
                return each(Piece {
                    tensor: *tensor,
                    offset: start + range.start as u64,
                    bytes: buffer,
                    crc: Some(crc),
                });
            }
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
                crc: None,
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
            crc: None,
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

    fn tensor(&self, index: usize) -> Result<Cow<'_, [u8]>, Error> {
        let damaged = |error| self.damaged(index, error);
        match self.checked(index)? {
            Stored::Raw(bytes) => Ok(bytes.into()),
            Stored::Planes(planes) => planes.decode().map(Cow::Owned).map_err(damaged),
            Stored::Matrix(matrix) => {
                let mut bytes = zeroed(matrix.original_bytes());
                decode_into(&matrix, &mut bytes).map_err(damaged)?;
                Ok(bytes.into())
            }
        }
    }

    fn for_each_piece(
        &self,
        each: &(dyn Fn(Piece) -> Result<(), Error> + Sync),
    ) -> Result<(), Error> {
        for group in self.groups() {
            let checked = group
                .clone()
                .into_par_iter()
                .map(|tensor| self.checked(tensor))
                .collect::<Result<Vec<_>, _>>()?;
            let mut jobs = Vec::new();
            for (tensor, stored) in group.zip(&checked) {
                let start = self
                    .original
                    .file_range(&self.original.tensors[tensor])
                    .start;
                match stored {
                    Stored::Matrix(matrix) => jobs.extend(decode_jobs(tensor, start, matrix)),
                    Stored::Planes(planes) => {
                        let chunks = 0..planes.table().chunks();
                        jobs.extend(chunks.map(|chunk| Job::Unpack {
                            tensor,
                            start,
                            planes,
                            chunk,
                        }));
                    }
                    Stored::Raw(bytes) => jobs.extend(copy_jobs(tensor, start, bytes)),
                }
            }
            jobs.par_iter()
                .try_for_each_init(Default::default, |memory, job| job.run(self, memory, each))?;
        }
        Ok(())
    }
}
