use std::{borrow::Cow, path::Path};

use rayon::prelude::*;

use super::{Error, header::Header, input::Input};

/// Bytes that a thread works on at a time: small beside all memory, large beside the cost of a
/// system call.
pub(crate) const PIECE_BYTES: usize = 2 << 20;

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

/// Something that has the bytes of an original file: the file itself, or its compressed form.
pub(crate) trait Source: Sync {
    /// The file that is read.
    fn path(&self) -> &Path;

    /// The original header.
    fn header(&self) -> &Header;

    /// Length and header of the original file, as they stand there.
    fn header_bytes(&self) -> Vec<u8>;

    /// All bytes of a tensor, restored in memory where they are compressed.
    fn tensor(&self, index: usize) -> Result<Cow<'_, [u8]>, Error>;

    /// Hands out all bytes of all tensors, from many threads, in any order; pieces of BF16
    /// tensors hold whole weights. Memory is bounded by the number of threads.
    fn for_each_piece(
        &self,
        each: &(dyn Fn(Piece) -> Result<(), Error> + Sync),
    ) -> Result<(), Error>;
}

/// A safetensors file that is not compressed.
pub(crate) struct Original {
    input: Input,
    header: Header,
}

impl Original {
    /// `header` is that of `input`.
    pub fn new(input: Input, header: Header) -> Self {
        Self { input, header }
    }

    pub fn input(&self) -> &Input {
        &self.input
    }

    fn slice(&self, index: usize) -> &[u8] {
        self.header.slice(&self.input, &self.header.tensors[index])
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
        self.input[..self.header.data_at as usize].to_vec()
    }

    fn tensor(&self, index: usize) -> Result<Cow<'_, [u8]>, Error> {
        Ok(self.slice(index).into())
    }

    fn for_each_piece(
        &self,
        each: &(dyn Fn(Piece) -> Result<(), Error> + Sync),
    ) -> Result<(), Error> {
        let tensors = self.header.tensors.par_iter().enumerate();
        tensors.try_for_each(|(index, tensor)| {
            let start = self.header.file_range(tensor).start;
            self.slice(index)
                .par_chunks(PIECE_BYTES)
                .enumerate()
                .try_for_each(|(piece, bytes)| {
                    each(Piece {
                        tensor: index,
                        offset: start + (piece * PIECE_BYTES) as u64,
                        bytes,
                        crc: None,
                    })
                })
        })
    }
}
