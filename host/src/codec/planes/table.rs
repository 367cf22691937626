use std::ops::Range;

use super::{
    coder::{CONSTANT, RAW, ZSTD},
    split::Element,
};
use crate::{
    Error,
    codec::compressed::{MAGIC, VERSION},
};

/// The layout's number in a header: what comes after is byte planes.
pub const LAYOUT_ID: u16 = 4;
/// Bytes of the header in front of the table.
const HEADER_BYTES: usize = 32;
const CHECKSUM_AT: usize = 28;
/// The whole ends at a multiple of this, as compressed matrices do.
const ALIGN: usize = 16;
/// The most bytes of a chunk. Bounds what a reader needs for one.
pub const MAX_CHUNK_BYTES: usize = 4 << 20;
/// In the table's word of a plane the coder is above so many bits of length.
const LENGTH_BITS: u32 = 24;
const CRC_BYTES: usize = 4;
const WORD_BYTES: usize = 4;

/// What a stored tensor says of itself in front of its planes, and where these lie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Table {
    element: Element,
    original_bytes: usize,
    /// Elements of a chunk; of the last one, at most.
    chunk: usize,
    /// For each chunk, the CRC-32 of its original bytes and where its first plane starts.
    chunks: Vec<(u32, usize)>,
    /// For each plane of each chunk, its coder and its stored bytes.
    planes: Vec<(u8, u32)>,
    end: usize,
}

impl Table {
    /// Lays out planes that are known, in the order of the table.
    ///
    /// # Panics
    /// If there are not as many as the chunks ask for.
    pub fn new(
        element: Element,
        original_bytes: usize,
        chunk: usize,
        crcs: &[u32],
        planes: Vec<(u8, u32)>,
    ) -> Self {
        let mut this = Self {
            element,
            original_bytes,
            chunk,
            chunks: crcs.iter().map(|&crc| (crc, 0)).collect(),
            planes,
            end: 0,
        };
        assert_eq!(
            this.chunks.len(),
            original_bytes.div_ceil(this.chunk_bytes())
        );
        assert_eq!(this.planes.len(), this.chunks.len() * element.width());
        this.lay_out();
        this
    }

    /// Bytes of header and table for a tensor of so many bytes: where the planes start.
    pub fn bytes(element: Element, original_bytes: usize, chunk: usize) -> usize {
        let chunks = original_bytes.div_ceil(chunk * element.width());
        HEADER_BYTES + chunks * (CRC_BYTES + WORD_BYTES * element.width())
    }

    /// Bytes of the whole for planes of so many bytes in all.
    pub fn stored_bytes_of(table: usize, planes: usize) -> usize {
        (table + planes).next_multiple_of(ALIGN)
    }

    /// Places the planes one behind the other.
    fn lay_out(&mut self) {
        let mut at = Self::bytes(self.element, self.original_bytes, self.chunk);
        let planes = self.planes.chunks_exact(self.element.width());
        for ((_, start), planes) in self.chunks.iter_mut().zip(planes) {
            *start = at;
            // No sum of lengths wraps: there are fewer than 2^40 in any memory, of 24 bits each.
            at += planes
                .iter()
                .map(|&(_, bytes)| bytes as usize)
                .sum::<usize>();
        }
        self.end = at;
    }

    /// Header and table as they are stored.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; HEADER_BYTES];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..10].copy_from_slice(&VERSION.to_le_bytes());
        bytes[10..12].copy_from_slice(&LAYOUT_ID.to_le_bytes());
        bytes[12] = self.element.width() as u8;
        bytes[13] = self.element.is_rotated().into();
        bytes[16..24].copy_from_slice(&(self.original_bytes as u64).to_le_bytes());
        bytes[24..28].copy_from_slice(&(self.chunk as u32).to_le_bytes());
        let planes = self.planes.chunks_exact(self.element.width());
        for (&(crc, _), planes) in self.chunks.iter().zip(planes) {
            bytes.extend_from_slice(&crc.to_le_bytes());
            for &(coder, stored) in planes {
                let word = u32::from(coder) << LENGTH_BITS | stored;
                bytes.extend_from_slice(&word.to_le_bytes());
            }
        }
        let crc = checksum(&bytes);
        bytes[CHECKSUM_AT..HEADER_BYTES].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Whether bytes start as those of byte planes do, whatever comes after.
    pub fn is_at(bytes: &[u8]) -> bool {
        bytes.starts_with(&MAGIC) && bytes.get(10..12) == Some(&LAYOUT_ID.to_le_bytes())
    }

