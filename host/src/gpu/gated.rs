use std::ptr;

use zipserv_gpu::{
    args::{GateArgs, Output},
    launch::{GATE_FEATURES, GEMMS, Gemm},
    layout::TILE_ROWS,
};

use super::{
    device::Device,
    driver::RawStream,
    error::{GpuError, Operand},
    family::Family,
    matrix::DeviceMatrix,
    operands::{OutputType, RawOperands, check_aligned, check_stride, check_tokens},
    plan::{Kind, MmaPlan, Plan, PlanOptions, can_read, mma_tokens, run_mma, run_wgmma},
    workspace::Workspace,
};

/// How a gated MLP's first product is made: Y = silu(X G^T) x (X U^T), of weights that have the gate's features G in
/// their first half and U in the second.
///
/// For up to 16 tokens, and on Hopper mostly for up to 64, it is one launch, whose epilogue does the rest. For more it is
/// a [`Plan`]'s, whose outputs go to scratch memory as BF16, and that of `gate`. Both round the products to BF16 before
/// they go on in FP32. The second is what batch-invariant plans do for any number of tokens: which thread blocks share an
/// output's sum is not the same in both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GatedPlan {
    plan: Plan,
    is_fused: bool,
    tokens: usize,
}

/// Operands of [`GatedPlan::run_raw`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RawGated {
    /// Activations: N rows of K BF16.
    pub x: u64,
    /// Activations from the start of a row to that of the next.
    pub x_stride: usize,
    /// Tokens, N.
    pub n: usize,
    /// Outputs: N rows of M / 2 BF16 that follow one another, aligned to 16 bytes.
    pub y: u64,
    /// [`GatedPlan::scratch_values`] BF16, aligned to 16 bytes.
    pub scratch: u64,
}

/// The kernel that gates where products do not.
const GATE: &str = "gate";
/// Tokens up to which the kernel for few of them gates, whatever a plan has for the product alone.
const MMA_TOKENS: usize = 8;
/// Tokens up to which it does if a plan has no other that can. For more, kernels for many tokens are faster on most
/// layers, also with a launch of `gate`.
const MOST_MMA_TOKENS: usize = 16;

impl GatedPlan {
    /// A plan for weights and `n` tokens.
    ///
    /// # Errors
    /// [`GpuError::Gated`] when halves of the features are no multiples of 32; as [`Plan::new`].
    pub fn new(weights: &DeviceMatrix, n: usize, options: &PlanOptions) -> Result<Self, GpuError> {
        check_tokens(n)?;
        let rows = weights.rows();
        if !rows.is_multiple_of(2 * TILE_ROWS) || rows == 0 || weights.cols() == 0 {
            return Err(GpuError::Gated { rows });
        }
        let mma = match n <= MOST_MMA_TOKENS && !options.is_batch_invariant() {
            true => Some(gating_mma(weights, n)?),
            false => None,
        };
        let mma = mma.map(|plan| Plan::asked(weights.device(), Kind::Mma(plan)));
        let (plan, is_fused) = match mma {
            Some(plan) if n <= MMA_TOKENS => (plan, true),
            mma => {
                let plan = Plan::new(weights, n, options)?;
                match (plan.kind, mma) {
                    (Kind::Wgmma(of), _) if of.gates() => (plan, true),
                    (_, Some(plan)) => (plan, true),
                    (_, None) => (plan, false),
                }
            }
        };
        Ok(Self {
            plan,
            is_fused,
            tokens: n,
        })
    }

    /// The same with or without programmatic dependent launch.
    #[must_use]
    pub fn with_pdl(self, pdl: bool) -> Self {
        Self {
            plan: self.plan.with_pdl(pdl),
            ..self
        }
    }

    /// Whether launches overlap the end of the one before them.
    pub fn is_pdl(&self) -> bool {
        self.plan.is_pdl()
    }

    /// The plan of the product.
    pub fn product(&self) -> &Plan {
        &self.plan
    }

    /// Whether the product's kernel gates.
    pub fn is_fused(&self) -> bool {
        self.is_fused
    }

    /// BF16 of scratch memory that a call for `n` tokens takes.
    pub fn scratch_values(&self, weights: &DeviceMatrix, n: usize) -> usize {
        match self.is_fused {
            true => 0,
            false => n * weights.rows(),
        }
    }

