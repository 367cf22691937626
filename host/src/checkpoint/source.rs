use std::{ops::Range, path::Path};

use rayon::prelude::*;

use super::{
    Error,
    header::{Header, header_bytes},
    input::Input,
};
use crate::codec::Part;

/// Bytes that a thread works on at a time: small beside all memory, large beside the cost of a
/// system call.
pub(crate) const PIECE_BYTES: usize = 128 << 10;

/// Some bytes of a tensor of an original file.
#[derive(Clone, Copy)]
pub(crate) struct Piece<'a> {
    /// Index of the tensor.
    pub tensor: usize,
    /// Where the bytes lie in the original file.
    pub offset: u64,
    pub bytes: &'a [u8],
    /// The CRC-32 of the bytes, if it is known.
    pub crc: Option<u32>,
}

/// All bytes of a tensor of an original file, of which parts are wanted.
pub(crate) enum Bytes<'a> {
    /// In the file.
    File(&'a Input, Range<u64>),
    /// Restored.
    Memory(Vec<u8>),
}

impl Bytes<'_> {
    pub fn len(&self) -> usize {
        match self {
            // A file may be longer than addresses reach, but matrices and planes are checked for that.
            Self::File(_, range) => (range.end - range.start) as usize,
            Self::Memory(bytes) => bytes.len(),
        }
    }

    /// Fills a slice with those from an offset on.
    pub fn read(&self, offset: usize, to: &mut [u8]) -> Result<(), Error> {
        match self {
            Self::File(input, range) => input.read_at(range.start + offset as u64, to),
            Self::Memory(bytes) => {
                to.copy_from_slice(&bytes[offset..][..to.len()]);
                Ok(())
            }
        }
    }

    /// Those in a range, in `buffer` if they have to be read.
    pub fn get<'b>(
        &'b self,
        range: Range<usize>,
        buffer: &'b mut Vec<u8>,
    ) -> Result<&'b [u8], Error> {
        if let Self::Memory(bytes) = self {
            return Ok(&bytes[range]);
        }
        buffer.resize(range.len(), 0);
        self.read(range.start, buffer)?;
        Ok(buffer)
    }

    /// Those of a part of the matrix that they are, which has so many columns.
    pub fn part<'b>(
        &'b self,
        part: &Part,
        cols: usize,
        buffer: &'b mut Vec<u8>,
    ) -> Result<&'b [u8], Error> {
        let mut runs = part.runs(cols).peekable();
        let first = runs.next().unwrap_or_default();
        if runs.peek().is_none() {
            return self.get(first, buffer);
        }
        buffer.resize(part.original_bytes(), 0);
        for (run, to) in part.runs(cols).zip(buffer.chunks_exact_mut(first.len())) {
            self.read(run.start, to)?;
        }
        Ok(buffer)
    }
}

/// Something that has the bytes of an original file: the file itself, or its compressed form.
pub(crate) trait Source: Sync {
    /// The file that is read.
    fn path(&self) -> &Path;

    /// The original header.
    fn header(&self) -> &Header;

    /// Length and header of the original file, as they stand there.
    fn header_bytes(&self) -> Vec<u8>;

    /// An error when the file has been written to since it was opened.
    fn check_unchanged(&self) -> Result<(), Error>;

    /// All bytes of a tensor.
    fn tensor(&self, index: usize) -> Result<Bytes<'_>, Error>;

    /// Hands out all bytes of all tensors, from many threads, in any order; pieces of BF16
    /// tensors hold whole weights. Memory is bounded by the number of threads.
    fn for_each_piece(
        &self,
        each: &(dyn Fn(Piece) -> Result<(), Error> + Sync),
    ) -> Result<(), Error>;
}

/// Cuts a range of bytes into pieces of [`PIECE_BYTES`], the last of which may be shorter.
pub(crate) fn pieces(range: Range<u64>) -> impl Iterator<Item = Range<u64>> {
    let Range { start, end } = range;
    let starts = (start..end).step_by(PIECE_BYTES);
    starts.map(move |start| start..(start + PIECE_BYTES as u64).min(end))
}

/// A safetensors file that is not compressed.
pub(crate) struct Original {
    input: Input,
    header: Header,
    json: String,
}

impl Original {
    /// `header` is that of `input`, and `json` its text.
    pub fn new(input: Input, header: Header, json: String) -> Self {
        Self {
            input,
            header,
            json,
        }
    }
}

impl Source for Original {
    fn path(&self) -> &Path {
        self.input.path()
    }

    fn header(&self) -> &Header {
        &self.header
    }

    fn header_bytes(&self) -> Vec<u8> {
        header_bytes(&self.json)
    }

    fn check_unchanged(&self) -> Result<(), Error> {
        self.input.check_unchanged()
    }

    fn tensor(&self, index: usize) -> Result<Bytes<'_>, Error> {
        let range = self.header.file_range(&self.header.tensors[index]);
        Ok(Bytes::File(&self.input, range))
    }

    fn for_each_piece(
        &self,
        each: &(dyn Fn(Piece) -> Result<(), Error> + Sync),
    ) -> Result<(), Error> {
        let tensors = self.header.tensors.par_iter().enumerate();
        tensors.try_for_each(|(tensor, info)| {
            let Range { start, end } = self.header.file_range(info);
            let pieces = (end - start).div_ceil(PIECE_BYTES as u64);
            let pieces = (0..pieces).into_par_iter();
            pieces.try_for_each_init(Vec::new, |buffer, piece| {
                let offset = start + piece * PIECE_BYTES as u64;
                buffer.resize((end - offset).min(PIECE_BYTES as u64) as usize, 0);
                self.input.read_at(offset, buffer)?;
                let bytes = buffer;
                each(Piece {
                    tensor,
                    offset,
                    bytes,
                    crc: None,
                })
            })
        })?;
        self.check_unchanged()
    }
}
