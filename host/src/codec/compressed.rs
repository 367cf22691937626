use std::{borrow::Cow, ops::Range};

use rayon::prelude::*;
use zipserv_gpu::layout::{
    BASE_AT, MAX_BASE, Patch, TILE_BYTES, TILE_COLS, TILE_ROWS, is_base, patch_row_col, tile_grid,
};
pub use zipserv_gpu::layout::{HEADER_BYTES, LAYOUT_ID, VERSION};

use crate::Error;

pub(super) const MAGIC: [u8; 8] = *b"ZIPSERV\0";
/// Sections start at, and the whole ends at, multiples of this: the unit of bulk copies.
const ALIGN: usize = 16;

/// The most patches: what steps through them in 32 bits, as kernels do, does not wrap with any stride
/// up to 2^31.
const MAX_PATCHES: usize = (1 << 31) - 1;

/// What the header of a compressed matrix says, and where the sections lie that follow from it.
///
/// ```text
/// 0..HEADER_BYTES   the header itself
/// dense()           TILE_BYTES for each tile, tiles in row-major order
/// patch_offsets()   a little-endian u32 for each tile and one more, then padding
/// patches()         a little-endian u16 for each outlier, then padding, to stored_bytes()
/// ```
///
/// All ranges count bytes from the start of the matrix, and start at multiples of 16.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MatrixHeader {
    rows: usize,
    cols: usize,
    base: u8,
    patches: usize,
    payload_crc: u32,
    tiles: usize,
    offsets_at: usize,
    patches_at: usize,
    end: usize,
}

impl MatrixHeader {
    /// Lays out a matrix whose payload is not known yet.
    ///
    /// # Errors
    /// [`Error::MatrixTooLarge`] when the format cannot count its parts, or the address space cannot
    /// hold them.
    pub(crate) fn new(rows: usize, cols: usize, base: u8, patches: u64) -> Result<Self, Error> {
        let too_large = Error::MatrixTooLarge { rows, cols };
        let patches = match usize::try_from(patches) {
            Ok(patches) if patches <= MAX_PATCHES => patches,
            _ => return Err(too_large),
        };
        let tiles = tiles(rows, cols)?;
        let lay_out = || {
            let offsets_at = tiles.checked_mul(TILE_BYTES)?.checked_add(HEADER_BYTES)?;
            let offsets = tiles.checked_add(1)?.checked_mul(4)?;
            let patches_at = offsets_at
                .checked_add(offsets)?
                .checked_next_multiple_of(ALIGN)?;
            let end = patches_at
                .checked_add(patches.checked_mul(2)?)?
                .checked_next_multiple_of(ALIGN)?;
            // The weights themselves must fit, too.
            rows.checked_mul(cols)?.checked_mul(2)?;
            Some(Self {
                rows,
                cols,
                base,
                patches,
                payload_crc: 0,
                tiles,
                offsets_at,
                patches_at,
                end,
            })
        };
        lay_out().ok_or(too_large)
    }

    pub(crate) fn with_payload_crc(self, payload_crc: u32) -> Self {
        Self {
            payload_crc,
            ..self
        }
    }

    pub(crate) fn to_bytes(self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..10].copy_from_slice(&VERSION.to_le_bytes());
        bytes[10..12].copy_from_slice(&LAYOUT_ID.to_le_bytes());
        bytes[BASE_AT..BASE_AT + 4].copy_from_slice(&u32::from(self.base).to_le_bytes());
        bytes[16..24].copy_from_slice(&(self.rows as u64).to_le_bytes());
        bytes[24..32].copy_from_slice(&(self.cols as u64).to_le_bytes());
        bytes[32..40].copy_from_slice(&(self.patches as u64).to_le_bytes());
        bytes[40..44].copy_from_slice(&self.payload_crc.to_le_bytes());
        let crc = crc32fast::hash(&bytes[..44]);
        bytes[44..48].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Reads and checks the header of a compressed matrix of `stored_bytes` bytes in all, from its
    /// first bytes alone.
    ///
    /// What lies behind the header is not looked at: only
    /// [`CompressedMatrix::from_bytes`] vouches for it.
    ///
    /// # Errors
    /// [`Error`] names the field that is wrong; [`Error::Truncated`] and [`Error::TrailingBytes`] when
    /// `stored_bytes` is not what the header asks for.
    ///
    /// ```
    /// use zipserv::{HEADER_BYTES, Matrix, MatrixHeader, encode};
    ///
    /// let compressed = encode(&Matrix::from_bits(40, 70, &[0x3F80; 40 * 70])?)?;
    /// let bytes = compressed.as_bytes();
    /// let header = MatrixHeader::parse(bytes.first_chunk().unwrap(), bytes.len())?;
    /// assert_eq!((header.rows(), header.cols(), header.tiles()), (40, 70, 4));
    /// assert_eq!(header.dense(), HEADER_BYTES..HEADER_BYTES + 4 * 2816);
    /// assert_eq!(bytes[header.patches()], *compressed.patches());
    /// # Ok::<(), zipserv::Error>(())
    /// ```
    pub fn parse(header: &[u8; HEADER_BYTES], stored_bytes: usize) -> Result<Self, Error> {
        let header = Self::parse_prefix(header, stored_bytes)?;
        let (expected, found) = (header.end as u64, stored_bytes as u64);
        if found > expected {
            return Err(Error::TrailingBytes { expected, found });
        }
        Ok(header)
    }

