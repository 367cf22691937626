use std::fmt;

use super::{family::Family, table::TuningError};

/// What can go wrong on the GPU side.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GpuError {
    /// There is no `libcuda.so.1`: no driver is installed, or a container was started without it.
    #[error("no NVIDIA driver found")]
    NoDriver,
    /// The driver has no device of this number.
    #[error(
        "there is no CUDA device {ordinal}: the driver finds {count}, those that CUDA_VISIBLE_DEVICES hides left out"
    )]
    NoDevice {
        /// The number asked for.
        ordinal: u32,
        /// Devices that there are.
        count: u32,
    },
    /// A call of the driver failed.
    #[error("CUDA driver: {call} returned {name} ({code})")]
    Driver {
        /// The call.
        call: &'static str,
        /// The number of its `CUresult`.
        code: u32,
        /// Its name, such as `CUDA_ERROR_OUT_OF_MEMORY`.
        name: String,
    },
    /// The driver did not compile a kernel.
    #[error("the driver cannot load the kernel {kernel}: {name}\n{log}")]
    Load {
        /// The kernel.
        kernel: &'static str,
        /// Name of the driver's `CUresult`.
        name: String,
        /// What its compiler says.
        log: String,
    },
    /// A call of cuBLAS or cuBLASLt failed.
    #[error("{call} returned {name}")]
    Cublas {
        /// The call.
        call: &'static str,
        /// Name of its `cublasStatus_t`.
        name: String,
    },
    /// A library is not there.
    #[error(
        "the library {name} is not found; it comes with the CUDA toolkit, and LD_LIBRARY_PATH names \
         the folder where it is looked for"
    )]
    NoLibrary {
        /// Its file's name.
        name: &'static str,
    },
    /// cuBLASLt makes no choice for a product.
    #[error("cuBLASLt has no kernel for weights of {rows} x {cols}")]
    NoAlgorithm {
        /// Output features, M.
        rows: usize,
        /// Input features, K.
        cols: usize,
    },
    /// The device is too old for all kernels.
    #[error("{name} has compute capability {major}.{minor}; the kernels need 8.0 or later")]
    Unsupported {
        /// The device.
        name: String,
        /// Major compute capability.
        major: i32,
        /// Minor compute capability.
        minor: i32,
    },
    /// There is no kernel of this name for the device.
    #[error("there is no kernel {kernel} for this device ({family})")]
    NoKernel {
        /// The name.
        kernel: String,
        /// Which kernels the device has.
        family: Family,
    },
    /// A number of tokens that no call takes.
    #[error("{tokens} tokens: a call takes 1 to {most}")]
    Tokens {
        /// The number.
        tokens: usize,
        /// The largest.
        most: usize,
    },
    /// More than routing takes, or groups of no tokens.
    #[error(
        "{tokens} tokens of {top_k} experts each, of {experts}: there can be {most} experts, and 2^31 - 1 assignments"
    )]
    Routing {
        /// Tokens.
        tokens: usize,
        /// Experts of a token.
        top_k: usize,
        /// Experts of the layer.
        experts: usize,
        /// Experts, at most.
        most: usize,
    },
    /// A matrix is no stack of experts' matrices.
    #[error(
        "{found} rows are not those of {experts} matrices of {rows} rows, each of whole strips of 32"
    )]
    Experts {
        /// Experts, or twice as many halves.
        experts: usize,
        /// Rows of each.
        rows: usize,
        /// Rows that there are.
        found: usize,
    },
    /// Weights that do not fall into two halves of whole strips.
    #[error("the gate's half of {rows} output features is no multiple of 32 features")]
    Gated {
        /// Rows of the weights.
        rows: usize,
    },
    /// A kernel does not take so many input features.
    #[error("{kernel} takes multiples of 8 input features, not {cols}")]
    Columns {
        /// The kernel.
        kernel: &'static str,
        /// Input features, K.
        cols: usize,
    },
    /// A plan does not fit the call.
    #[error("the plan is for {what} {expected}, not {got}")]
    PlanMismatch {
        /// What differs.
        what: &'static str,
        /// What it is for.
        expected: String,
        /// What the call has.
        got: String,
    },
    /// An operand's length does not fit.
    #[error("{operand} must have {expected} values, not {got}")]
    Length {
        /// The operand.
        operand: Operand,
        /// Values that are needed.
        expected: Need,
        /// Values that it has.
        got: usize,
    },
    /// Rows start too close to one another, or too far apart.
    #[error("rows of {operand} cannot start {stride} values apart, but {least} to {most}")]
    Stride {
        /// The operand.
        operand: Operand,
        /// The stride, in values.
        stride: usize,
        /// The smallest: a row.
        least: usize,
        /// The largest.
        most: usize,
    },
    /// An address, or a stride, is not aligned.
    #[error(
        "{operand} must be aligned to {align} bytes: at {address:#x}, rows {pitch} bytes apart"
    )]
    Alignment {
        /// The operand.
        operand: Operand,
        /// Bytes to which it must be aligned.
        align: usize,
        /// Where it is.
        address: u64,
        /// Bytes from row to row; 0 where it has none.
        pitch: usize,
    },
    /// An operand belongs to another device, or another context of it.
    #[error("{operand} belongs to another device or context than the weights")]
    Context {
        /// The operand.
        operand: Operand,
    },
    /// An operand shares memory with the outputs.
    #[error("the outputs overlap {operand}")]
    Overlap {
        /// The operand.
        operand: Operand,
    },
    /// An operand is missing, or its address null.
    #[error("{operand}: there is none, or it is null")]
    Missing {
        /// The operand.
        operand: Operand,
    },
    /// The workspace is too small.
    #[error("the workspace has {got} {what}, and {needed} are needed")]
    WorkspaceTooSmall {
        /// Of what.
        what: &'static str,
        /// How much is needed.
        needed: usize,
        /// How much there is.
        got: usize,
    },
    /// The workspace serves another stream.
    #[error("the workspace is used by another stream; each needs its own")]
    WorkspaceInUse,
    /// A handle that is another stream in each thread, so that nothing can be bound to it.
    #[error("the per-thread default stream is another one in each thread; name a stream")]
    ThreadStream,
    /// A layer has no plan yet, and none can be made while the stream is captured.
    #[error("no plan for {tokens} tokens yet: call Linear::prepare before capturing a graph")]
    NotPrepared {
        /// Tokens of the call.
        tokens: usize,
    },
    /// What waits for the device cannot be captured.
    #[error("weights cannot be encoded while a graph is captured: their size is not known before")]
    Captured,
    /// A bias for weights without input features.
    #[error("weights without input features take no bias")]
    EmptyBias,
    /// Weights that a plan cannot be made for.
    #[error("weights of {rows} x {cols} have no elements to multiply by")]
    EmptyWeights {
        /// Output features, M.
        rows: usize,
        /// Input features, K.
        cols: usize,
    },
    /// There can be no such compressed matrix.
    #[error(transparent)]
    Weights(crate::Error),
    /// A compressed matrix that was checked is not what it was: its file is being written to.
    #[error("the matrix changed after it was checked: patch offset {tile}")]
    Changed {
        /// The tile whose offset is wrong.
        tile: usize,
    },
    /// A table of tuned launches is refused.
    #[error(transparent)]
    Tuning(#[from] TuningError),
    /// What the harness was asked for does not exist.
    #[error("{0}")]
    Config(String),
}

