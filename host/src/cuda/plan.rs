use std::fmt;

use zipserv_gpu::launch::{GEMMS, PREFILLS};

use super::{
    CudaError, DeviceMatrix, Family, Gpu,
    decode::{DecodePlan, tokens},
    decoupled::DecoupledPlan,
    dispatch::is_decoupled_faster,
    guard,
    invariant::InvariantPlan,
    prefill::{self, PrefillPlan, prefill_plan},
};
use crate::results::TunedLaunch;

/// Tokens of one call at most.
pub const MAX_TOKENS: usize = 16_384;

/// What a call of [`zipgemm`](super::zipgemm) launches. [`zipgemm_plan`] and
/// [`zipgemm_plan_within`] choose; `Display` says what and why.
///
/// A plan is for one number of tokens, unless it is [batch-invariant](Self::batch_invariant). Others
/// are refused, unless they take as many launches of its kernel, or output tiles, as that number does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    pub(super) kind: Kind,
    pub(super) dependent: bool,
    choice: Choice,
    hindrance: Option<Hindrance>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(
    clippy::large_enum_variant,
    reason = "plans are few, and copies of them convenient"
)]
pub(super) enum Kind {
    /// A kernel for few tokens, which reads any activations.
    Decode(DecodePlan),
    /// A kernel for many, of activations that [`prefill::can_read`].
    Prefill(PrefillPlan),
    /// The kernels for many, of the same activations, in groups.
    Invariant(InvariantPlan),
    /// Decompression to memory, then cuBLASLt, of any activations.
    Decoupled(DecoupledPlan),
}

/// Why weights are not decompressed although that would be preferred.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hindrance {
    /// The workspace has `there` bytes for dense weights.
    Memory { there: usize, needed: usize },
    /// cuBLASLt is missing.
    Library,
    /// It has no kernel for such weights.
    Choice,
}

/// Who chose a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Choice {
    /// A row of [`MEASURED`].
    Measured,
    /// The size of its output tiles.
    Tiles,
    /// The first that takes as many tokens and multiplies no more than it must.
    First,
    /// Nothing takes so many tokens.
    Slices,
    /// [`is_decoupled_faster`].
    PastFused,
    /// A row of a [`Tuning`](super::Tuning).
    Tuned,
    /// The caller.
    Asked,
}

/// A kernel that was measured to be the fastest for some problems.
struct Measured {
    /// Tokens, at most.
    tokens: usize,
    /// Output features, at most.
    features: usize,
    /// The kernel.
    kernel: &'static str,
}

impl Measured {
    /// The kernel, for all weights.
    const fn all(tokens: usize, kernel: &'static str) -> Self {
        Self {
            tokens,
            features: usize::MAX,
            kernel,
        }
    }
}

/// What measurements say; the first row that fits counts, if the device has its kernel. Where none fits, the
/// kernels for many tokens have their own choice of tiles, and the order of [`GEMMS`] decides among
/// those for few.
///
/// Measured on an H200 with the kernels as they are, 17 layers (results/tuned-h200.json, results/gemm_h200.json).
/// For 16 tokens `prefill_n16` has 1.04 times the speed of `zipgemm_n16_2x4x2`, 0.99 to 1.10 times on the 14
/// layers of more than 4096 features. Both were compared for 9 to 15 tokens on three layers only, in
/// different runs (docs/PERFORMANCE.md).
const MEASURED: &[Measured] = &[
    // For one token the tuner found no faster kernel on any layer.
    Measured::all(4, "zipgemm_n8_1x8x2"),
    // For eight 1 to 4 % faster than that on seven layers that were measured with both, though not on 4096 x 11008.
    Measured::all(8, "zipgemm_n8_2x4x2"),
    // 2 to 6 % faster than `prefill_n16` on 4096 x 14336 and 11008, from 3 % faster for nine tokens to 2 %
    // slower for 16 on 4096 x 4096.
    Measured {
        features: 4096,
        ..Measured::all(16, "zipgemm_n16_2x4x2")
    },
];

/// Chooses kernel and launch for `n` tokens, 1 to [`MAX_TOKENS`], whose activations follow one
/// another. [`zipgemm`](super::zipgemm) says what becomes of others.
///
/// # Errors
/// [`CudaError::Argument`] when `n` is 0 or too large, or the device has no kernel.
pub fn zipgemm_plan(gpu: &Gpu, weights: &DeviceMatrix, n: usize) -> Result<Plan, CudaError> {
    choose(gpu, weights, n, prefill::can_read(0, weights.cols()))
}

