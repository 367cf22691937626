use std::{collections::HashMap, ops::Range, path::Path};

use super::{
    Error, ErrorKind,
    checksum::Checksum,
    error::At,
    header::{Header, Tensor, header_bytes},
    input::Input,
    layout::{strips_of, unsuited},
    names::{CRC_KEY, HEADER_KEY, SUFFIX_KEY, VERSION_KEY, VERSIONS},
    report::{FileReport, Stack, Storage, TensorReport},
    source::{Bytes, Piece, Source, pieces},
};
use crate::{
    CompressedMatrix, ExpertStack, HEADER_BYTES, Histogram, Matrix, MatrixHeader, Planes,
    codec::{
        Part, PartError, Parts, Strips, decode_strip, decode_strips,
        planes::{Table, Unpacker},
        zeroed,
    },
    encode,
};
use rayon::prelude::*;

/// Matrices are read in groups of about so many stored bytes, so that few patch offsets are in memory at a time.
const GROUP_BYTES: u64 = 256 << 20;

/// A file that zipserv has written, or one that is not compressed.
pub(crate) struct Container {
    input: Input,
    stored: Header,
    original_json: String,
    original: Header,
    /// Of the original file; nothing if this is it.
    crc: Option<u32>,
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
    /// As a compressed matrix with this header and these strips.
    Matrix(MatrixHeader, Strips),
    /// As byte planes with this table.
    Planes(Table),
    /// As it was.
    Raw,
}

