//! Plans: which kernel multiplies by weights of a shape and so many tokens, and how it is launched.

pub(super) mod candidates;
pub(super) mod decoupled;
mod invariant;
mod measured;
mod mma;
mod options;
mod tuning;
pub(super) mod wgmma;

pub(super) use self::{
    decoupled::run_decoupled,
    invariant::run_invariant,
    mma::{MmaPlan, run_mma, tokens as mma_tokens},
    wgmma::{can_read, run_wgmma},
};
pub use self::{options::PlanOptions, tuning::Tuning};

use std::fmt;

use zipserv_gpu::launch::{GEMMS, PREFILLS};

use self::{
    decoupled::DecoupledPlan,
    invariant::InvariantPlan,
    mma::tokens,
    wgmma::{WgmmaPlan, wgmma_plan},
};
use super::{
    device::Device, error::GpuError, family::Family, matrix::DeviceMatrix, operands::check_tokens,
    table::TunedLaunch,
};

/// What a multiplication launches: chosen once for weights of a shape and a number of tokens, by
/// [`Plan::new`]; `Display` says what and why. [`Plan::run`] multiplies.
///
/// A plan is for one [`Device`], whose kernels it names, and for one number of tokens, unless it is
/// [batch-invariant](PlanOptions::batch_invariant). Others are refused, unless they take as many
/// launches of its kernel, or output tiles, as that number does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// [`Device::id`].
    device: u64,
    pub(super) kind: Kind,
    pub(super) pdl: bool,
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
    Mma(MmaPlan),
    /// A kernel for many, of activations that [`wgmma::can_read`].
    Wgmma(WgmmaPlan),
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
    /// [`measured::is_decoupled_faster`].
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
/// Measured on an H200, 17 layers (results/h200-2026-11-29-tune.json, results/h200-2026-11-30-gemm.json).
/// For 16 tokens `prefill_n16` has 1.04 times the speed of `zipgemm_n16_2x4x2`, 0.99 to 1.10 times on the 14
/// layers of more than 4096 features. Both were compared for 9 to 15 tokens on three layers only, in
/// different runs (docs/lab/2026-11-kernels.md).
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

/// Chooses; with `many`, kernels for many tokens count too.
pub(super) fn choose(weights: &DeviceMatrix, n: usize, many: bool) -> Result<Plan, GpuError> {
    check_tokens(n)?;
    let device = weights.device();
    let many = many && PREFILLS.iter().any(|(name, _)| device.has(name));
    let fits = |row: &&Measured| {
        n <= row.tokens && weights.rows() <= row.features && device.has(row.kernel)
    };
    if let Some(row) = MEASURED.iter().find(fits) {
        return Ok(Plan {
            choice: Choice::Measured,
            ..Plan::with_kernel(weights, n, row.kernel)?
        });
    }
    if many {
        let kind = Kind::Wgmma(wgmma_plan(weights, n)?);
        return Ok(Plan::of(device, kind, Choice::Tiles));
    }
    let kernels = || GEMMS.iter().filter(|(name, _)| device.has(name));
    let most = kernels().map(|(_, shape)| tokens(shape)).max();
    let most = most.ok_or_else(|| device.no_kernel("zipgemm"))?;
    // Of equals, the first is the minimum.
    let (name, _) = kernels()
        .filter(|(_, shape)| n.min(most) <= tokens(shape))
        .min_by_key(|(_, shape)| shape.n_tiles)
        .expect("one takes the most tokens");
    let choice = match n <= most {
        true => Choice::First,
        false => Choice::Slices,
    };
    let kind = Kind::Mma(MmaPlan::with_kernel(weights, n, name)?);
    Ok(Plan::of(device, kind, choice))
}

impl Plan {
    fn of(device: &Device, kind: Kind, choice: Choice) -> Self {
        Self {
            device: device.id(),
            kind,
            // The portable kernels know of no kernel before them.
            pdl: device.family() == Family::Hopper,
            choice,
            hindrance: None,
        }
    }

    pub(super) fn asked(device: &Device, kind: Kind) -> Self {
        Self::of(device, kind, Choice::Asked)
    }

    /// Every kernel that a plan for `device` can have, with the tokens that one launch takes, or
    /// those of an output tile where a launch takes any number.
    pub fn kernels(device: &Device) -> impl Iterator<Item = (&'static str, usize)> {
        let few = GEMMS.iter().map(|(name, shape)| (*name, tokens(shape)));
        let many = PREFILLS.iter().map(|(name, shape)| (*name, shape.tokens));
        few.chain(many).filter(|(name, _)| device.has(name))
    }

    /// The launch of a named kernel.
    fn with_kernel(weights: &DeviceMatrix, n: usize, kernel: &str) -> Result<Self, GpuError> {
        check_tokens(n)?;
        let cols = weights.cols();
        let prefill = PREFILLS.iter().find(|(name, _)| *name == kernel);
        let kind = match prefill {
            None => Kind::Mma(MmaPlan::with_kernel(weights, n, kernel)?),
            Some(_) if wgmma::can_read(0, cols) => {
                Kind::Wgmma(WgmmaPlan::with_kernel(weights, n, kernel)?)
            }
            Some(&(kernel, _)) => return Err(GpuError::Columns { kernel, cols }),
        };
        Ok(Self::of(weights.device(), kind, Choice::Asked))
    }

