//! What can go wrong.

use std::path::PathBuf;

/// A result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// What can go wrong between a folder and its text.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Reading a file failed.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// A checkpoint cannot be read.
    #[error(transparent)]
    Checkpoint(#[from] zipserv::checkpoint::Error),
    /// A file of the folder is not what it should be, or asks for what is not built.
    #[error("{path}: {reason}", path = path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, and where.
        reason: String,
    },
    /// A tensor is absent, or not as the configuration has it.
    #[error("{path}: tensor {name}: {reason}", path = path.display())]
    Tensor {
        /// The checkpoint.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// What is wrong with it.
        reason: String,
    },
    /// More tokens than the model or the memory has room for.
    #[error("{tokens} tokens, but there is room for {room}")]
    Context {
        /// Tokens asked for.
        tokens: usize,
        /// Tokens that fit.
        room: usize,
    },
    /// A request that cannot be served, such as one of no tokens.
    #[error("{0}")]
    Request(String),
}