/// Chooses as [`zipgemm_plan`], or to decompress the weights first, to a workspace with
/// `dense_bytes` [for that](super::Workspace::with_dense), and to let cuBLASLt multiply: whichever
/// was measured to be faster for `n` tokens on an H100 or, for kernels that take them in slices,
/// estimated. If that is the latter, but memory is short of
/// [`dense_workspace_bytes`](DeviceMatrix::dense_workspace_bytes) or cuBLASLt cannot be used, the
/// plan is the former, and its `Display` says why.
///
/// The first call that needs it loads cuBLASLt (`libcublasLt.so`), and each lets it choose its
/// kernels, which takes the host a while.
///
/// # Errors
/// As [`zipgemm_plan`]; where that has no kernel, but there is memory, as [`Plan::decoupled`]; and
/// [`CudaError::Argument`] when cuBLASLt is wanted, but the current context is not that of `gpu`.
pub fn zipgemm_plan_within(
    gpu: &Gpu,
    weights: &DeviceMatrix,
    n: usize,
    dense_bytes: usize,
) -> Result<Plan, CudaError> {
    check_tokens(n)?;
    let fused = zipgemm_plan(gpu, weights, n);
    if let Ok(plan) = &fused
        && !is_decoupled_faster(plan.kernel(), weights.cols(), n)
    {
        return fused;
    }
    let needed = weights.dense_workspace_bytes();
    let hindrance = if dense_bytes < needed {
        Hindrance::Memory {
            there: dense_bytes,
            needed,
        }
    } else {
        guard::current_context(gpu)?;
        match (Plan::decoupled(gpu, weights, n), &fused) {
            (Ok(plan), _) => {
                return Ok(Plan {
                    choice: Choice::PastFused,
                    ..plan
                });
            }
            (Err(error), Err(_)) => return Err(error),
            (Err(_), Ok(_)) if gpu.cublaslt().is_err() => Hindrance::Library,
            (Err(_), Ok(_)) => Hindrance::Choice,
        }
    };
    Ok(Plan {
        hindrance: Some(hindrance),
        ..fused?
    })
}

/// Chooses; with `many`, kernels for many tokens count too.
pub(super) fn choose(
    gpu: &Gpu,
    weights: &DeviceMatrix,
    n: usize,
    many: bool,
) -> Result<Plan, CudaError> {
    check_tokens(n)?;
    let many = many && PREFILLS.iter().any(|(name, _)| gpu.has(name));
    let fits =
        |row: &&Measured| n <= row.tokens && weights.rows() <= row.features && gpu.has(row.kernel);
    if let Some(row) = MEASURED.iter().find(fits) {
        return Ok(Plan {
            choice: Choice::Measured,
            ..Plan::with_kernel(gpu, weights, n, row.kernel)?
        });
    }
    if many {
        let kind = Kind::Prefill(prefill_plan(gpu, weights, n)?);
        return Ok(Plan::new(gpu, kind, Choice::Tiles));
    }
    let kernels = || GEMMS.iter().filter(|(name, _)| gpu.has(name));
    let most = kernels().map(|(_, shape)| tokens(shape)).max();
    let most = most.ok_or_else(|| {
        CudaError::Argument(format!(
            "there is no ZipGEMM kernel for this device ({}) yet; `decompress` works on it",
            gpu.family()
        ))
    })?;
    // Of equals, the first is the minimum.
    let (name, _) = kernels()
        .filter(|(_, shape)| n.min(most) <= tokens(shape))
        .min_by_key(|(_, shape)| shape.n_tiles)
        .expect("one takes the most tokens");
    let choice = match n <= most {
        true => Choice::First,
        false => Choice::Slices,
    };
    let kind = Kind::Decode(DecodePlan::with_kernel(gpu, weights, n, name)?);
    Ok(Plan::new(gpu, kind, choice))
}

/// Fails for a number of tokens that no call takes.
pub(super) fn check_tokens(n: usize) -> Result<(), CudaError> {
    if (1..=MAX_TOKENS).contains(&n) {
        return Ok(());
    }
    Err(CudaError::Argument(format!(
        "{n} tokens: ZipGEMM takes 1 to {MAX_TOKENS} at a time"
    )))
}

fn is_prefill(kernel: &str) -> bool {
    PREFILLS.iter().any(|(name, _)| *name == kernel)
}

impl Plan {
    fn new(gpu: &Gpu, kind: Kind, choice: Choice) -> Self {
        Self {
            kind,
            // The portable kernels know of no kernel before them.
            dependent: gpu.family() == Family::Hopper,
            choice,
            hindrance: None,
        }
    }

    /// Every kernel that a plan for `gpu` can have, with the tokens that one launch takes, or
    /// those of an output tile where a launch takes any number.
    pub fn kernels(gpu: &Gpu) -> impl Iterator<Item = (&'static str, usize)> {
        let few = GEMMS.iter().map(|(name, shape)| (*name, tokens(shape)));
        let many = PREFILLS.iter().map(|(name, shape)| (*name, shape.tokens));
        few.chain(many).filter(|(name, _)| gpu.has(name))
    }