/// All that is stored of a tensor, in memory, as far as it can be checked before it is restored.
enum Stored {
    Matrix(CompressedMatrix<'static>, Strips),
    Planes(Planes<'static>),
    Raw(Vec<u8>),
}

impl Stored {
    /// All bytes of the tensor.
    fn decoded(self) -> Result<Vec<u8>, crate::Error> {
        match self {
            Self::Raw(bytes) => Ok(bytes),
            Self::Planes(planes) => planes.decode(),
            Self::Matrix(matrix, strips) => {
                let rows = strips.experts() * strips.expert_rows();
                let mut bytes = zeroed(2 * rows * matrix.cols());
                decode_strips(&matrix, strips, &mut bytes);
                Ok(bytes)
            }
        }
    }
}

/// Whether a header is that of a compressed file.
pub(crate) fn is_container(header: &Header) -> bool {
    header.metadata.contains_key(VERSION_KEY)
}

impl Container {
    /// Opens a compressed file and checks its header, and those of its matrices.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let input = Input::open(path)?;
        let (header, _) = Header::of_file(&input)?;
        Self::new(input, header)
    }

    /// Opens a file that may be compressed or not: then all its tensors are stored as they were.
    pub fn open_any(path: &Path) -> Result<Self, Error> {
        let input = Input::open(path)?;
        let (header, json) = Header::of_file(&input)?;
        if is_container(&header) {
            return Self::new(input, header);
        }
        let as_it_was = |index| Place {
            index,
            form: Form::Raw,
        };
        let places = (0..header.tensors.len()).map(as_it_was).collect();
        Ok(Self {
            input,
            stored: header.clone(),
            original_json: json,
            original: header,
            crc: None,
            places,
        })
    }

    /// `stored` is the header of `input`.
    pub fn new(input: Input, mut stored: Header) -> Result<Self, Error> {
        let path = input.path().to_path_buf();
        let Some(version) = stored.metadata.remove(VERSION_KEY) else {
            return Err(Error::new(path, ErrorKind::NotCompressed));
        };
        if !VERSIONS.contains(&&*version) {
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
        let places = places(&input, &stored, &original, &suffix)?;
        Ok(Self {
            input,
            stored,
            original_json,
            original,
            crc: Some(crc),
            places,
        })
    }

    /// Compares the checksum of the restored file with that of the original.
    pub fn check_crc(&self, found: u32) -> Result<(), Error> {
        if let Some(expected) = self.crc
            && expected != found
        {
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
                stored_bytes: self.stored_bytes(index),
                storage: match self.form(index) {
                    Form::Matrix(..) => Storage::Matrix,
                    Form::Planes(_) => Storage::Planes,
                    Form::Raw => Storage::Raw,
                },
                stack: match self.form(index) {
                    Form::Matrix(_, strips) => Stack::of(tensor, *strips),
                    _ => None,
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

    fn stored_tensor(&self, tensor: usize) -> &Tensor {
        &self.stored.tensors[self.places[tensor].index]
    }

    /// Where a tensor is in the compressed file.
    fn stored_range(&self, tensor: usize) -> Range<u64> {
        self.stored.file_range(self.stored_tensor(tensor))
    }

    /// Bytes of a tensor in the compressed file.
    pub fn stored_bytes(&self, tensor: usize) -> u64 {
        self.stored_tensor(tensor).bytes()
    }

    /// The bytes of a tensor as they are stored.
    pub fn stored(&self, tensor: usize) -> Result<Vec<u8>, Error> {
        let Range { start, end } = self.stored_range(tensor);
        let bytes = self.input.read(start..end)?;
        self.input.check_unchanged()?;
        Ok(bytes)
    }

    /// How a tensor is stored.
    pub fn form(&self, tensor: usize) -> &Form {
        &self.places[tensor].form
    }

    /// The name of a tensor in the compressed file.
    pub fn stored_name(&self, tensor: usize) -> &str {
        &self.stored_tensor(tensor).name
    }

    /// The compressed matrix of a tensor, checked in full, or made of its byte planes or its aligned stack; nothing for
    /// other tensors.
    pub fn matrix(&self, tensor: usize) -> Result<Option<CompressedMatrix<'static>>, Error> {
        let Some((rows, cols)) = self.original.tensors[tensor].matrix_shape() else {
            return Ok(None);
        };
        let bytes = match self.checked(tensor)? {
            Stored::Raw(_) => return Ok(None),
            Stored::Matrix(matrix, _) if matrix.rows() == rows => return Ok(Some(matrix)),
            stored => stored.decoded(),
        };
        let matrix = bytes.and_then(|bytes| encode(&Matrix::from_le_bytes(rows, cols, &bytes)?));
        matrix
            .map(Some)
            .map_err(|error| self.damaged(tensor, error))
    }

    /// The stack of experts that a BF16 tensor of three or more dimensions is, checked in full; encoded if it is not
    /// stored as one that is aligned. Nothing for other tensors.
    pub fn experts(&self, tensor: usize) -> Result<Option<ExpertStack<'static>>, Error> {
        let original = &self.original.tensors[tensor];
        let (Some((experts, rows)), Some((all, cols))) =
            (original.stack_shape(), original.matrix_shape())
        else {
            return Ok(None);
        };
        let stack = match self.checked(tensor)? {
            Stored::Matrix(matrix, _)
                if Strips::aligned(experts, rows)
                    .is_some_and(|strips| strips.matrix_rows() == matrix.rows()) =>
            {
                ExpertStack::new(matrix, experts, rows)
            }
            stored => stored.decoded().and_then(|bytes| {
                let matrix = Matrix::from_le_bytes(all, cols, &bytes)?;
                ExpertStack::encode_stacked(experts, &matrix)
            }),
        };
        stack.map(Some).map_err(|error| self.damaged(tensor, error))
    }

    /// All bytes of a tensor.
    pub fn decoded(&self, tensor: usize) -> Result<Vec<u8>, Error> {
        let bytes = self.checked(tensor)?.decoded();
        bytes.map_err(|error| self.damaged(tensor, error))
    }

    fn checked(&self, tensor: usize) -> Result<Stored, Error> {
        let (original, bytes) = (&self.original.tensors[tensor], self.stored(tensor)?);
        let start = self.stored_range(tensor).start;
        match self.form(tensor) {
            Form::Raw => Ok(Stored::Raw(bytes)),
            Form::Matrix(..) => {
                let matrix = CompressedMatrix::from_bytes(bytes);
                let header = matrix.as_ref().map(|m| *m.header()).map_err(Clone::clone);
                let (_, strips) = check_shape(original, start, header).at(self.path())?;
                matrix.map(|matrix| Stored::Matrix(matrix, strips))
            }
            Form::Planes(_) => {
                let planes = Planes::from_bytes(bytes);
                let found = planes.as_ref().map(Planes::original_bytes);
                check_bytes(original, start, found.map_err(Clone::clone)).at(self.path())?;
                planes.map(Stored::Planes)
            }
        }
        .map_err(|error| self.damaged(tensor, error))
    }

    /// What is wrong with a matrix of which a part is: the checks of the whole, in their order, tell.
    fn damage(&self, tensor: usize) -> Error {
        let found = self.checked(tensor).err();
        found.unwrap_or_else(|| Error::new(self.path(), ErrorKind::Changed))
    }

    /// What is wrong with how a tensor is stored.
    pub fn damaged(&self, tensor: usize, source: crate::Error) -> Error {
        let offset = self.stored_range(tensor).start;
        let tensor = self.original.tensors[tensor].name.clone();
        let kind = ErrorKind::Tensor {
            tensor,
            offset,
            source,
        };
        Error::new(self.path(), kind)
    }

    /// Restores a chunk of byte planes, and hands it out.
    fn unpack(
        &self,
        tensor: usize,
        table: &Table,
        chunk: usize,
        buffers: &mut Buffers,
        each: &(dyn Fn(Piece) -> Result<(), Error> + Sync),
    ) -> Result<(), Error> {
        let Buffers {
            stored,
            restored,
            unpacker,
        } = buffers;
        let (from, to) = (table.stored_range(chunk), table.chunk_range(chunk));
        stored.resize(from.len(), 0);
        restored.resize(to.len(), 0);
        let stored_at = self.stored_range(tensor).start;
        self.input.read_at(stored_at + from.start as u64, stored)?;
        let crc = table.decode_chunk(chunk, stored, restored, unpacker);
        let crc = crc.map_err(|error| self.damaged(tensor, error))?;
        let start = self.original.file_range(&self.original.tensors[tensor]);
        each(Piece {
            tensor,
            offset: start.start + to.start as u64,
            bytes: restored,
            crc: Some(crc),
        })
    }

    /// Runs of tensors of about [`GROUP_BYTES`] in all, at least one each.
    fn groups(&self) -> impl Iterator<Item = Range<usize>> {
        let mut start = 0;
        std::iter::from_fn(move || {
            let mut end = start;
            let mut bytes = 0;
            while end < self.places.len() && (end == start || bytes < GROUP_BYTES) {
                bytes += self.stored_bytes(end);
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
) -> Result<(MatrixHeader, Strips), ErrorKind> {
    let header = found.map_err(|source| ErrorKind::Tensor {
        tensor: tensor.name.clone(),
        offset,
        source,
    })?;
    let has_cols = tensor.shape.last() == Some(&(header.cols() as u64));
    match strips_of(tensor, header.rows()).filter(|_| has_cols) {
        Some(strips) => Ok((header, strips)),
        None => Err(ErrorKind::MatrixShape {
            tensor: tensor.name.clone(),
            shape: tensor.shape.clone(),
            rows: header.rows(),
            cols: header.cols(),
            offset,
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
    file: &Input,
    stored: &Header,
    original: &Header,
    suffix: &str,
) -> Result<Vec<Place>, Error> {
    let path = file.path();
    let mut by_name: HashMap<&str, usize> = stored
        .tensors
        .iter()
        .enumerate()
        .map(|(index, tensor)| (tensor.name.as_str(), index))
        .collect();
    let places = original.tensors.iter().map(|tensor| {
        let mismatch = || Error::new(path, ErrorKind::TensorMismatch(tensor.name.clone()));
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
            .ok_or_else(|| ErrorKind::MissingTensor(tensor.name.clone()))
            .at(path)?;
        let blob = &stored.tensors[index];
        if blob.dtype != "U8" {
            return Err(mismatch());
        }
        let Range { start, end } = stored.file_range(blob);
        let len = end - start;
        let mut first = [0; HEADER_BYTES];
        let first = &mut first[..len.min(HEADER_BYTES as u64) as usize];
        file.read_at(start, first)?;
        let form = if Planes::is_at(first) {
            let table = Table::read(len, |offset, to| file.read_at(start + offset, to))?;
            let found = table.as_ref().map(Table::original_bytes);
            check_bytes(tensor, start, found.map_err(Clone::clone)).at(path)?;
            Form::Planes(table.expect("it has been checked"))
        } else if tensor.matrix_shape().is_some() {
            let header = match first.first_chunk() {
                Some(header) => MatrixHeader::parse(header, len as usize),
                None => Err(crate::Error::Truncated {
                    expected: HEADER_BYTES as u64,
                    found: len,
                }),
            };
            let (header, strips) = check_shape(tensor, start, header).at(path)?;
            Form::Matrix(header, strips)
        } else {
            return Err(mismatch());
        };
        Ok(Place { index, form })
    });
    let places = places.collect::<Result<_, _>>()?;
    match by_name.into_keys().min() {
        Some(name) => Err(Error::new(path, ErrorKind::UnexpectedTensor(name.into()))),
        None => Ok(places),
    }
}

/// A compressed matrix that is restored part by part.
struct Restored {
    tensor: usize,
    header: MatrixHeader,
    strips: Strips,
    parts: Parts,
    /// Of all behind its header.
    checksum: Checksum,
}

impl Restored {
    /// Reads what all parts need.
    fn open(
        file: &Container,
        tensor: usize,
        header: &MatrixHeader,
        strips: Strips,
    ) -> Result<Self, Error> {
        let start = file.stored_range(tensor).start;
        let at = |range: Range<usize>| start + range.start as u64..start + range.end as u64;
        let offsets = file.input.read(at(header.patch_offsets()))?;
        let checksum = Checksum::default();
        checksum.add(header.patch_offsets().start as u64, &offsets);
        // The last patches are followed by padding, which is no part's.
        let patches = header.patches();
        let end = patches.start + 2 * header.outliers();
        checksum.add(end as u64, &file.input.read(at(end..patches.end))?);
        Ok(Self {
            tensor,
            header: *header,
            strips,
            parts: Parts::new(*header, strips, offsets).ok_or_else(|| file.damage(tensor))?,
            checksum,
        })
    }

    /// Restores a part, and hands out its pieces.
    fn part(
        &self,
        file: &Container,
        part: &Part,
        buffers: &mut Buffers,
        each: &(dyn Fn(Piece) -> Result<(), Error> + Sync),
    ) -> Result<(), Error> {
        let Buffers {
            stored, restored, ..
        } = buffers;
        let stored_at = file.stored_range(self.tensor).start;
        let matrix = self.parts.read(part, stored, |offset, bytes| {
            file.input.read_at(stored_at + offset as u64, bytes)?;
            self.checksum.add(offset as u64, bytes);
            Ok(())
        });
        let matrix = matrix.map_err(|error| match error {
            PartError::Read(error) => error,
            PartError::Invalid => file.damage(self.tensor),
        })?;
        let tensor = self.tensor;
        let start = file.original.file_range(&file.original.tensors[tensor]);
        let start = start.start;
        restored.resize(part.original_bytes(), 0);
        let mut rest = &mut restored[..];
        for (index, strip) in part.strips.clone().enumerate() {
            let rows = self.strips.rows(&(strip..strip + 1)).len();
            let (rows, after) = rest.split_at_mut(2 * rows * matrix.cols());
            decode_strip(&matrix, index, rows);
            rest = after;
        }
        let mut rest = &restored[..];
        for run in part.runs(self.header.cols()) {
            let (bytes, after) = rest.split_at(run.len());
            let offset = start + run.start as u64;
            each(Piece {
                tensor,
                offset,
                bytes,
                crc: None,
            })?;
            rest = after;
        }
        Ok(())
    }

    /// When all parts are done: an error if the checksum of the matrix is not that in its header.
    fn finish(self, file: &Container) -> Result<(), Error> {
        match self.header.payload_crc() == self.checksum.finish() {
            true => Ok(()),
            false => Err(file.damage(self.tensor)),
        }
    }
}

/// Part of a tensor that one thread restores.
enum Job<'a> {
    /// So many bytes from an offset in the compressed file, which belong at another in the original.
    Copy {
        tensor: usize,
        from: Range<u64>,
        to: u64,
    },
    Decode(&'a Restored, Part),
    Unpack {
        tensor: usize,
        table: &'a Table,
        chunk: usize,
    },
}

/// What a thread keeps from job to job.
#[derive(Default)]
struct Buffers {
    stored: Vec<u8>,
    restored: Vec<u8>,
    unpacker: Unpacker,
}

impl Source for Container {
    fn path(&self) -> &Path {
        self.input.path()
    }

    fn header(&self) -> &Header {
        &self.original
    }

    fn header_bytes(&self) -> Vec<u8> {
        header_bytes(&self.original_json)
    }

    fn check_unchanged(&self) -> Result<(), Error> {
        self.input.check_unchanged()
    }

    fn tensor(&self, index: usize) -> Result<Bytes<'_>, Error> {
        match self.form(index) {
            Form::Raw => Ok(Bytes::File(&self.input, self.stored_range(index))),
            _ => self.decoded(index).map(Bytes::Memory),
        }
    }

    fn for_each_piece(
        &self,
        each: &(dyn Fn(Piece) -> Result<(), Error> + Sync),
    ) -> Result<(), Error> {
        for group in self.groups() {
            let matrices = group.clone().into_par_iter().filter_map(|tensor| {
                let Form::Matrix(header, strips) = self.form(tensor) else {
                    return None;
                };
                Some(Restored::open(self, tensor, header, *strips))
            });
            let matrices = matrices.collect::<Result<Vec<_>, _>>()?;
            let mut jobs = Vec::new();
            for matrix in &matrices {
                let parts = Part::all(matrix.strips, matrix.header.cols());
                jobs.extend(parts.map(|part| Job::Decode(matrix, part)));
            }
            for tensor in group {
                match self.form(tensor) {
                    Form::Matrix(..) => (),
                    Form::Planes(table) => {
                        let chunks = 0..table.chunks();
                        jobs.extend(chunks.map(|chunk| Job::Unpack {
                            tensor,
                            table,
                            chunk,
                        }));
                    }
                    Form::Raw => {
                        let stored = self.stored_range(tensor);
                        let original = self.original.file_range(&self.original.tensors[tensor]);
                        let pieces = pieces(stored.clone());
                        jobs.extend(pieces.map(|from| Job::Copy {
                            tensor,
                            to: original.start + (from.start - stored.start),
                            from,
                        }));
                    }
                }
            }
            jobs.par_iter()
                .try_for_each_init(Buffers::default, |buffers, job| match job {
                    Job::Decode(matrix, part) => matrix.part(self, part, buffers, each),
                    Job::Unpack {
                        tensor,
                        table,
                        chunk,
                    } => self.unpack(*tensor, table, *chunk, buffers, each),
                    Job::Copy { tensor, from, to } => {
                        let Buffers { stored, .. } = buffers;
                        stored.resize((from.end - from.start) as usize, 0);
                        self.input.read_at(from.start, stored)?;
                        each(Piece {
                            tensor: *tensor,
                            offset: *to,
                            bytes: stored,
                            crc: None,
                        })
                    }
                })?;
            drop(jobs);
            matrices
                .into_iter()
                .try_for_each(|matrix| matrix.finish(self))?;
        }
        self.input.check_unchanged()
    }
}