impl GpuError {
    pub(super) fn mismatch(
        what: &'static str,
        expected: impl fmt::Display,
        got: impl fmt::Display,
    ) -> Self {
        Self::PlanMismatch {
            what,
            expected: expected.to_string(),
            got: got.to_string(),
        }
    }
}

/// Something that a call uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Operand {
    /// X.
    Activations,
    /// Y, or decompressed weights.
    Outputs,
    /// The bias.
    Bias,
    /// The compressed weights.
    Weights,
    /// Dense weights, to be compressed.
    Dense,
    /// Where tokens go.
    Routing,
    /// The workspace.
    Workspace,
    /// The workspace's memory for dense weights.
    DenseMemory,
    /// The stream.
    Stream,
    /// What a kernel for measurements reads.
    Data,
}

impl fmt::Display for Operand {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Self::Activations => "the activations",
            Self::Outputs => "the outputs",
            Self::Bias => "the bias",
            Self::Weights => "the weights",
            Self::Dense => "the dense weights",
            Self::Routing => "the routing",
            Self::Workspace => "the workspace",
            Self::DenseMemory => "the memory for dense weights",
            Self::Stream => "the stream",
            Self::Data => "the data",
        })
    }
}

/// How many values an operand must have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// Just as many.
    Exactly(usize),
    /// As many or more.
    AtLeast(usize),
    /// A multiple.
    MultipleOf(usize),
    /// More than there can be.
    Overflow,
}

impl fmt::Display for Need {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Exactly(values) => write!(f, "{values}"),
            Self::AtLeast(values) => write!(f, "at least {values}"),
            Self::MultipleOf(values) => write!(f, "a multiple of {values}, and more than none,"),
            Self::Overflow => f.write_str("more than memory can have"),
        }
    }
}