    /// Bytes of header and table, from the header of a tensor that has `found` bytes in all.
    fn end_of(
        header: &[u8; HEADER_BYTES],
        found: u64,
    ) -> Result<(Element, usize, usize, usize), Error> {
        let bytes = header;
        let u16_at = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let u32_at = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four"));
        if header[..8] != MAGIC {
            return Err(Error::Magic);
        }
        if u16_at(8) != VERSION {
            return Err(Error::Version(u16_at(8)));
        }
        if u16_at(10) != LAYOUT_ID {
            return Err(Error::Layout(u16_at(10)));
        }
        let field = |field, offset: usize, value: u64| Error::HeaderField {
            field,
            offset,
            value,
        };
        let element = match header[13] {
            rotated @ (0 | 1) => Element::new(header[12].into(), rotated == 1)
                .ok_or_else(|| field("width", 12, header[12].into()))?,
            other => return Err(field("rotated", 13, other.into())),
        };
        if u16_at(14) != 0 {
            return Err(field("reserved", 14, u16_at(14).into()));
        }
        let original_bytes = u64::from_le_bytes(header[16..24].try_into().expect("eight bytes"));
        let chunk = u32_at(24) as usize;
        let width = element.width();
        if chunk == 0 || chunk > MAX_CHUNK_BYTES / width {
            return Err(field("chunk", 24, chunk as u64));
        }
        // A chunk has its place in the table, so `bytes` has at least as many as there are chunks.
        let most = found.saturating_mul((chunk * width) as u64);
        let original_bytes = match usize::try_from(original_bytes) {
            Ok(bytes) if original_bytes <= most && bytes.is_multiple_of(width) => bytes,
            _ => return Err(field("bytes", 16, original_bytes)),
        };
        let end = Self::bytes(element, original_bytes, chunk);
        match end as u64 > found {
            true => Err(Error::PlanesLength {
                expected: end as u64,
                found,
            }),
            false => Ok((element, original_bytes, chunk, end)),
        }
    }

    /// Reads and checks header, table and padding of a tensor of `len` bytes, which `read` gives from an offset on.
    /// Nothing larger than the table is allocated.
    ///
    /// # Errors
    /// [`Error`] names the field or plane that is wrong; that of `read`.
    pub fn read<E>(
        len: u64,
        mut read: impl FnMut(u64, &mut [u8]) -> Result<(), E>,
    ) -> Result<Result<Self, Error>, E> {
        let mut header = [0; HEADER_BYTES];
        if len < HEADER_BYTES as u64 {
            let (expected, found) = (HEADER_BYTES as u64, len);
            return Ok(Err(Error::PlanesLength { expected, found }));
        }
        read(0, &mut header)?;
        let end = match Self::end_of(&header, len) {
            Ok((.., end)) => end,
            Err(error) => return Ok(Err(error)),
        };
        let mut table = vec![0; end];
        table[..HEADER_BYTES].copy_from_slice(&header);
        read(HEADER_BYTES as u64, &mut table[HEADER_BYTES..])?;
        let this = match Self::of(&table, len) {
            Ok(this) => this,
            Err(error) => return Ok(Err(error)),
        };
        let mut padding = [0; ALIGN];
        let padding = &mut padding[..this.stored_bytes() - this.end];
        read(this.end as u64, padding)?;
        Ok(match padding.iter().position(|&byte| byte != 0) {
            Some(at) => Err(Error::HeaderField {
                field: "padding",
                offset: this.end + at,
                value: padding[at].into(),
            }),
            None => Ok(this),
        })
    }

    /// Reads and checks header and table of the tensor that `bytes` are, as [`read`](Self::read) does.
    ///
    /// # Errors
    /// [`Error`] names the field or plane that is wrong.
    pub fn parse(bytes: &[u8]) -> Result<Self, Error> {
        let found = Self::read(bytes.len() as u64, |offset, to| {
            to.copy_from_slice(&bytes[offset as usize..][..to.len()]);
            Ok::<_, std::convert::Infallible>(())
        });
        found.unwrap_or_else(|never| match never {})
    }

