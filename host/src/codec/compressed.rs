use std::borrow::Cow;

use rayon::prelude::*;
use zipserv_gpu::layout::{
    MAX_BASE, Patch, TILE_BYTES, TILE_COLS, TILE_ROWS, is_base, patch_row_col, tile_grid,
};

use crate::Error;

/// Version of the format that this build writes and reads.
pub const VERSION: u16 = 1;
/// The one layout there is: 32 x 64 tiles in fragment order.
pub const LAYOUT_ID: u16 = 3;
/// Bytes of the header in front of the dense part.
pub const HEADER_BYTES: usize = 128;
const MAGIC: [u8; 8] = *b"ZIPSERV\0";
/// Sections start at, and the whole ends at, multiples of this: the unit of bulk copies.
const ALIGN: usize = 16;

/// The fields in front of a compressed matrix, see `docs/FORMAT.md`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub rows: usize,
    pub cols: usize,
    pub base: u8,
    pub patches: usize,
    pub payload_crc: u32,
}

/// Where the three sections lie, in bytes from the start of the compressed matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sections {
    pub tiles: usize,
    pub offsets_at: usize,
    pub patches_at: usize,
    pub end: usize,
}

impl Header {
    /// `None` when the sections would not fit in the address space.
    pub fn sections(&self) -> Option<Sections> {
        let (tile_rows, tile_cols) = tile_grid(self.rows, self.cols);
        let tiles = tile_rows.checked_mul(tile_cols)?;
        let offsets_at = tiles.checked_mul(TILE_BYTES)?.checked_add(HEADER_BYTES)?;
        let offsets = tiles.checked_add(1)?.checked_mul(4)?;
        let patches_at = offsets_at
            .checked_add(offsets)?
            .checked_next_multiple_of(ALIGN)?;
        let end = patches_at
            .checked_add(self.patches.checked_mul(2)?)?
            .checked_next_multiple_of(ALIGN)?;
        Some(Sections {
            tiles,
            offsets_at,
            patches_at,
            end,
        })
    }

    pub fn to_bytes(self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..10].copy_from_slice(&VERSION.to_le_bytes());
        bytes[10..12].copy_from_slice(&LAYOUT_ID.to_le_bytes());
        bytes[12..16].copy_from_slice(&u32::from(self.base).to_le_bytes());
        bytes[16..24].copy_from_slice(&(self.rows as u64).to_le_bytes());
        bytes[24..32].copy_from_slice(&(self.cols as u64).to_le_bytes());
        bytes[32..40].copy_from_slice(&(self.patches as u64).to_le_bytes());
        bytes[40..44].copy_from_slice(&self.payload_crc.to_le_bytes());
        let crc = crc32fast::hash(&bytes[..44]);
        bytes[44..48].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Reads and checks the header of a compressed matrix of `bytes.len()` bytes in all.
    pub fn parse(bytes: &[u8]) -> Result<(Self, Sections), Error> {
        let found = bytes.len() as u64;
        let Some(bytes) = bytes.first_chunk::<HEADER_BYTES>() else {
            let expected = HEADER_BYTES as u64;
            return Err(Error::Truncated { expected, found });
        };
        let u16_at = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        if bytes[..8] != MAGIC {
            return Err(Error::Magic);
        }
        if u16_at(8) != VERSION {
            return Err(Error::Version(u16_at(8)));
        }
        if u16_at(10) != LAYOUT_ID {
            return Err(Error::Layout(u16_at(10)));
        }
        let stored = u32_at(bytes, 44);
        let actual = crc32fast::hash(&bytes[..44]);
        if stored != actual {
            return Err(Error::Checksum {
                part: "header",
                expected: stored,
                found: actual,
            });
        }
        let field = |field, offset, max: u64| {
            let value = match offset {
                12 => u64::from(u32_at(bytes, 12)),
                _ => u64::from_le_bytes(bytes[offset..offset + 8].try_into().expect("eight bytes")),
            };
            if value > max || usize::try_from(value).is_err() {
                return Err(Error::HeaderField {
                    field,
                    offset,
                    value,
                });
            }
            Ok(value as usize)
        };
        let limit = u64::from(u32::MAX);
        let header = Self {
            base: field("base", 12, u64::from(MAX_BASE))? as u8,
            rows: field("rows", 16, limit)?,
            cols: field("cols", 24, limit)?,
            patches: field("patches", 32, limit)?,
            payload_crc: u32_at(bytes, 40),
        };
        if !is_base(header.base) {
            return Err(Error::HeaderField {
                field: "base",
                offset: 12,
                value: header.base.into(),
            });
        }
        if let Some(at) = bytes[48..].iter().position(|&b| b != 0) {
            return Err(Error::HeaderField {
                field: "reserved",
                offset: 48 + at,
                value: u64::from(bytes[48 + at]),
            });
        }
        let too_large = Error::MatrixTooLarge {
            rows: header.rows,
            cols: header.cols,
        };
        let sections = header.sections().ok_or(too_large.clone())?;
        if sections.tiles as u64 >= limit {
            return Err(too_large);
        }
        let expected = sections.end as u64;
        if found < expected {
            return Err(Error::Truncated { expected, found });
        }
        if found > expected {
            return Err(Error::TrailingBytes { expected, found });
        }
        Ok((header, sections))
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

/// The CRC-32 of consecutive pieces, from the CRC-32 and the length of each.
pub(crate) fn combine_crcs(pieces: impl IntoIterator<Item = (u32, u64)>) -> u32 {
    let mut all = crc32fast::Hasher::new();
    for (crc, len) in pieces {
        all.combine(&crc32fast::Hasher::new_with_initial_len(crc, len));
    }
    all.finalize()
}

/// The CRC-32 of `bytes`, computed in parallel.
fn crc(bytes: &[u8]) -> u32 {
    const PIECE: usize = 1 << 20;
    let pieces: Vec<_> = bytes
        .par_chunks(PIECE)
        .map(|piece| (crc32fast::hash(piece), piece.len() as u64))
        .collect();
    combine_crcs(pieces)
}

/// A matrix of BF16 weights in the compressed form of `docs/FORMAT.md`.
///
/// It is one run of bytes: a header, the dense part (11 bits a weight, each tile at a fixed
/// address), one patch offset for each tile, and the patches of the outliers. What exists as a
/// value has been checked in full: decoding it cannot fail.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CompressedMatrix<'a> {
    header: Header,
    sections: Sections,
    bytes: Cow<'a, [u8]>,
}

impl<'a> CompressedMatrix<'a> {
    /// Takes the bytes of a compressed matrix, owned or borrowed, after checking checksums and
    /// every offset and position in them.
    ///
    /// # Errors
    /// [`Error`] names what is wrong and where.
    pub fn from_bytes(bytes: impl Into<Cow<'a, [u8]>>) -> Result<Self, Error> {
        let bytes = bytes.into();
        let (header, sections) = Header::parse(&bytes)?;
        let found = crc(&bytes[HEADER_BYTES..]);
        if found != header.payload_crc {
            return Err(Error::Checksum {
                part: "payload",
                expected: header.payload_crc,
                found,
            });
        }
        let this = Self {
            header,
            sections,
            bytes,
        };
        this.check_patches()?;
        Ok(this)
    }

