use std::{
    fmt, io,
    path::{Path, PathBuf},
};

use super::{foreign::Foreign, header::LENGTH_BYTES, shown::shown};

/// What went wrong with a file or folder. Its [`source`](std::error::Error::source) is the cause
/// below it, where there is one.
#[derive(Debug)]
pub struct Error {
    path: PathBuf,
    kind: ErrorKind,
}

impl Error {
    pub(crate) fn new(path: impl Into<PathBuf>, kind: impl Into<ErrorKind>) -> Self {
        Self {
            path: path.into(),
            kind: kind.into(),
        }
    }

    /// The file or folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What is wrong with it.
    pub fn kind(&self) -> &ErrorKind {
        &self.kind
    }

    /// The name of the tensor that it is about, if it is about one.
    pub fn tensor(&self) -> Option<&str> {
        self.kind.tensor()
    }

    /// Where in the file it is, in bytes from its start, if that is known.
    pub fn offset(&self) -> Option<u64> {
        self.kind.offset()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}: {}", shown(self.path.display()), shown(&self.kind))
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.kind.source()
    }
}

/// Names the file in the error of a result.
pub(crate) trait At<T> {
    fn at(self, path: &Path) -> Result<T, Error>;
}

impl<T, E: Into<ErrorKind>> At<T> for Result<T, E> {
    fn at(self, path: &Path) -> Result<T, Error> {
        self.map_err(|kind| Error::new(path, kind))
    }
}