    /// As [`parse`](Self::parse), of a matrix at the start of `available` bytes that may go on behind it, as
    /// tensors with spare room do.
    ///
    /// # Errors
    /// As [`parse`](Self::parse), but [`Error::TrailingBytes`].
    pub fn parse_prefix(header: &[u8; HEADER_BYTES], available: usize) -> Result<Self, Error> {
        let bytes = header;
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
        let field = |field, offset, max: usize| {
            let value = match offset {
                BASE_AT => u64::from(u32_at(bytes, BASE_AT)),
                _ => u64::from_le_bytes(bytes[offset..offset + 8].try_into().expect("eight bytes")),
            };
            match usize::try_from(value) {
                Ok(value) if value <= max => Ok(value),
                _ => Err(Error::HeaderField {
                    field,
                    offset,
                    value,
                }),
            }
        };
        let base = field("base", BASE_AT, MAX_BASE.into())? as u8;
        let rows = field("rows", 16, u32::MAX as usize)?;
        let cols = field("cols", 24, u32::MAX as usize)?;
        let patches = field("patches", 32, MAX_PATCHES)?;
        if !is_base(base) {
            return Err(Error::HeaderField {
                field: "base",
                offset: BASE_AT,
                value: base.into(),
            });
        }
        if let Some(at) = bytes[48..].iter().position(|&b| b != 0) {
            return Err(Error::HeaderField {
                field: "reserved",
                offset: 48 + at,
                value: u64::from(bytes[48 + at]),
            });
        }
        let header =
            Self::new(rows, cols, base, patches as u64)?.with_payload_crc(u32_at(bytes, 40));
        let (expected, found) = (header.end as u64, available as u64);
        if found < expected {
            return Err(Error::Truncated { expected, found });
        }
        Ok(header)
    }

    /// Reads and checks the header in front of the compressed matrix that `bytes` are.
    fn of(bytes: &[u8]) -> Result<Self, Error> {
        let header = bytes.first_chunk().ok_or(Error::Truncated {
            expected: HEADER_BYTES as u64,
            found: bytes.len() as u64,
        })?;
        Self::parse(header, bytes.len())
    }

    /// Output features.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Input features.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// The lowest exponent of the window, biased.
    pub fn base(&self) -> u8 {
        self.base
    }

    /// Weights whose exponent lies outside the window: the number of patches.
    pub fn outliers(&self) -> usize {
        self.patches
    }

    /// Tiles of 32 x 64 weights that cover the matrix.
    pub fn tiles(&self) -> usize {
        self.tiles
    }

    /// CRC-32 of all behind the header.
    pub(crate) fn payload_crc(&self) -> u32 {
        self.payload_crc
    }

    /// Where the dense part lies, see [`CompressedMatrix::dense`].
    pub fn dense(&self) -> Range<usize> {
        HEADER_BYTES..self.offsets_at
    }

    /// Where the patch offsets lie, see [`CompressedMatrix::patch_offsets`].
    pub fn patch_offsets(&self) -> Range<usize> {
        self.offsets_at..self.patches_at
    }

    /// Where the patches lie, see [`CompressedMatrix::patches`].
    pub fn patches(&self) -> Range<usize> {
        self.patches_at..self.end
    }