    /// Header and table, whole, of a tensor that has `len` bytes in all.
    fn of(bytes: &[u8], len: u64) -> Result<Self, Error> {
        let header = bytes.first_chunk().expect("a header");
        let (element, original_bytes, chunk, _) = Self::end_of(header, len)?;
        let (width, entries) = (element.width(), &bytes[HEADER_BYTES..]);
        let stored = bytes[CHECKSUM_AT..HEADER_BYTES].try_into().expect("four");
        let (expected, found) = (u32::from_le_bytes(stored), checksum(bytes));
        if expected != found {
            return Err(Error::Checksum {
                part: "header",
                expected,
                found,
            });
        }
        let words = |bytes: &[u8]| u32::from_le_bytes(bytes.try_into().expect("four bytes"));
        let entries = entries.chunks_exact(CRC_BYTES + WORD_BYTES * width);
        let mut this = Self {
            element,
            original_bytes,
            chunk,
            chunks: Vec::with_capacity(entries.len()),
            planes: Vec::with_capacity(entries.len() * width),
            end: 0,
        };
        for entry in entries {
            let (crc, planes) = entry.split_at(CRC_BYTES);
            this.chunks.push((words(crc), 0));
            let planes = planes.chunks_exact(WORD_BYTES).map(words);
            this.planes.extend(
                planes.map(|word| ((word >> LENGTH_BITS) as u8, word & ((1 << LENGTH_BITS) - 1))),
            );
        }
        this.lay_out();
        this.check_planes()?;
        let (expected, found) = (this.stored_bytes() as u64, len);
        match found == expected {
            true => Ok(this),
            false => Err(Error::PlanesLength { expected, found }),
        }
    }

    /// Every coder is known, and the stored bytes are as many as it can give.
    fn check_planes(&self) -> Result<(), Error> {
        let width = self.element.width();
        for (index, &(coder, stored)) in self.planes.iter().enumerate() {
            let (chunk, plane) = (index / width, index % width);
            let elements = self.chunk_range(chunk).len() / width;
            let fits = match coder {
                RAW => stored as usize == elements,
                CONSTANT => stored == 1,
                ZSTD => (stored as usize) < elements,
                _ => {
                    let offset = self.word_at(chunk, plane);
                    return Err(Error::PlaneCoder { coder, offset });
                }
            };
            if !fits {
                return Err(Error::PlaneLength {
                    chunk,
                    plane,
                    offset: self.word_at(chunk, plane),
                    stored,
                });
            }
        }
        Ok(())
    }

    fn word_at(&self, chunk: usize, plane: usize) -> u64 {
        let entry = CRC_BYTES + WORD_BYTES * self.element.width();
        (HEADER_BYTES + chunk * entry + CRC_BYTES + WORD_BYTES * plane) as u64
    }

    pub fn element(&self) -> Element {
        self.element
    }

    /// Bytes of the tensor before compression.
    pub fn original_bytes(&self) -> usize {
        self.original_bytes
    }

    /// Bytes of the whole, padding included.
    pub fn stored_bytes(&self) -> usize {
        self.end.next_multiple_of(ALIGN)
    }

    /// Number of chunks.
    pub fn chunks(&self) -> usize {
        self.chunks.len()
    }

    /// Bytes of a chunk that is not the last.
    pub fn chunk_bytes(&self) -> usize {
        self.chunk * self.element.width()
    }

    /// Where a chunk's bytes lie in the tensor.
    pub fn chunk_range(&self, chunk: usize) -> Range<usize> {
        let start = chunk * self.chunk_bytes();
        start..(start + self.chunk_bytes()).min(self.original_bytes)
    }

    /// CRC-32 of a chunk's original bytes.
    pub fn crc(&self, chunk: usize) -> u32 {
        self.chunks[chunk].0
    }

    /// Where the planes of a chunk lie.
    pub fn stored_range(&self, chunk: usize) -> Range<usize> {
        let next = self.chunks.get(chunk + 1);
        self.chunks[chunk].1..next.map_or(self.end, |&(_, start)| start)
    }

    /// The coder of each plane of a chunk, and where its stored bytes lie.
    pub fn planes(&self, chunk: usize) -> impl Iterator<Item = (u8, Range<usize>)> {
        let width = self.element.width();
        let mut at = self.chunks[chunk].1;
        let planes = &self.planes[chunk * width..][..width];
        planes.iter().map(move |&(coder, stored)| {
            let start = at;
            at += stored as usize;
            (coder, start..at)
        })
    }
}

/// CRC-32 of header and table without the field for it.
fn checksum(bytes: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(&bytes[..CHECKSUM_AT]);
    crc.update(&bytes[HEADER_BYTES..]);
    crc.finalize()
}
