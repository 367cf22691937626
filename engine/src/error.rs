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
    /// Sequences do not fit a device's memory.
    #[error(
        "{sequences} sequences of {context} tokens, and what is between products, take {needed} bytes, but {free} are free beside the weights: {fits} tokens each would fit"
    )]
    Memory {
        /// Bytes that are wanted beside weights, for keys, values and what is between products.
        needed: u64,
        /// Bytes that nothing has taken.
        free: u64,
        /// Sequences asked for.
        sequences: usize,
        /// Tokens asked for.
        context: usize,
        /// Tokens of so many sequences that would fit.
        fits: usize,
    },
    /// A device or its driver fails.
    #[cfg(feature = "cuda")]
    #[error(transparent)]
    Gpu(#[from] zipserv::gpu::GpuError),
    /// NCCL is not there.
    #[cfg(feature = "cuda")]
    #[error(
        "the library libnccl.so.2 is not found; several GPUs need NVIDIA's NCCL, and LD_LIBRARY_PATH names the folder where it is looked for"
    )]
    NoNccl,
    /// A call of NCCL failed.
    #[cfg(feature = "cuda")]
    #[error("{call}: {reason}")]
    Nccl {
        /// The call.
        call: &'static str,
        /// What NCCL says.
        reason: String,
    },
    /// A device cannot go on, because another one that works with it has failed.
    #[cfg(feature = "cuda")]
    #[error("another device has failed before")]
    OtherDevice,
    /// A request that cannot be served, such as one of no tokens.
    #[error("{0}")]
    Request(String),
}