    /// Bytes of the whole compressed matrix.
    pub fn stored_bytes(&self) -> usize {
        self.end
    }

    /// Bytes of the matrix before compression: two for each weight.
    pub fn original_bytes(&self) -> usize {
        2 * self.rows * self.cols
    }

    /// Stored bits for each weight, headers, padding and patches included; 0 for a matrix without
    /// weights.
    pub fn bits_per_weight(&self) -> f64 {
        match self.original_bytes() {
            0 => 0.0,
            original => 16.0 * self.end as f64 / original as f64,
        }
    }

    /// The index of a tile's first patch, or their number behind the last tile, in patch offsets as they are stored.
    pub(crate) fn patch_offset(offsets: &[u8], tile: usize) -> usize {
        u32_at(offsets, 4 * tile) as usize
    }

    /// Checks that patch offsets start at 0, never fall, and end at the number of patches.
    pub(crate) fn check_offsets(&self, offsets: &[u8]) -> Result<(), Error> {
        let offset_error = |tile| Error::PatchOffset {
            tile,
            offset: (self.offsets_at + 4 * tile) as u64,
        };
        let offset = |tile| Self::patch_offset(offsets, tile);
        if offset(0) != 0 {
            return Err(offset_error(0));
        }
        if offset(self.tiles) != self.patches {
            return Err(offset_error(self.tiles));
        }
        let falls = |tile: &usize| offset(tile - 1) > offset(*tile) || offset(*tile) > self.patches;
        match (1..=self.tiles).find(falls) {
            Some(tile) => Err(offset_error(tile)),
            None => Ok(()),
        }
    }

    /// The three sections of the bytes of such a matrix.
    pub(crate) fn sections_mut<'a>(&self, bytes: &'a mut [u8]) -> [&'a mut [u8]; 3] {
        let (dense, rest) = bytes[HEADER_BYTES..].split_at_mut(self.dense().len());
        let (offsets, patches) = rest.split_at_mut(self.patch_offsets().len());
        [dense, offsets, patches]
    }
}

