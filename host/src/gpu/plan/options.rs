use super::{
    Choice, Hindrance, Plan, Tuning, choose, measured::is_decoupled_faster, tuning::choose_tuned,
    wgmma,
};
use crate::gpu::{error::GpuError, matrix::DeviceMatrix, operands::check_tokens};

/// What a plan may be, for [`Plan::new`]: by default the kernel that was measured or estimated to be the
/// fastest for so many tokens, straight from the compressed weights.
#[derive(Clone, Debug, Default)]
pub struct PlanOptions {
    way: Way,
    tuning: Option<Tuning>,
    dense_bytes: usize,
}

/// Who chooses, and among what.
#[derive(Clone, Debug, Default)]
enum Way {
    /// The dispatch.
    #[default]
    Best,
    /// The caller, a kernel.
    Kernel(String),
    /// The caller, decompression to memory and then cuBLASLt.
    Decoupled,
    /// The caller, outputs that do not depend on other tokens of the call.
    BatchInvariant,
}

impl PlanOptions {
    /// Takes launches that `zipserv tune` found, where the table has weights of this shape: that for
    /// `n` tokens or, where it has more tokens only, their launch if the plan without the table is the
    /// same for both numbers.
    #[must_use]
    pub fn tuning(self, tuning: &Tuning) -> Self {
        let tuning = Some(tuning.clone());
        Self { tuning, ..self }
    }

    /// Also weighs decompression of the weights to a workspace with so many bytes
    /// [for that](crate::gpu::Workspace::with_dense), followed by cuBLASLt: whichever was measured to
    /// be faster on an H100 or, for kernels that take tokens in slices, estimated. If that is the
    /// latter, but memory is short of
    /// [`dense_workspace_bytes`](DeviceMatrix::dense_workspace_bytes) or cuBLASLt cannot be used, the
    /// plan is the former, and its `Display` says why.
    ///
    /// The first plan that needs it loads cuBLASLt (`libcublasLt.so`), and each lets it choose its
    /// kernels, which takes the host a while.
    #[must_use]
    pub fn dense_workspace(self, bytes: usize) -> Self {
        Self {
            dense_bytes: bytes,
            ..self
        }
    }

    /// Launches by which the bits of a token's outputs do not depend on the other tokens of the call:
    /// for any number of tokens, in groups of up to 256 that follow one another, each of which reads
    /// all weights. It leaves no choice: tables and memory make no difference.
    ///
    /// A token has the same bits whatever the number of tokens and its place among them, with the
    /// same weights, version of the kernels, GPU model with as many SMs, and epilogue: bias, type of
    /// outputs, accumulation, and what is added. Strides, addresses and dependent launch make no
    /// difference. The bits are not those of other plans, which add up in other orders, and need not
    /// be those of another GPU model.
    ///
    /// A call refuses activations whose rows are not aligned to 16 bytes, which other plans take some
    /// other way; so rows of a K that is no multiple of 8 must lie
    /// [apart](crate::gpu::Operands::x_stride). The kernels are for Hopper.
    #[must_use]
    pub fn batch_invariant(self) -> Self {
        self.way(Way::BatchInvariant)
    }

    /// The launch of a named kernel; `zipgemm` kernels take more tokens than they are made for in
    /// slices.
    #[must_use]
    pub fn kernel(self, name: impl Into<String>) -> Self {
        self.way(Way::Kernel(name.into()))
    }

    /// Decompression of the weights to the [workspace](crate::gpu::Workspace::with_dense), followed by
    /// cuBLASLt, for `n` tokens and no other number. cuBLASLt chooses its kernels when the plan is
    /// made, for outputs of both types, with and without a bias, aligned and not. A call with a bias on
    /// BF16 outputs is fused all the same, for there cuBLASLt rounds twice.
    #[must_use]
    pub fn decoupled(self) -> Self {
        self.way(Way::Decoupled)
    }

    fn way(self, way: Way) -> Self {
        Self { way, ..self }
    }

    /// Whether a plan is for any number of tokens.
    pub(in crate::gpu) fn is_batch_invariant(&self) -> bool {
        matches!(self.way, Way::BatchInvariant)
    }
}

impl Plan {
    /// Chooses kernel and launch for `n` tokens, 1 to [`MAX_TOKENS`](crate::gpu::MAX_TOKENS), whose
    /// activations follow one another; [`Plan::run`] says what becomes of others. It loads the
    /// kernel, which the driver may have to compile first.
    ///
    /// # Errors
    /// [`GpuError::Tokens`] when `n` is 0 or too large; [`GpuError::NoKernel`] when the device lacks
    /// what is asked for, and [`GpuError::Columns`] when it is not for so many input features;
    /// [`GpuError::EmptyWeights`], [`GpuError::NoLibrary`], [`GpuError::NoAlgorithm`] and
    /// [`GpuError::Cublas`] for decoupled plans; [`GpuError::Load`] and [`GpuError::Driver`].
    pub fn new(weights: &DeviceMatrix, n: usize, options: &PlanOptions) -> Result<Self, GpuError> {
        check_tokens(n)?;
        match &options.way {
            Way::Kernel(kernel) => Self::with_kernel(weights, n, kernel),
            Way::Decoupled => Self::decoupled(weights, n),
            Way::BatchInvariant => Self::batch_invariant(weights),
            Way::Best if options.dense_bytes > 0 => best_within(weights, n, options),
            Way::Best => best_fused(weights, n, options.tuning.as_ref()),
        }
    }
}

/// The best that reads compressed weights.
fn best_fused(weights: &DeviceMatrix, n: usize, tuning: Option<&Tuning>) -> Result<Plan, GpuError> {
    let default = |n| choose(weights, n, wgmma::can_read(0, weights.cols()));
    let Some(tuning) = tuning else {
        return default(n);
    };
    let size = (weights.rows(), weights.cols());
    choose_tuned(tuning.table(), size, n, default, |launch| {
        Plan::tuned(weights, n, launch)
    })
}

/// The best of all.
fn best_within(weights: &DeviceMatrix, n: usize, options: &PlanOptions) -> Result<Plan, GpuError> {
    let fused = best_fused(weights, n, options.tuning.as_ref());
    if let Ok(plan) = &fused
        && !is_decoupled_faster(plan.kernel(), weights.cols(), n)
    {
        return fused;
    }
    let (there, needed) = (options.dense_bytes, weights.dense_workspace_bytes());
    let hindrance = if there < needed {
        Hindrance::Memory { there, needed }
    } else {
        match (Plan::decoupled(weights, n), &fused) {
            (Ok(plan), _) => {
                return Ok(Plan {
                    choice: Choice::PastFused,
                    ..plan
                });
            }
            (Err(error), Err(_)) => return Err(error),
            (Err(GpuError::NoLibrary { .. }), Ok(_)) => Hindrance::Library,
            (Err(_), Ok(_)) => Hindrance::Choice,
        }
    };
    Ok(Plan {
        hindrance: Some(hindrance),
        ..fused?
    })
}