/// What can be wrong with a checkpoint. Offsets count bytes from the start of the file, except
/// for the data offsets of tensors, which count from the end of the header as in the file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The operating system refused.
    #[error("input or output failed")]
    Io(#[from] io::Error),
    /// There is something under the name of the output.
    #[error("already exists; --force replaces it")]
    OutputExists,
    /// The output cannot be a file or folder of that name.
    #[error("cannot be replaced by the output: {0}")]
    OutputName(&'static str),
    /// Something else is under the name of the output than when the job began.
    #[error(
        "was changed or put there by another program meanwhile: left as it is, and no output written"
    )]
    OutputChanged,
    /// The output has its name, but may lose it.
    #[error(
        "the output is complete and in its place, but if the system crashes now it may be lost: its folder could not be synced"
    )]
    NotSynced(#[source] io::Error),
    /// The input changed while it was read.
    #[error("changed while it was being read")]
    Changed,
    /// An index, manifest or `config.json` is longer than any is.
    #[error("{0} bytes are more than the limit of {max} for such a file", max = super::header::MAX_HEADER_BYTES)]
    TextTooLong(u64),
    /// [`Progress::is_cancelled`](super::Progress::is_cancelled) has said so.
    #[error("cancelled")]
    Cancelled,
    /// The folder has no `.safetensors` file.
    #[error(
        "no .safetensors file in this folder; weights in .bin, .pt and .gguf files are not read"
    )]
    NoCheckpoint,
    /// The folder is the cache of a model hub, with every file of each snapshot twice.
    #[error("a cache of the Hugging Face hub: give a snapshot in it{}", snapshot.as_ref().map(|path| format!(", such as {}", path.display())).unwrap_or_default())]
    HubCache {
        /// The one to give.
        snapshot: Option<PathBuf>,
    },
    /// Something in the folder is neither a file nor a folder.
    #[error("neither a file nor a folder")]
    FileType,
    /// Two inputs must both be files or both be folders.
    #[error("one input is a folder, the other is not")]
    FolderAndFile,
    /// The index of a sharded checkpoint is not the JSON that it should be.
    #[error("not an index of shards")]
    IndexJson(#[source] serde_json::Error),
    /// The index places a tensor outside of the folder.
    #[error(
        "the index places tensor `{tensor}` in `{shard}`, which is not a file name within the folder"
    )]
    IndexPath {
        /// The tensor's name.
        tensor: String,
        /// The shard's name in the index.
        shard: String,
    },
    /// The index names a shard that is not there.
    #[error("the index places tensor `{tensor}` in `{shard}`, which does not exist")]
    IndexShard {
        /// The tensor's name.
        tensor: String,
        /// The shard's name in the index.
        shard: String,
    },
    /// The index names a tensor that its shard does not have.
    #[error("the index places tensor `{tensor}` in `{shard}`, which does not have it")]
    IndexTensor {
        /// The tensor's name.
        tensor: String,
        /// The shard's name in the index.
        shard: String,
    },
    /// The `zipserv.json` of a compressed folder is not the JSON that it should be.
    #[error("not what zipserv writes into a compressed folder")]
    ManifestJson(#[source] serde_json::Error),
    /// The `zipserv.json` of a compressed folder names what cannot be.
    #[error("names `{file}`, {why}")]
    Manifest {
        /// The file.
        file: String,
        /// Why not.
        why: &'static str,
    },
    /// A folder to be compressed has a file `zipserv.json`.
    #[error(
        "a compressed folder has its own file of this name: compressed already, or to be renamed"
    )]
    ManifestName,
    /// The name of a `.safetensors` file or index in a folder is not UTF-8.
    #[error("the file's name is not UTF-8")]
    NameUtf8,
    /// The folder has more than one index, and so more than one checkpoint.
    #[error("more than one index of shards in this folder: open one of them")]
    SeveralIndexes,
    /// Two files of a folder without index have a tensor of the same name.
    #[error("tensor `{tensor}` is also in {}, and no index says which counts", other.display())]
    TensorInTwoFiles {
        /// The tensor's name.
        tensor: String,
        /// The other file.
        other: PathBuf,
    },

    /// No tensor of an open checkpoint has the name.
    #[error("no tensor `{tensor}`{}", near.as_ref().map(|near| format!("; there is `{near}`")).unwrap_or_default())]
    NoTensor {
        /// The name asked for.
        tensor: String,
        /// A name that there is, if one is much alike.
        near: Option<String>,
    },
    /// A compressed matrix is asked for, but the tensor is none, and cannot be made one.
    #[error("tensor `{tensor}` ({dtype} of shape {shape:?}) is not a compressed matrix")]
    NoMatrix {
        /// The tensor's name.
        tensor: String,
        /// Its dtype.
        dtype: String,
        /// Its shape.
        shape: Vec<u64>,
    },
    /// A stack of experts is asked for, but the tensor is none.
    #[error(
        "tensor `{tensor}` ({dtype} of shape {shape:?}) is no stack of experts: that is BF16 of three or more dimensions"
    )]
    NoStack {
        /// The tensor's name.
        tensor: String,
        /// Its dtype.
        dtype: String,
        /// Its shape.
        shape: Vec<u64>,
    },
    /// A tensor's own bytes are asked for, but it is stored compressed.
    #[error("tensor `{0}` is compressed")]
    Compressed(String),

    /// The file is of another kind.
    #[error("{}", .0.hint())]
    Foreign(Foreign),
    /// The file is too short for a safetensors file.
    #[error("{0} bytes are too few for a safetensors file")]
    TooShort(u64),
    /// The header is longer than the file.
    #[error(
        "the header length at offset 0 is {length}, but only {available} bytes follow: truncated, or not a safetensors file"
    )]
    HeaderTruncated {
        /// The stored length.
        length: u64,
        /// Bytes after the length.
        available: u64,
    },
    /// The header is longer than safetensors readers allow.
    #[error("a header of {0} bytes is longer than the limit of {max}", max = super::header::MAX_HEADER_BYTES)]
    HeaderTooLong(u64),
    /// The header is not UTF-8.
    #[error("the header is not UTF-8 at offset {offset}", offset = LENGTH_BYTES + .0.valid_up_to())]
    HeaderUtf8(#[source] std::str::Utf8Error),
    /// The header is not the JSON that it should be.
    #[error("the header is not that of a safetensors file")]
    HeaderJson(#[source] serde_json::Error),
    /// Two tensors have the same name.
    #[error("tensor `{0}` occurs twice in the header")]
    DuplicateTensor(String),
    /// There are too many tensors, or too many entries in the metadata.
    #[error("more than {max} {0} in the header", max = super::header::MAX_ENTRIES)]
    TooManyEntries(&'static str),
    /// A tensor has too many dimensions.
    #[error("tensor `{tensor}` has {dims} dimensions; the limit is {max}", max = super::header::MAX_DIMS)]
    Dimensions {
        /// The tensor's name.
        tensor: String,
        /// Its dimensions.
        dims: usize,
    },
    /// The number of bytes of a tensor does not fit in 64 bits.
    #[error("the shape {shape:?} of tensor `{tensor}` overflows")]
    ShapeOverflow {
        /// The tensor's name.
        tensor: String,
        /// Its shape.
        shape: Vec<u64>,
    },
    /// The data of a tensor ends before it starts.
    #[error("tensor `{tensor}` ends at data offset {end}, before its start at {start}")]
    OffsetOrder {
        /// The tensor's name.
        tensor: String,
        /// Where its data starts.
        start: u64,
        /// Where its data ends.
        end: u64,
        /// Where the header ends in the file, from which the others count.
        data_at: u64,
    },
    /// Two tensors share bytes.
    #[error(
        "tensor `{tensor}` starts at data offset {start}, inside the tensor before it, which ends at {expected}"
    )]
    Overlap {
        /// The tensor's name.
        tensor: String,
        /// Where its data starts.
        start: u64,
        /// Where the data before it ends.
        expected: u64,
        /// Where the header ends in the file, from which the others count.
        data_at: u64,
    },
    /// Bytes that belong to no tensor.
    #[error("nothing lies between data offset {expected} and tensor `{tensor}` at {start}")]
    Hole {
        /// The tensor after the hole.
        tensor: String,
        /// Where its data starts.
        start: u64,
        /// Where the data before it ends.
        expected: u64,
        /// Where the header ends in the file, from which the others count.
        data_at: u64,
    },
    /// A tensor's bytes do not fit its dtype and shape.
    #[error("tensor `{tensor}` has {found} bytes, but {dtype} of shape {shape:?} takes {expected}")]
    TensorSize {
        /// The tensor's name.
        tensor: String,
        /// Its dtype.
        dtype: String,
        /// Its shape.
        shape: Vec<u64>,
        /// Bytes that dtype and shape ask for.
        expected: u64,
        /// Bytes in the file.
        found: u64,
    },
    /// The file is shorter than its tensors.
    #[error("the data is truncated: tensors take {expected} bytes, but {found} follow the header")]
    DataTruncated {
        /// Bytes of all tensors.
        expected: u64,
        /// Bytes after the header.
        found: u64,
    },
    /// The file goes on after its tensors.
    #[error("tensors take {expected} bytes, but {found} follow the header")]
    TrailingData {
        /// Bytes of all tensors.
        expected: u64,
        /// Bytes after the header.
        found: u64,
    },

    /// The input of compression is the output of compression.
    #[error("already compressed by zipserv; `zipserv decompress` restores the original")]
    AlreadyCompressed,
    /// The file was not written by zipserv.
    #[error("not compressed by zipserv: no `{key}` in its metadata", key = super::names::VERSION_KEY)]
    NotCompressed,
    /// A version of the container that this build does not read.
    #[error("container version `{0}` is not supported; this build reads versions {versions}", versions = super::names::VERSIONS.join(", "))]
    Version(String),
    /// A version of the folder's `zipserv.json` that this build does not read.
    #[error("version `{0}` is not supported; this build reads version {version}", version = super::names::MANIFEST_VERSION)]
    ManifestVersion(String),
    /// What zipserv noted in the metadata is missing or wrong.
    #[error("metadata `{0}` is missing or not what zipserv writes")]
    Metadata(&'static str),
    /// The header of the original file, as stored, is damaged.
    #[error("the stored header of the original file is damaged")]
    OriginalHeader(#[source] Box<ErrorKind>),
    /// A tensor of the original file is not in the compressed one.
    #[error("tensor `{0}` of the original file is missing")]
    MissingTensor(String),
    /// The compressed file has a tensor that the original has not.
    #[error("tensor `{0}` does not belong to the original file")]
    UnexpectedTensor(String),
    /// A tensor is not as the original header describes it.
    #[error("tensor `{0}` differs in dtype, shape or size from the original header")]
    TensorMismatch(String),
    /// The compressed matrix of a tensor has another shape than the tensor.
    #[error("tensor `{tensor}` of shape {shape:?} is stored as a {rows} x {cols} matrix")]
    MatrixShape {
        /// The tensor's name.
        tensor: String,
        /// Its shape in the original header.
        shape: Vec<u64>,
        /// Rows of the stored matrix.
        rows: usize,
        /// Columns of the stored matrix.
        cols: usize,
        /// Where the matrix starts in the file.
        offset: u64,
    },
    /// The byte planes of a tensor are those of another number of bytes.
    #[error("tensor `{tensor}` of {expected} bytes is stored as planes of {found}")]
    PlanesSize {
        /// The tensor's name.
        tensor: String,
        /// Its bytes in the original file.
        expected: u64,
        /// Bytes of the stored tensor, before compression.
        found: u64,
        /// Where the planes start in the file.
        offset: u64,
    },
    /// A tensor's compressed matrix or byte planes cannot be read or made.
    #[error("tensor `{tensor}` at offset {offset}")]
    Tensor {
        /// The tensor's name.
        tensor: String,
        /// Where its data starts in the file.
        offset: u64,
        /// What is wrong, with offsets from there.
        source: crate::Error,
    },
    /// Tensors that are to be the matrices of a mixture's experts differ in shape.
    #[error(
        "experts differ: tensor `{tensor}` has shape {shape:?}, but `{like}` has {like_shape:?}"
    )]
    ExpertShape {
        /// The tensor's name.
        tensor: String,
        /// Its shape.
        shape: Vec<u64>,
        /// The tensor that it should be like.
        like: String,
        /// That one's shape.
        like_shape: Vec<u64>,
    },
    /// No tensors are named that are to be the matrices of experts.
    #[error("no experts are named")]
    NoExperts,
    /// The restored file is not the original.
    #[error(
        "checksum of the restored file is {found:08x}, but {expected:08x} was stored: the data is damaged"
    )]
    Checksum {
        /// The stored checksum.
        expected: u32,
        /// The checksum of the restored bytes.
        found: u32,
    },
}

