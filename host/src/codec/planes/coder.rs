//! What a plane goes through: nothing, a repeated byte, or zstd.

use std::io;

use zstd::{
    bulk::{Compressor, Decompressor},
    zstd_safe::{CParameter, ParamSwitch, compress_bound},
};

/// A plane is its bytes.
pub const RAW: u8 = 0;
/// A plane is one byte, repeated.
pub const CONSTANT: u8 = 1;
/// A plane is a frame of zstd (RFC 8878) without a dictionary.
pub const ZSTD: u8 = 2;

/// How hard to look for matches before the entropy coder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effort {
    /// The plane is not to be coded.
    Raw,
    /// Hardly: planes of exponents are bytes that come alone, and matches by chance cost more than they save.
    Entropy,
    /// As zstd does at this level.
    Matches(i32),
}

/// The lowest level of zstd: the longest steps between two looks for a match.
const NO_MATCHES: i32 = -(1 << 17);

/// A coder with its memory, which is used again for many planes.
pub struct Encoder {
    zstd: Compressor<'static>,
    effort: Effort,
    buffer: Vec<u8>,
}

impl Default for Encoder {
    fn default() -> Self {
        Self {
            zstd: Compressor::new(1).expect("room for a context"),
            effort: Effort::Raw,
            buffer: Vec::new(),
        }
    }
}

impl Encoder {
    /// Appends a plane to `to` and gives the number of the coder, with which it takes no more bytes than it has.
    pub fn encode(&mut self, plane: &[u8], effort: Effort, to: &mut Vec<u8>) -> u8 {
        if let Some((first, rest)) = plane.split_first()
            && rest == &plane[..rest.len()]
        {
            to.push(*first);
            return CONSTANT;
        }
        if effort != Effort::Raw
            && let Ok(stored) = self.zstd(plane, effort)
            && stored.len() < plane.len()
        {
            to.extend_from_slice(stored);
            return ZSTD;
        }
        to.extend_from_slice(plane);
        RAW
    }

    fn zstd(&mut self, plane: &[u8], effort: Effort) -> io::Result<&[u8]> {
        if self.effort != effort {
            let (level, literals) = match effort {
                Effort::Matches(level) => (level, ParamSwitch::Auto),
                // Left to itself, zstd leaves literals as they are at such levels.
                _ => (NO_MATCHES, ParamSwitch::Enable),
            };
            self.zstd
                .set_parameter(CParameter::CompressionLevel(level))?;
            self.zstd
                .set_parameter(CParameter::LiteralCompressionMode(literals))?;
            self.effort = effort;
        }
        // Room for more than is wanted: with less, zstd looks at each write whether it still fits.
        let bound = compress_bound(plane.len());
        if self.buffer.len() < bound {
            self.buffer.resize(bound, 0);
        }
        let written = self.zstd.compress_to_buffer(plane, &mut self.buffer[..])?;
        Ok(&self.buffer[..written])
    }
}

/// A decoder with its memory, which is used again for many planes.
pub struct Decoder(Decompressor<'static>);

impl Default for Decoder {
    fn default() -> Self {
        Self(Decompressor::new().expect("room for a context"))
    }
}

impl Decoder {
    /// Restores a frame of zstd that has exactly as many bytes as `plane`.
    pub fn zstd(&mut self, stored: &[u8], plane: &mut [u8]) -> io::Result<()> {
        let found = self.0.decompress_to_buffer(stored, plane)?;
        match found == plane.len() {
            true => Ok(()),
            false => Err(io::Error::other("it has fewer bytes than the plane")),
        }
    }
}