    /// Multiplies and gates.
    ///
    /// # Errors
    /// As [`Plan::run_raw`], and [`GpuError::Gated`].
    ///
    /// # Safety
    /// As [`Plan::run_raw`], of scratch memory too, which nothing else uses meanwhile.
    pub unsafe fn run_raw(
        &self,
        stream: RawStream,
        weights: &DeviceMatrix,
        operands: &RawGated,
        workspace: &Workspace,
    ) -> Result<(), GpuError> {
        let &RawGated {
            x,
            x_stride,
            n,
            y,
            scratch,
        } = operands;
        let (device, rows, cols) = (weights.device(), weights.rows(), weights.cols());
        if !rows.is_multiple_of(2 * TILE_ROWS) || rows == 0 || cols == 0 {
            return Err(GpuError::Gated { rows });
        }
        let features = rows / 2;
        let product = |y, y_stride| RawOperands {
            x,
            x_stride,
            n,
            y,
            y_stride,
            output: OutputType::Bf16,
            bias: None,
            accumulate: false,
        };
        check_aligned(Operand::Outputs, y, 16)?;
        let _current = device.enter()?;
        if self.is_fused {
            self.plan.check_device(device)?;
            weights.check_context(workspace.device())?;
            check_tokens(n)?;
            check_stride(Operand::Activations, x_stride, cols, 2)?;
            check_aligned(Operand::Activations, x, 2)?;
        }
        let (pdl, fused) = (self.plan.is_pdl(), product(y, features));
        match self.plan.kind {
            Kind::Mma(plan) if self.is_fused => {
                // SAFETY: the caller's promise; outputs have half of the features.
                unsafe { run_mma(stream, &plan, pdl, weights, &fused, true, workspace) }
            }
            Kind::Wgmma(plan) if self.is_fused && can_read(x, x_stride) => {
                // SAFETY: as above.
                unsafe { run_wgmma(stream, &plan, pdl, weights, &fused, true, workspace) }
            }
            Kind::Wgmma(_) if self.is_fused => {
                let plan = gating_mma(weights, n)?;
                // SAFETY: as above.
                unsafe { run_mma(stream, &plan, pdl, weights, &fused, true, workspace) }
            }
            _ => {
                check_aligned(Operand::Data, scratch, 16)?;
                // SAFETY: the caller's promise; scratch memory has room for all features.
                unsafe {
                    let operands = product(scratch, rows);
                    self.plan.run_raw(stream, weights, &operands, workspace)?;
                    device.gate_raw(stream, scratch, y, n, features, self.plan.is_pdl())
                }
            }
        }
    }
}

/// The launch of the kernel for few tokens that gates outputs and takes the fewest, of those that take `n`; if none does,
/// launches of the one that takes most.
///
/// # Errors
/// [`GpuError::NoKernel`]; as [`MmaPlan::with_kernel`].
fn gating_mma(weights: &DeviceMatrix, n: usize) -> Result<MmaPlan, GpuError> {
    let device = weights.device();
    // Row blocks have strips of both halves.
    let gates = |(name, shape): &&(&str, Gemm)| shape.warps_m > 1 && device.has(name);
    let kernels = || GEMMS.iter().filter(gates);
    let kernel = kernels().find(|(_, shape)| n <= mma_tokens(shape));
    let (name, _) = kernel
        .or_else(|| kernels().max_by_key(|(_, shape)| mma_tokens(shape)))
        .ok_or_else(|| device.no_kernel("zipgemm"))?;
    MmaPlan::with_kernel(weights, n, name)
}

impl Device {
    /// `Y = silu(first half) x (second half)` of `n` rows of 2 x `features` BF16 at `x`, to rows of `features` at `y`.
    /// With `pdl`, it starts before the kernel ahead has ended, for which it waits before it reads.
    ///
    /// # Errors
    /// [`GpuError::Alignment`] unless both are aligned to 16 bytes; [`GpuError::Columns`] for features that are no
    /// multiple of 8; [`GpuError::Load`], [`GpuError::Driver`].
    ///
    /// # Safety
    /// When the kernel runs, both have their rows, in the device's context, which `stream` is of too, and do not overlap.
    pub unsafe fn gate_raw(
        &self,
        stream: RawStream,
        x: u64,
        y: u64,
        n: usize,
        features: usize,
        pdl: bool,
    ) -> Result<(), GpuError> {
        check_tokens(n)?;
        check_aligned(Operand::Data, x, 16)?;
        check_aligned(Operand::Outputs, y, 16)?;
        if !features.is_multiple_of(8) || features > u32::MAX as usize / 4 {
            return Err(GpuError::Columns {
                kernel: GATE,
                cols: features,
            });
        }
        let args = GateArgs {
            output: Output {
                y: y as *mut u8,
                bias: ptr::null(),
                pitch: 2 * features as u32,
                is_f32: false,
                accumulate: false,
            },
            x: x as *const u16,
            routed: ptr::null(),
            x_stride: 2 * features as u64,
            features: features as u32,
        };
        // SAFETY: the caller's promise.
        unsafe { self.gate(stream, args, n, pdl) }
    }

    /// Launches `gate` for so many rows.
    ///
    /// # Errors
    /// [`GpuError::Tokens`] for more than a grid has room for; [`GpuError::Load`], [`GpuError::Driver`].
    ///
    /// # Safety
    /// When the kernel runs, inputs, outputs, and the number of rows if it is told, are there, in the device's context,
    /// which `stream` is of too; inputs are aligned to 16 bytes.
    pub(super) unsafe fn gate(
        &self,
        stream: RawStream,
        args: GateArgs,
        rows: usize,
        pdl: bool,
    ) -> Result<(), GpuError> {
        let columns = (args.features as usize).div_ceil(GATE_FEATURES);
        let most = i32::MAX as usize / columns.max(1);
        if rows > most {
            return Err(GpuError::Tokens { tokens: rows, most });
        }
        let blocks = rows * columns;
        if blocks == 0 {
            return Ok(());
        }
        let pdl = pdl && self.family() == Family::Hopper;
        // SAFETY: the caller's promise.
        unsafe { self.launch(GATE, blocks as u32, stream, pdl, args) }
    }
}