    /// Bytes that the codec has just made.
    pub(crate) fn new(header: Header, sections: Sections, bytes: Vec<u8>) -> Self {
        debug_assert_eq!(Header::parse(&bytes), Ok((header, sections)));
        Self {
            header,
            sections,
            bytes: bytes.into(),
        }
    }

    fn check_patches(&self) -> Result<(), Error> {
        let offset_error = |tile| Error::PatchOffset {
            tile,
            offset: (self.sections.offsets_at + 4 * tile) as u64,
        };
        if self.patch_offset(0) != 0 {
            return Err(offset_error(0));
        }
        if self.patch_offset(self.sections.tiles) != self.header.patches {
            return Err(offset_error(self.sections.tiles));
        }
        let (_, tile_cols) = tile_grid(self.header.rows, self.header.cols);
        (0..self.sections.tiles)
            .into_par_iter()
            .try_for_each(|tile| {
                let (start, end) = (self.patch_offset(tile), self.patch_offset(tile + 1));
                if start > end || end > self.header.patches {
                    return Err(offset_error(tile + 1));
                }
                let rows = self.header.rows - tile / tile_cols * TILE_ROWS;
                let cols = self.header.cols - tile % tile_cols * TILE_COLS;
                let mut next = 0;
                for index in start..end {
                    let position = self.patch(index).position();
                    let (row, col) = patch_row_col(position);
                    if position < next || row >= rows || col >= cols {
                        return Err(Error::PatchPosition { tile, index });
                    }
                    next = position + 1;
                }
                Ok(())
            })
    }

    /// Output features.
    pub fn rows(&self) -> usize {
        self.header.rows
    }

    /// Input features.
    pub fn cols(&self) -> usize {
        self.header.cols
    }

    /// The lowest exponent of the window, biased.
    pub fn base(&self) -> u8 {
        self.header.base
    }

    /// Weights whose exponent lies outside the window.
    pub fn outliers(&self) -> usize {
        self.header.patches
    }

    /// Bytes of the matrix before compression.
    pub fn original_bytes(&self) -> usize {
        2 * self.rows() * self.cols()
    }

    /// Stored bits for each weight, headers, padding and patches included.
    pub fn bits_per_weight(&self) -> f64 {
        8.0 * self.bytes.len() as f64 / (self.rows() * self.cols()) as f64
    }

    /// The whole compressed matrix, as it is stored.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The dense part: [`TILE_BYTES`] for each tile, tiles in row-major order.
    pub fn dense(&self) -> &[u8] {
        &self.bytes[HEADER_BYTES..self.sections.offsets_at]
    }

    /// The offsets of the tiles' first patches, as little-endian `u32`, one more than there are
    /// tiles, then zeros to a multiple of 16 bytes.
    pub fn patch_offsets(&self) -> &[u8] {
        &self.bytes[self.sections.offsets_at..self.sections.patches_at]
    }

    /// The patches as little-endian `u16`, tile after tile, then zeros to a multiple of 16 bytes.
    pub fn patches(&self) -> &[u8] {
        &self.bytes[self.sections.patches_at..]
    }

    /// Index of the first patch of `tile`.
    pub(crate) fn patch_offset(&self, tile: usize) -> usize {
        u32_at(&self.bytes, self.sections.offsets_at + 4 * tile) as usize
    }

    pub(crate) fn patch(&self, index: usize) -> Patch {
        let at = self.sections.patches_at + 2 * index;
        Patch(u16::from_le_bytes([self.bytes[at], self.bytes[at + 1]]))
    }

    /// Detaches the matrix from the bytes it borrows.
    pub fn into_owned(self) -> CompressedMatrix<'static> {
        CompressedMatrix {
            header: self.header,
            sections: self.sections,
            bytes: Cow::Owned(self.bytes.into_owned()),
        }
    }
}
