use std::fmt;

use zipserv_gpu::{
    args::{GemmArgs, Group, GroupedArgs, Output},
    launch::{GROUPED, GROUPED_PREFILLS, Gemm, Prefill},
    layout::TILE_ROWS,
};

use super::{routing::RawRouting, wgmma};
use crate::gpu::{
    driver::RawStream,
    error::{GpuError, Operand},
    family::Family,
    matrix::DeviceMatrix,
    operands::{OutputType, check_aligned, check_stride},
    workspace::Workspace,
};

/// Which kernel multiplies tokens by the matrices of their experts, of an [`ExpertStack`](crate::ExpertStack).
///
/// A plan is for one number of assignments of tokens to experts, more or less: any plan is right for any number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GroupedPlan {
    device: u64,
    kernel: &'static str,
    shape: Shape,
    blocks: u32,
    experts: usize,
    rows: usize,
    cols: usize,
    /// Rows of all, as they are stored.
    stored: usize,
    pdl: bool,
    is_batch_invariant: bool,
}

/// A kernel's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shape {
    /// For few tokens an expert.
    Mma(Gemm),
    /// For many.
    Wgmma(Prefill),
}

impl Shape {
    /// Tokens of an output tile.
    fn tokens(self) -> usize {
        match self {
            Self::Mma(shape) => 8 * shape.n_tiles,
            Self::Wgmma(shape) => shape.tokens,
        }
    }
}

/// Operands of [`GroupedPlan::run_raw`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RawGrouped {
    /// Activations: rows of K BF16.
    pub x: u64,
    /// Activations from the start of a row to that of the next.
    pub x_stride: usize,
    /// Whether rows of activations are those of assignments, in the order of experts; else those of tokens.
    pub x_by_expert: bool,
    /// Outputs, a row for each assignment, in the order of experts.
    pub y: u64,
    /// Outputs from the start of a row to that of the next.
    pub y_stride: usize,
    /// What outputs are.
    pub output: OutputType,
    /// Whether outputs are silu(first half) x (second half) of an expert's M features, M / 2 of them.
    pub is_gated: bool,
    /// Whether the kernel ahead in the stream may be that of [`Device::route_raw`](crate::gpu::Device::route_raw). If it
    /// is another one of this plan's kind, weights are asked for before that has finished.
    pub follows_routing: bool,
    /// [`GroupedPlan::scratch_bytes`] of memory, aligned to 16; anything if those are none.
    pub scratch: u64,
}

/// Assignments for each expert up to which groups of so many tokens are taken. An expert that is asked for at random has
/// half as many again often enough. Measured on an H200 (docs/lab/2026-11-serving.md) at 0.5 to 4, 8, 16, 32, 64 and
/// 256 assignments an expert; where one ends and the next begins lies between. At 4 groups of 8 and 16 are about equal,
/// but where some experts are chosen more often, groups of 8 fall into many.
const GROUPS: [(usize, usize); 5] = [(3, 8), (10, 16), (24, 32), (48, 64), (288, 144)];
/// Tokens of a group where there are more.
const LARGEST: usize = 256;
/// Those of batch-invariant plans, whatever there is: few enough for decoding, and enough for prompts.
const INVARIANT: usize = 64;

impl GroupedPlan {
    /// A plan for the stack of so many experts of `rows` features each, and so many assignments: tokens times the experts
    /// of each.
    ///
    /// # Errors
    /// [`GpuError::Experts`] when the rows are not those of so many experts; [`GpuError::EmptyWeights`];
    /// [`GpuError::NoKernel`], and what loading a kernel fails with.
    pub fn new(
        weights: &DeviceMatrix,
        experts: usize,
        rows: usize,
        assignments: usize,
    ) -> Result<Self, GpuError> {
        let each = assignments.checked_div(experts).unwrap_or(0);
        let fits = GROUPS.iter().find(|(most, _)| each <= *most);
        Self::with_groups(
            weights,
            experts,
            rows,
            fits.map_or(LARGEST, |&(_, tokens)| tokens),
        )
    }

