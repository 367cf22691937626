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
pub(crate) const PIECE_BYTES: usize = 512 << 10;

/// Some bytes of a tensor of an original file.
#[derive(Clone, Copy)]
pub(crate) struct Piece<'a> {
    /// Index of the tensor.
    pub tensor: usize,
    /// Where the bytes lie in the original file.
    pub offset: u64,
    pub bytes: &'a [u8],
}

/// Something that has the bytes of an original file: the file itself, or its compressed form.
pub(crate) trait Source: Sync {
    /// The file that is read.
    fn path(&self) -> &Path;

    /// The original header.
    fn header(&self) -> &Header;

    /// Length and header of the original file, as they stand there.
    fn header_bytes(&self) -> Vec<u8>;

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

    pub fn input(&self) -> &Input {
        &self.input
    }

    /// The text of the header.
    pub fn json(&self) -> &str {
        &self.json
    }

    /// Reads a part of the matrix that a tensor is, which has so many columns.
    pub fn read_part(
        &self,
        tensor: usize,
        cols: usize,
        part: &Part,
        to: &mut Vec<u8>,
    ) -> Result<(), Error> {
        let range = self.header.file_range(&self.header.tensors[tensor]);
        to.resize(part.original_bytes(), 0);
        let mut rest = &mut to[..];
        for run in part.runs(cols) {
            let (here, after) = rest.split_at_mut(run.len());
            self.input.read_at(range.start + run.start as u64, here)?;
            rest = after;
        }
        Ok(())
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
                })
            })
        })?;
        self.input.check_unchanged()
    }
}