    /// The launch of a named kernel for `n` tokens; `zipgemm_n` kernels take more tokens than
    /// they are made for in slices.
    ///
    /// # Errors
    /// [`CudaError::Argument`] when `n` is 0 or more than [`MAX_TOKENS`], the device has no such
    /// kernel, or that cannot read activations of so many columns.
    pub fn with_kernel(
        gpu: &Gpu,
        weights: &DeviceMatrix,
        n: usize,
        kernel: &str,
    ) -> Result<Self, CudaError> {
        check_tokens(n)?;
        let kind = if !is_prefill(kernel) {
            Kind::Decode(DecodePlan::with_kernel(gpu, weights, n, kernel)?)
        } else if prefill::can_read(0, weights.cols()) {
            Kind::Prefill(PrefillPlan::with_kernel(gpu, weights, n, kernel)?)
        } else {
            let k = weights.cols();
            return Err(CudaError::Argument(format!(
                "{kernel} takes multiples of 8 input features, not {k}"
            )));
        };
        Ok(Self::new(gpu, kind, Choice::Asked))
    }

    /// A launch of a [`Tuning`](super::Tuning) for `n` tokens, on no more thread blocks than the
    /// device holds at a time, whatever a file says.
    ///
    /// # Errors
    /// As [`Plan::with_kernel`].
    pub(crate) fn tuned(
        gpu: &Gpu,
        weights: &DeviceMatrix,
        n: usize,
        launch: &TunedLaunch,
    ) -> Result<Self, CudaError> {
        let plan = Self::with_kernel(gpu, weights, n, &launch.kernel)?;
        let blocks = match &plan.kind {
            Kind::Decode(own) => launch.blocks.min(own.blocks),
            _ => launch.blocks,
        };
        let plan = plan.with_blocks(blocks);
        let plan = match launch.split {
            Some(split) => plan.with_split(split),
            None => plan,
        };
        Ok(Self {
            choice: Choice::Tuned,
            ..plan
        })
    }

    /// Decompression of the weights to the [workspace](super::Workspace::with_dense), followed by
    /// cuBLASLt, for `n` tokens and no other number. cuBLASLt chooses its kernels here, for outputs
    /// of both types, with and without a bias, aligned and not. A call with a bias on BF16
    /// outputs is fused all the same, for there cuBLASLt rounds twice.
    ///
    /// # Errors
    /// [`CudaError::Argument`] when `n` is 0 or more than [`MAX_TOKENS`], there are no weights, the
    /// current context is not that of `gpu`, or cuBLASLt is missing or makes no choice;
    /// [`CudaError::CublasLt`] from the library.
    pub fn decoupled(gpu: &Gpu, weights: &DeviceMatrix, n: usize) -> Result<Self, CudaError> {
        check_tokens(n)?;
        Ok(Self {
            kind: Kind::Decoupled(DecoupledPlan::new(gpu, weights, n)?),
            dependent: false,
            choice: Choice::Asked,
            hindrance: None,
        })
    }

    /// Launches by which the bits of a token's outputs do not depend on the other tokens of the call:
    /// for any number of tokens, in groups of up to 256 that follow one another, each of which reads
    /// all weights.
    ///
    /// A token has the same bits whatever the number of tokens and its place among them, with the
    /// same weights, version of the kernels, GPU model with as many multiprocessors, and epilogue:
    /// bias, type of outputs, accumulation, and what is added. Strides, addresses and dependent
    /// launch make no difference. The bits are not those of other plans, which add up in other
    /// orders, and need not be those of another GPU model.
    ///
    /// A call refuses activations whose rows are not aligned to 16 bytes, which other plans take some
    /// other way; so rows of a K that is no multiple of 8 must lie
    /// [apart](super::GemmOperands::x_stride).
    ///
    /// # Errors
    /// [`CudaError::Argument`] when the device lacks the kernels, which are for Hopper.
    pub fn batch_invariant(gpu: &Gpu, weights: &DeviceMatrix) -> Result<Self, CudaError> {
        let kind = Kind::Invariant(InvariantPlan::new(gpu, weights)?);
        Ok(Self::new(gpu, kind, Choice::Asked))
    }

    /// Whether the weights are decompressed to memory first, which the workspace must
    /// [have](super::Workspace::with_dense).
    pub fn is_decoupled(&self) -> bool {
        matches!(self.kind, Kind::Decoupled(_))
    }