    /// A launch for `n` tokens, such as a [`Tuning`] or [`Candidates`](super::tuning::Candidates) have,
    /// on no more thread blocks than the device holds at a time, whatever a file says.
    ///
    /// # Errors
    /// As [`Plan::new`] for a named kernel.
    pub fn tuned(weights: &DeviceMatrix, n: usize, launch: &TunedLaunch) -> Result<Self, GpuError> {
        let plan = Self::with_kernel(weights, n, &launch.kernel)?;
        let blocks = match &plan.kind {
            Kind::Mma(own) => launch.blocks.min(own.blocks),
            _ => launch.blocks,
        };
        let plan = plan.with_blocks(blocks);
        let plan = match launch.shared_tiles {
            Some(tiles) => plan.with_shared_tiles(tiles),
            None => plan,
        };
        Ok(Self {
            choice: Choice::Tuned,
            ..plan
        })
    }

    fn decoupled(weights: &DeviceMatrix, n: usize) -> Result<Self, GpuError> {
        check_tokens(n)?;
        let kind = Kind::Decoupled(DecoupledPlan::new(weights, n)?);
        Ok(Self {
            pdl: false,
            ..Self::of(weights.device(), kind, Choice::Asked)
        })
    }

    fn batch_invariant(weights: &DeviceMatrix) -> Result<Self, GpuError> {
        let kind = Kind::Invariant(InvariantPlan::new(weights)?);
        Ok(Self::of(weights.device(), kind, Choice::Asked))
    }

    /// An error unless it is for this device.
    pub(super) fn check_device(&self, device: &Device) -> Result<(), GpuError> {
        match self.device == device.id() {
            true => Ok(()),
            false => Err(GpuError::mismatch(
                "another device, or another",
                "opening of it".to_owned(),
                format!("{device:?}"),
            )),
        }
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
            Kind::Mma(plan) => Kind::Mma(plan.with_blocks(blocks)),
            Kind::Wgmma(plan) => {
                let cluster = plan.shape.cluster as u32;
                Kind::Wgmma(plan.with_clusters(blocks / cluster))
            }
            Kind::Invariant(_) | Kind::Decoupled(_) => self.kind,
        };
        Self { kind, ..self }
    }

    /// The same with or without programmatic dependent launch, which decoupled plans never have.
    #[must_use]
    pub fn with_pdl(self, pdl: bool) -> Self {
        let pdl = pdl && !self.is_decoupled();
        Self { pdl, ..self }
    }

    /// The same with so many output tiles shared along K, at most all of them. Only kernels for
    /// many tokens have them; a batch-invariant plan stays as it is.
    #[must_use]
    pub fn with_shared_tiles(self, tiles: u32) -> Self {
        let kind = match self.kind {
            Kind::Wgmma(plan) => Kind::Wgmma(plan.with_shared_tiles(tiles)),
            Kind::Mma(_) | Kind::Invariant(_) | Kind::Decoupled(_) => self.kind,
        };
        Self { kind, ..self }
    }

    /// Numbers of shared output tiles that are worth a try: none, those left over when whole
    /// ones go round, and as many as there are clusters more.
    pub fn numbers_of_shared_tiles(&self) -> Vec<u32> {
        match self.kind {
            Kind::Mma(_) | Kind::Invariant(_) | Kind::Decoupled(_) => Vec::new(),
            Kind::Wgmma(plan) => {
                let rest = plan.tiles % plan.clusters;
                vec![0, rest, plan.tiles.min(rest + plan.clusters)]
            }
        }
    }

    /// The kernel's name; `batch_invariant` and `decoupled` for plans that are.
    pub fn kernel(&self) -> &'static str {
        match &self.kind {
            Kind::Mma(plan) => plan.kernel,
            Kind::Wgmma(plan) => plan.kernel,
            Kind::Invariant(_) => "batch_invariant",
            Kind::Decoupled(_) => "decoupled",
        }
    }

    /// Thread blocks of a launch; 0 of a decoupled plan, which leaves them to others.
    pub fn blocks(&self) -> u32 {
        match &self.kind {
            Kind::Mma(plan) => plan.blocks,
            Kind::Wgmma(plan) => plan.blocks(),
            Kind::Invariant(plan) => plan.launch.blocks(),
            Kind::Decoupled(_) => 0,
        }
    }

    /// Output tiles that thread blocks share along K; none of a kernel for few tokens, whose
    /// thread blocks share all there is, nor of a decoupled plan.
    pub fn shared_tiles(&self) -> Option<u32> {
        match &self.kind {
            Kind::Mma(_) | Kind::Decoupled(_) => None,
            Kind::Wgmma(plan) => Some(plan.shared_tiles),
            Kind::Invariant(plan) => Some(plan.launch.shared_tiles),
        }
    }

    /// All of these: what [`Plan::tuned`] makes this plan of again.
    pub fn launch(&self) -> TunedLaunch {
        TunedLaunch {
            kernel: self.kernel().to_owned(),
            blocks: self.blocks(),
            shared_tiles: self.shared_tiles(),
        }
    }

    /// Whether the kernel overlaps the end of the one before it in the stream (programmatic
    /// dependent launch).
    pub fn is_pdl(&self) -> bool {
        self.pdl
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
            Kind::Mma(plan) => plan.fmt(f)?,
            Kind::Wgmma(plan) => plan.fmt(f)?,
            Kind::Invariant(plan) => plan.fmt(f)?,
            Kind::Decoupled(plan) => plan.fmt(f)?,
        }
        if self.is_pdl() {
            f.write_str(", pdl")?;
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