    /// The same, with the sums of a token in an order that does not depend on how many others there are.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn batch_invariant(
        weights: &DeviceMatrix,
        experts: usize,
        rows: usize,
    ) -> Result<Self, GpuError> {
        Ok(Self {
            is_batch_invariant: true,
            ..Self::with_groups(weights, experts, rows, INVARIANT)?
        })
    }

    /// One with groups of up to `tokens` tokens, or what the device has nearest above.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn with_groups(
        weights: &DeviceMatrix,
        experts: usize,
        rows: usize,
        tokens: usize,
    ) -> Result<Self, GpuError> {
        let (device, all, cols) = (weights.device(), weights.rows(), weights.cols());
        let stored = experts.checked_mul(rows.next_multiple_of(TILE_ROWS));
        if experts == 0 || stored != Some(all) {
            return Err(GpuError::Experts {
                experts,
                rows,
                found: all,
            });
        }
        if all == 0 || cols == 0 {
            return Err(GpuError::EmptyWeights { rows: all, cols });
        }
        let kernels = || {
            let many = (GROUPED_PREFILLS.iter()).map(|&(name, shape)| (name, Shape::Wgmma(shape)));
            let few = GROUPED
                .iter()
                .map(|&(name, shape)| (name, Shape::Mma(shape)));
            many.chain(few).filter(|(name, _)| device.has(name))
        };
        let tokens_of = |(_, shape): &(&str, Shape)| shape.tokens();
        let (kernel, shape) = kernels()
            .filter(|kernel| tokens <= tokens_of(kernel))
            .min_by_key(tokens_of)
            .or_else(|| kernels().max_by_key(tokens_of))
            .ok_or_else(|| device.no_kernel("zipgemm_grouped"))?;
        Ok(Self {
            device: device.id(),
            kernel,
            shape,
            blocks: match shape {
                Shape::Mma(_) => device.resident_blocks(kernel)?,
                Shape::Wgmma(shape) => {
                    let cluster = shape.cluster as u32;
                    device.resident_blocks(kernel)? / cluster * cluster
                }
            },
            experts,
            rows,
            cols,
            stored: all,
            pdl: device.family() == Family::Hopper,
            is_batch_invariant: false,
        })
    }

    /// The same with or without programmatic dependent launch.
    #[must_use]
    pub fn with_pdl(self, pdl: bool) -> Self {
        Self { pdl, ..self }
    }

    /// The kernel's name.
    pub fn kernel(&self) -> &'static str {
        self.kernel
    }

    /// Tokens of an expert that are multiplied at once, at most: routing makes groups of as many.
    pub fn group_tokens(&self) -> usize {
        self.shape.tokens()
    }

    /// Whether it takes the assignments of so many tokens [unsorted](RawRouting#structfield.unsorted): those of one, with
    /// the kernel for the fewest tokens an expert.
    pub fn takes_unsorted(&self, tokens: usize) -> bool {
        tokens == 1 && matches!(self.shape, Shape::Mma(shape) if shape.n_tiles == 1)
    }

    /// Bytes of [scratch memory](RawGrouped::scratch) that a call takes.
    pub fn scratch_bytes(&self, operands: &RawGrouped, routing: &RawRouting) -> usize {
        match self.shape {
            Shape::Mma(_) => 0,
            Shape::Wgmma(shape) => {
                let size = (self.rows, self.cols);
                wgmma::Scratch::new(operands, routing.assignments(), size, shape).bytes
            }
        }
    }

    /// `Y[a] = X[t(a)] W[e(a)]^T` for each assignment a of a token to an expert, in the order of experts that `routing`
    /// has; with `is_gated`, silu of the first half of that times the second half. Sums are FP32, and those that are gated
    /// are rounded to BF16 first. It can be captured. With groups of up to 8 tokens it is one launch; with more, on
    /// Hopper, activations are first put into the order of experts, and with more than 64 outputs are gated by a launch
    /// of its own.
    ///
    /// # Errors
    /// [`GpuError::PlanMismatch`] when weights or routing are others than the plan's; [`GpuError::Experts`] when a gated
    /// half is no multiple of 32 features; [`GpuError::Routing`] when there are too many assignments;
    /// [`GpuError::Stride`], [`GpuError::Alignment`]; [`GpuError::WorkspaceTooSmall`]; [`GpuError::Driver`].
    ///
    /// # Safety
    /// - When the kernel runs, `x` and `y` have their rows, in the context of the weights' device, which `stream` is of
    ///   too, and `routing` holds what [`Device::route_raw`](crate::gpu::Device::route_raw) has left.
    /// - `y` and scratch memory overlap nothing else. No other kernel uses `workspace` or scratch memory at the same time.
    ///   Weights, workspace and device live until the kernel has run.
    /// - Unless `follows_routing`, the kernel ahead in the stream is one of a grouped plan that did.
    pub unsafe fn run_raw(
        &self,
        stream: RawStream,
        weights: &DeviceMatrix,
        operands: &RawGrouped,
        routing: &RawRouting,
        workspace: &Workspace,
    ) -> Result<(), GpuError> {
        let device = weights.device();
        weights.check_context(workspace.device())?;
        routing.check()?;
        for (what, expected, got) in [
            (
                "the device of number",
                self.device as usize,
                device.id() as usize,
            ),
            ("so many rows:", self.stored, weights.rows()),
            ("so many columns:", self.cols, weights.cols()),
            ("so many experts:", self.experts, routing.experts),
            (
                "groups of tokens:",
                self.group_tokens(),
                routing.group_tokens,
            ),
        ] {
            if expected != got {
                return Err(GpuError::mismatch(what, expected, got));
            }
        }
        if routing.unsorted.is_some() && !self.takes_unsorted(routing.tokens) {
            return Err(GpuError::mismatch("sorted tokens:", 1, routing.tokens));
        }
        if operands.is_gated && !self.rows.is_multiple_of(2 * TILE_ROWS) {
            return Err(GpuError::Experts {
                experts: 2 * self.experts,
                rows: self.rows / 2,
                found: weights.rows(),
            });
        }
        let (bytes, k) = (operands.output.bytes(), weights.cols());
        let features = self.rows >> u32::from(operands.is_gated);
        check_stride(Operand::Activations, operands.x_stride, k, 2)?;
        check_stride(Operand::Outputs, operands.y_stride, features, bytes)?;
        check_aligned(Operand::Activations, operands.x, 2)?;
        check_aligned(Operand::Outputs, operands.y, bytes)?;
        if routing.assignments() == 0 {
            return Ok(());
        }
        let _current = device.enter()?;
        let pdl = self.pdl && device.family() == Family::Hopper;
        let shape = match self.shape {
            Shape::Mma(shape) => shape,
            Shape::Wgmma(shape) => {
                let kernel = wgmma::Kernel {
                    name: self.kernel,
                    shape,
                    blocks: self.blocks,
                    rows: self.rows,
                    pdl,
                };
                // SAFETY: the caller's promise; strides and addresses are checked but for scratch memory's.
                return unsafe { wgmma::run(stream, &kernel, weights, operands, routing) };
            }
        };
        let needed = self.blocks as usize * shape.partial_bytes();
        Workspace::check_room("bytes for partial sums", needed, workspace.partial_bytes())?;
        let (dense, offsets, patches) = weights.addresses();
        // All assignments of a single token have its activations.
        let (rows, x_stride) = match (operands.x_by_expert, routing.unsorted) {
            (true, _) => (0, operands.x_stride),
            (false, None) => (routing.rows(), operands.x_stride),
            (false, Some(_)) => (0, 0),
        };
        let args = GroupedArgs {
            gemm: GemmArgs {
                output: Output {
                    y: operands.y as *mut u8,
                    bias: std::ptr::null(),
                    pitch: (operands.y_stride * bytes) as u32,
                    is_f32: operands.output == OutputType::F32,
                    accumulate: false,
                },
                x: operands.x as *const u16,
                dense,
                offsets,
                patches,
                partials: workspace.partials.address() as *mut f32,
                m: self.rows as u32,
                n: 0,
                k: k as u32,
                x_stride: x_stride as u32,
                is_gated: operands.is_gated,
            },
            rows: rows as *const u32,
            groups: routing.groups_at() as *const Group,
            group_count: routing.group_count() as *const u32,
            unsorted: routing.unsorted(),
            follows_routing: operands.follows_routing,
            is_batch_invariant: self.is_batch_invariant,
        };
        // SAFETY: the caller's promise; a plan names a kernel that takes these arguments.
        unsafe { device.launch(self.kernel, self.blocks, stream, pdl, args) }
    }
}

impl fmt::Display for GroupedPlan {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Self {
            kernel,
            blocks,
            experts,
            rows,
            ..
        } = self;
        let tokens = self.group_tokens();
        write!(
            f,
            "{kernel}: {experts} experts of {rows} rows, groups of up to {tokens} tokens, over {blocks} blocks"
        )
    }
}