    /// The same on at most so many thread blocks, at least one, or one cluster of them. A decoupled
    /// plan stays as it is, and so does a batch-invariant one.
    #[must_use]
    pub fn with_blocks(self, blocks: u32) -> Self {
        let kind = match self.kind {
            Kind::Decode(plan) => Kind::Decode(plan.with_blocks(blocks)),
            Kind::Prefill(plan) => {
                let cluster = plan.shape.cluster as u32;
                Kind::Prefill(plan.with_clusters(blocks / cluster))
            }
            Kind::Invariant(_) | Kind::Decoupled(_) => self.kind,
        };
        Self { kind, ..self }
    }

    /// The same with or without programmatic dependent launch, which decoupled plans never have.
    #[must_use]
    pub fn with_dependent(self, dependent: bool) -> Self {
        let dependent = dependent && !self.is_decoupled();
        Self { dependent, ..self }
    }

    /// The same with so many output tiles shared along K, at most all of them. Only kernels for
    /// many tokens have them; a batch-invariant plan stays as it is.
    #[must_use]
    pub fn with_split(self, tiles: u32) -> Self {
        let kind = match self.kind {
            Kind::Prefill(plan) => Kind::Prefill(plan.with_split(tiles)),
            Kind::Decode(_) | Kind::Invariant(_) | Kind::Decoupled(_) => self.kind,
        };
        Self { kind, ..self }
    }

    /// Numbers of shared output tiles that are worth a try: none, those left over when whole
    /// ones go round, and as many as there are clusters more.
    #[cfg(feature = "bench")]
    pub(crate) fn splits(&self) -> Vec<u32> {
        match self.kind {
            Kind::Decode(_) | Kind::Invariant(_) | Kind::Decoupled(_) => Vec::new(),
            Kind::Prefill(plan) => {
                let rest = plan.tiles % plan.clusters;
                vec![0, rest, plan.tiles.min(rest + plan.clusters)]
            }
        }
    }

    /// The kernel's name; `batch_invariant` and `decoupled` for plans that are.
    pub fn kernel(&self) -> &'static str {
        match &self.kind {
            Kind::Decode(plan) => plan.kernel,
            Kind::Prefill(plan) => plan.kernel,
            Kind::Invariant(_) => "batch_invariant",
            Kind::Decoupled(_) => "decoupled",
        }
    }

    /// Thread blocks of a launch; 0 of a decoupled plan, which leaves them to others.
    pub fn blocks(&self) -> u32 {
        match &self.kind {
            Kind::Decode(plan) => plan.blocks,
            Kind::Prefill(plan) => plan.blocks(),
            Kind::Invariant(plan) => plan.launch.blocks(),
            Kind::Decoupled(_) => 0,
        }
    }

    /// Output tiles that thread blocks share along K; none of a kernel for few tokens, whose
    /// thread blocks share all there is, nor of a decoupled plan.
    pub fn split(&self) -> Option<u32> {
        match &self.kind {
            Kind::Decode(_) | Kind::Decoupled(_) => None,
            Kind::Prefill(plan) => Some(plan.split),
            Kind::Invariant(plan) => Some(plan.launch.split),
        }
    }

    /// All of these.
    #[cfg(feature = "bench")]
    pub(crate) fn launch(&self) -> TunedLaunch {
        TunedLaunch {
            kernel: self.kernel().to_owned(),
            blocks: self.blocks(),
            split: self.split(),
        }
    }

    /// Whether the kernel overlaps the end of the one before it in the stream (programmatic
    /// dependent launch).
    pub fn is_dependent(&self) -> bool {
        self.dependent
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let why = match self.choice {
            Choice::Measured => "measured to be the fastest here",
            Choice::Tiles => "its tiles suit so many tokens",
            Choice::First => "the first for so many tokens",
            Choice::Slices => "no kernel here takes so many tokens at a time",
            Choice::PastFused => "preferred to fused kernels for so many tokens",
            Choice::Tuned => "tuned on this device",
            Choice::Asked => "as asked for",
        };
        write!(f, "{} ({why}): ", self.kernel())?;
        match &self.kind {
            Kind::Decode(plan) => plan.fmt(f)?,
            Kind::Prefill(plan) => plan.fmt(f)?,
            Kind::Invariant(plan) => plan.fmt(f)?,
            Kind::Decoupled(plan) => plan.fmt(f)?,
        }
        if self.is_dependent() {
            f.write_str(", dependent launch")?;
        }
        let Some(hindrance) = self.hindrance else {
            return Ok(());
        };
        f.write_str("; decompression to memory, then cuBLASLt, would be preferred, but ")?;
        match hindrance {
            Hindrance::Memory { there, needed } => {
                write!(f, "takes {needed} bytes of workspace, not {there}")
            }
            Hindrance::Library => f.write_str("libcublasLt.so cannot be loaded"),
            Hindrance::Choice => f.write_str("cuBLASLt has no kernel for these weights"),
        }
    }
}
