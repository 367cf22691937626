/// What can be wrong with a matrix or with compressed bytes.
///
/// Offsets count bytes from the start of the compressed matrix. Errors of files and tensors
/// wrap these with the names, see [`crate::checkpoint::Error`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The number of bytes does not fit the shape.
    #[error("a {rows} x {cols} BF16 matrix does not have {found} bytes")]
    MatrixSize {
        /// Rows asked for.
        rows: usize,
        /// Columns asked for.
        cols: usize,
        /// Bytes given.
        found: usize,
    },
    /// The format counts rows, columns and tiles in 32 bits, and patches in 31.
    #[error("a {rows} x {cols} matrix is too large for the format")]
    MatrixTooLarge {
        /// Rows asked for.
        rows: usize,
        /// Columns asked for.
        cols: usize,
    },
    /// Matrices that are no stack of a mixture's experts.
    #[error(
        "{found} rows are not those of {experts} experts of {rows} rows, each of whole strips of 32"
    )]
    Experts {
        /// Experts.
        experts: usize,
        /// Rows of each.
        rows: usize,
        /// Rows that there are.
        found: usize,
    },
    /// There is no such expert.
    #[error("there is no expert {expert}: the stack has {experts}")]
    Expert {
        /// Its number.
        expert: usize,
        /// How many there are.
        experts: usize,
    },
    /// The bytes end before the header or a section that the header declares.
    #[error("compressed matrix of {found} bytes, but {expected} are needed")]
    Truncated {
        /// Bytes that the header asks for.
        expected: u64,
        /// Bytes present.
        found: u64,
    },
    /// The bytes go on after the last section.
    #[error("compressed matrix of {found} bytes, but it ends after {expected}")]
    TrailingBytes {
        /// Bytes that the header asks for.
        expected: u64,
        /// Bytes present.
        found: u64,
    },
    /// The bytes do not start with the magic of a compressed matrix.
    #[error("not a zipserv matrix: wrong magic at offset 0")]
    Magic,
    /// A version that this build does not read.
    #[error("format version {0} at offset 8 is not supported; this build reads version {version}", version = crate::VERSION)]
    Version(u16),
    /// A layout that this build does not read.
    #[error("layout {0} at offset 10{of} is not supported; this build reads layout {layout}{help}", of = development(*.0).0, layout = crate::LAYOUT_ID, help = development(*.0).1)]
    Layout(u16),
    /// A header field is out of range.
    #[error("header field `{field}` at offset {offset} has the impossible value {value}")]
    HeaderField {
        /// The field's name in `docs/FORMAT.md`.
        field: &'static str,
        /// Where it is.
        offset: usize,
        /// What it says.
        value: u64,
    },
    /// A checksum does not match: the bytes were damaged.
    #[error(
        "checksum of the {part} is {found:08x}, but {expected:08x} was stored: the data is damaged"
    )]
    Checksum {
        /// Header or payload.
        part: &'static str,
        /// The stored checksum.
        expected: u32,
        /// The checksum of the bytes as they are.
        found: u32,
    },
    /// The offsets of patches do not rise from zero to the number of patches.
    #[error("patch offset of tile {tile} at offset {offset} is out of order")]
    PatchOffset {
        /// Index of the tile.
        tile: usize,
        /// Where the offset is.
        offset: u64,
    },
    /// The patches of a tile are not in rising order of position, or lie in its padding.
    #[error("patch {index} of tile {tile} is out of range or out of order")]
    PatchPosition {
        /// Index of the tile.
        tile: usize,
        /// Index of the patch among all patches.
        index: usize,
    },
    /// The part asked for is not made of whole tiles of the matrix.
    #[error(
        "{axis} {start}..{end} of {len} are no part: it starts and ends at multiples of {tile}, or at {len}"
    )]
    Slice {
        /// `rows` or `cols`.
        axis: &'static str,
        /// The first asked for.
        start: usize,
        /// The first behind those asked for.
        end: usize,
        /// Rows or columns of a tile.
        tile: usize,
        /// Rows or columns of the matrix.
        len: usize,
    },
    /// There is no row of this number.
    #[error("there is no row {row}: the matrix has {rows}")]
    Row {
        /// The number.
        row: usize,
        /// Rows of the matrix.
        rows: usize,
    },
    /// Byte planes have another length than their header or table asks for.
    #[error("byte planes of {found} bytes, but {expected} are needed")]
    PlanesLength {
        /// Bytes that header and table ask for.
        expected: u64,
        /// Bytes present.
        found: u64,
    },
    /// A plane has gone through a coder that this build does not know.
    #[error("coder {coder} at offset {offset} is not supported")]
    PlaneCoder {
        /// The coder's number.
        coder: u8,
        /// Where the plane's word in the table is.
        offset: u64,
    },
    /// A plane's stored length is none that its coder gives.
    #[error("plane {plane} of chunk {chunk} has the impossible length {stored} at offset {offset}")]
    PlaneLength {
        /// Index of the chunk.
        chunk: usize,
        /// Index of the plane.
        plane: usize,
        /// Where the plane's word in the table is.
        offset: u64,
        /// Stored bytes that it claims.
        stored: u32,
    },
    /// The entropy coder refuses a plane.
    #[error("plane {plane} of chunk {chunk} at offset {offset} cannot be decoded: {why}")]
    Plane {
        /// Index of the chunk.
        chunk: usize,
        /// Index of the plane.
        plane: usize,
        /// Where the plane is.
        offset: u64,
        /// What the coder says.
        why: String,
    },
    /// A chunk of a tensor does not have its checksum: the bytes were damaged.
    #[error(
        "checksum of chunk {chunk} at offset {offset} is {found:08x}, but {expected:08x} was stored: the data is damaged"
    )]
    ChunkChecksum {
        /// Index of the chunk.
        chunk: usize,
        /// Where its planes start.
        offset: u64,
        /// The stored checksum.
        expected: u32,
        /// The checksum of the restored bytes.
        found: u32,
    },
    /// There is no memory for so many bytes.
    #[error("no memory for {0} bytes")]
    Memory(usize),
    /// The output does not have room for exactly the decoded matrix or tensor.
    #[error("output of {found} bytes for {expected}")]
    OutputSize {
        /// Bytes of the decoded matrix or tensor.
        expected: usize,
        /// Bytes given.
        found: usize,
    },
}

impl Error {
    /// Where it is, in bytes from the start of the compressed matrix, if that is known.
    pub fn offset(&self) -> Option<u64> {
        match self {
            Self::Magic => Some(0),
            Self::Version(_) => Some(8),
            Self::Layout(_) => Some(10),
            Self::HeaderField { offset, .. } => Some(*offset as u64),
            Self::PatchOffset { offset, .. }
            | Self::PlaneCoder { offset, .. }
            | Self::PlaneLength { offset, .. }
            | Self::Plane { offset, .. }
            | Self::ChunkChecksum { offset, .. } => Some(*offset),
            _ => None,
        }
    }
}

/// What to say around a layout that only development versions wrote.
fn development(layout: u16) -> (&'static str, &'static str) {
    match layout {
        2 | 3 => (
            ", of a development version,",
            ": compress the original again",
        ),
        _ => ("", ""),
    }
}