impl ErrorKind {
    fn tensor(&self) -> Option<&str> {
        match self {
            Self::IndexPath { tensor, .. }
            | Self::IndexShard { tensor, .. }
            | Self::IndexTensor { tensor, .. }
            | Self::TensorInTwoFiles { tensor, .. }
            | Self::NoTensor { tensor, .. }
            | Self::NoMatrix { tensor, .. }
            | Self::NoStack { tensor, .. }
            | Self::Compressed(tensor)
            | Self::DuplicateTensor(tensor)
            | Self::Dimensions { tensor, .. }
            | Self::ShapeOverflow { tensor, .. }
            | Self::OffsetOrder { tensor, .. }
            | Self::Overlap { tensor, .. }
            | Self::Hole { tensor, .. }
            | Self::TensorSize { tensor, .. }
            | Self::MissingTensor(tensor)
            | Self::UnexpectedTensor(tensor)
            | Self::TensorMismatch(tensor)
            | Self::MatrixShape { tensor, .. }
            | Self::ExpertShape { tensor, .. }
            | Self::PlanesSize { tensor, .. }
            | Self::Tensor { tensor, .. } => Some(tensor),
            Self::OriginalHeader(kind) => kind.tensor(),
            _ => None,
        }
    }

    /// Nothing for what is wrong in an original header: its offsets are not those of the file that has it.
    fn offset(&self) -> Option<u64> {
        match self {
            Self::HeaderTruncated { .. } | Self::HeaderTooLong(_) => Some(0),
            Self::HeaderUtf8(error) => Some((LENGTH_BYTES + error.valid_up_to()) as u64),
            Self::OffsetOrder { start, data_at, .. }
            | Self::Overlap { start, data_at, .. }
            | Self::Hole { start, data_at, .. } => data_at.checked_add(*start),
            Self::MatrixShape { offset, .. } | Self::PlanesSize { offset, .. } => Some(*offset),
            Self::Tensor { offset, source, .. } => {
                Some(offset + source.offset().unwrap_or_default())
            }
            _ => None,
        }
    }

    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        std::error::Error::source(self)
    }
}