/// Tiles of a matrix.
///
/// # Errors
/// [`Error::MatrixTooLarge`] for 2^32 rows or columns or more, or 2^32 - 1 tiles.
pub(super) fn tiles(rows: usize, cols: usize) -> Result<usize, Error> {
    let limit = u32::MAX as usize;
    let (tile_rows, tile_cols) = tile_grid(rows, cols);
    match tile_rows.checked_mul(tile_cols) {
        Some(tiles) if rows <= limit && cols <= limit && tiles < limit => Ok(tiles),
        _ => Err(Error::MatrixTooLarge { rows, cols }),
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
pub(super) fn crc(bytes: &[u8]) -> u32 {
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
    header: MatrixHeader,
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
        let header = MatrixHeader::of(&bytes)?;
        let found = crc(&bytes[HEADER_BYTES..]);
        if found != header.payload_crc {
            return Err(Error::Checksum {
                part: "payload",
                expected: header.payload_crc,
                found,
            });
        }
        let this = Self { header, bytes };
        header.check_offsets(this.patch_offsets())?;
        let tiles = (0..header.tiles).into_par_iter();
        tiles.try_for_each(|tile| this.check_positions(tile))?;
        Ok(this)
    }

    /// A [part](super::part::Part) of a matrix whose checksum is somebody else's task, with patch offsets that are right.
    pub(crate) fn of_part(header: MatrixHeader, bytes: &'a [u8]) -> Result<Self, Error> {
        let bytes = bytes.into();
        let this = Self { header, bytes };
        (0..header.tiles).try_for_each(|tile| this.check_positions(tile))?;
        Ok(this)
    }

    /// Completes the bytes of a matrix whose sections the codec has just made.
    pub(crate) fn new(header: MatrixHeader, mut bytes: Vec<u8>, payload_crc: u32) -> Self {
        let header = header.with_payload_crc(payload_crc);
        bytes[..HEADER_BYTES].copy_from_slice(&header.to_bytes());
        debug_assert_eq!(MatrixHeader::of(&bytes), Ok(header));
        Self {
            header,
            bytes: bytes.into(),
        }
    }

    /// Checks that the positions of a tile's patches rise, and lie in the matrix.
    fn check_positions(&self, tile: usize) -> Result<(), Error> {
        let (_, tile_cols) = tile_grid(self.header.rows, self.header.cols);
        let rows = self.header.rows - tile / tile_cols * TILE_ROWS;
        let cols = self.header.cols - tile % tile_cols * TILE_COLS;
        let mut next = 0;
        for index in self.patch_offset(tile)..self.patch_offset(tile + 1) {
            let position = self.patch(index).position();
            let (row, col) = patch_row_col(position);
            if position < next || row >= rows || col >= cols {
                return Err(Error::PatchPosition { tile, index });
            }
            next = position + 1;
        }
        Ok(())
    }

    /// What the header says, and where the sections lie in [`as_bytes`](Self::as_bytes).
    pub fn header(&self) -> &MatrixHeader {
        &self.header
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

    /// Bytes of the matrix before compression: two for each weight.
    pub fn original_bytes(&self) -> usize {
        self.header.original_bytes()
    }

    /// Bytes of the whole compressed matrix: those of [`as_bytes`](Self::as_bytes).
    pub fn stored_bytes(&self) -> usize {
        self.header.stored_bytes()
    }

    /// Stored bits for each weight, headers, padding and patches included; 0 for a matrix without
    /// weights.
    pub fn bits_per_weight(&self) -> f64 {
        self.header.bits_per_weight()
    }

    /// The whole compressed matrix, as it is stored.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The dense part: [`TILE_BYTES`] for each tile, tiles in row-major order.
    pub fn dense(&self) -> &[u8] {
        &self.bytes[self.header.dense()]
    }

    /// The offsets of the tiles' first patches, as little-endian `u32`, one more than there are
    /// tiles, then zeros to a multiple of 16 bytes.
    pub fn patch_offsets(&self) -> &[u8] {
        &self.bytes[self.header.patch_offsets()]
    }

    /// The patches as little-endian `u16`, tile after tile, then zeros to a multiple of 16 bytes.
    pub fn patches(&self) -> &[u8] {
        &self.bytes[self.header.patches()]
    }

    /// Index of the first patch of `tile`.
    pub(crate) fn patch_offset(&self, tile: usize) -> usize {
        MatrixHeader::patch_offset(self.patch_offsets(), tile)
    }

    pub(crate) fn patch(&self, index: usize) -> Patch {
        let at = self.header.patches_at + 2 * index;
        Patch(u16::from_le_bytes([self.bytes[at], self.bytes[at + 1]]))
    }

    /// Detaches the matrix from the bytes it borrows.
    pub fn into_owned(self) -> CompressedMatrix<'static> {
        CompressedMatrix {
            header: self.header,
            bytes: Cow::Owned(self.bytes.into_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As kernels follow them, on the copy that goes to a GPU.
    #[test]
    fn patch_offsets_are_checked_by_themselves() {
        let header = MatrixHeader::new(64, 128, 120, 9).unwrap();
        let check = |offsets: [u32; 5]| {
            let bytes: Vec<u8> = offsets.iter().flat_map(|o| o.to_le_bytes()).collect();
            header.check_offsets(&bytes).map_err(|error| match error {
                Error::PatchOffset { tile, .. } => tile,
                other => panic!("{other}"),
            })
        };
        assert_eq!(check([0, 0, 4, 9, 9]), Ok(()));
        assert_eq!(check([1, 1, 4, 9, 9]), Err(0));
        assert_eq!(check([0, 0, 4, 3, 9]), Err(3));
        assert_eq!(check([0, 0, 10, 10, 9]), Err(2));
        assert_eq!(check([0, u32::MAX, 4, 9, 9]), Err(1));
        assert_eq!(check([0, 0, 4, 9, 8]), Err(4));
        assert_eq!(check([0, 0, 4, 9, 10]), Err(4));
    }

    /// A matrix with so many outliers would take 4 GB, so this asks for no more than the header.
    #[test]
    fn no_more_patches_than_the_reader_takes_are_laid_out() {
        let (rows, cols) = (1 << 16, 1 << 16);
        let header = MatrixHeader::new(rows, cols, 120, (1 << 31) - 1).unwrap();
        let bytes = header.to_bytes();
        assert_eq!(
            MatrixHeader::parse(&bytes, header.stored_bytes()),
            Ok(header)
        );
        for patches in [1 << 31, u64::from(u32::MAX), u64::MAX] {
            assert_eq!(
                MatrixHeader::new(rows, cols, 120, patches),
                Err(Error::MatrixTooLarge { rows, cols })
            );
        }
    }
}
