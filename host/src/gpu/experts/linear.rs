use half::bf16;

use super::{
    plan::{GroupedPlan, RawGrouped},
    routing::Routing,
};
use crate::{
    ExpertStack,
    gpu::{
        buffer::{View, check_len, same_context},
        device::Device,
        error::{GpuError, Need, Operand},
        matrix::DeviceMatrix,
        operands::Outputs,
        stream::Stream,
        workspace::Workspace,
    },
};

/// A linear layer of a mixture of experts: an [`ExpertStack`] on a device.
///
/// ```no_run
/// use half::bf16;
/// use zipserv::{ExpertStack, Matrix, gpu::{Buffer, Device, ExpertInputs, GroupedLinear, Stream, Workspace}};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let (experts, m, k, tokens, top_k, w) = (4, 64, 64, 3, 2, vec![bf16::ONE; 4 * 64 * 64]);
/// let device = Device::new(0)?;
/// let stream = Stream::new(&device)?;
/// let mut workspace = Workspace::new(&device)?;
/// let matrices: Vec<_> = w.chunks(m * k).map(|w| Matrix::from_bf16(m, k, w)).collect::<Result<_, _>>()?;
/// let layer = GroupedLinear::new(&device, &ExpertStack::encode(&matrices)?)?;
///
/// let mut routing = layer.routing(tokens, top_k)?;
/// let experts_of = Buffer::from_slice(&device, &[0, 3, 1, 3, 3, 2])?;
/// routing.route(&stream, &experts_of)?;
/// let x = Buffer::from_slice(&device, &vec![bf16::ONE; tokens * k])?;
/// // A row for each token and expert, in the order of experts.
/// let mut y = Buffer::<bf16>::zeroed(&device, tokens * top_k * m)?;
/// layer.forward(&stream, ExpertInputs::OfTokens((&x).into()), &routing, &mut y, &mut workspace)?;
/// # Ok(())
/// # }
/// ```
pub struct GroupedLinear {
    weights: DeviceMatrix,
    experts: usize,
    rows: usize,
    is_gated: bool,
    is_batch_invariant: bool,
}

/// Activations of a [`GroupedLinear`].
pub enum ExpertInputs<'a> {
    /// A row of K for each token, which each of its experts takes.
    OfTokens(View<'a, bf16>),
    /// A row of K for each assignment, in the order of experts, as another layer leaves them.
    ByExpert(View<'a, bf16>),
}

impl GroupedLinear {
    /// Copies a stack to `device`.
    ///
    /// # Errors
    /// As [`DeviceMatrix::upload`] and [`GroupedPlan::new`].
    pub fn new(device: &Device, stack: &ExpertStack) -> Result<Self, GpuError> {
        let weights = DeviceMatrix::upload(device, stack.matrix())?;
        let (experts, rows) = (stack.experts(), stack.rows());
        GroupedPlan::new(&weights, experts, rows, experts)?;
        Ok(Self {
            weights,
            experts,
            rows,
            is_gated: false,
            is_batch_invariant: false,
        })
    }

    /// With outputs silu(first half) x (second half) of the features, where gate and up are stacked.
    #[must_use]
    pub fn gated(self) -> Self {
        Self {
            is_gated: true,
            ..self
        }
    }

    /// With sums of a token that do not depend on the other tokens.
    #[must_use]
    pub fn batch_invariant(self) -> Self {
        Self {
            is_batch_invariant: true,
            ..self
        }
    }

    /// The weights of all experts.
    pub fn weights(&self) -> &DeviceMatrix {
        &self.weights
    }

    /// Output features of an assignment.
    pub fn features(&self) -> usize {
        self.rows >> u32::from(self.is_gated)
    }

    /// Room for where `tokens` tokens of `top_k` experts each go, for this layer and others of as many experts.
    ///
    /// # Errors
    /// As [`GroupedPlan::new`] and [`Routing::new`].
    pub fn routing(&self, tokens: usize, top_k: usize) -> Result<Routing, GpuError> {
        let assignments = tokens.saturating_mul(top_k);
        let plan = match self.is_batch_invariant {
            true => GroupedPlan::batch_invariant(&self.weights, self.experts, self.rows)?,
            false => GroupedPlan::new(&self.weights, self.experts, self.rows, assignments)?,
        };
        let device = self.weights.device();
        Routing::new(device, tokens, top_k, self.experts, plan.group_tokens())
    }

    /// `Y[a] = X[t(a)] W[e(a)]^T` for each assignment a of a token to an expert, in the order of experts, as
    /// [`GroupedPlan::run_raw`] says. `routing` has been routed before on this stream.
    ///
    /// # Errors
    /// As that; [`GpuError::Length`], [`GpuError::Context`] and [`GpuError::WorkspaceInUse`].
    pub fn forward<'a>(
        &self,
        stream: &Stream,
        x: ExpertInputs<'_>,
        routing: &Routing,
        y: impl Into<Outputs<'a>>,
        workspace: &mut Workspace,
    ) -> Result<(), GpuError> {
        let (device, k, raw) = (self.weights.device(), self.weights.cols(), routing.raw());
        let (x, rows, x_by_expert) = match x {
            ExpertInputs::OfTokens(x) => (x, raw.tokens, false),
            ExpertInputs::ByExpert(x) => (x, raw.assignments(), true),
        };
        let (y, features) = (y.into(), self.features());
        let (to, values, output) = y.parts();
        let exactly =
            |rows: usize, cols| rows.checked_mul(cols).map_or(Need::Overflow, Need::Exactly);
        check_len(Operand::Activations, exactly(rows, k), x.len())?;
        check_len(
            Operand::Outputs,
            exactly(raw.assignments(), features),
            values,
        )?;
        same_context(device, stream.device(), Operand::Stream)?;
        same_context(device, x.device(), Operand::Activations)?;
        same_context(device, y.device(), Operand::Outputs)?;
        same_context(device, routing.device(), Operand::Routing)?;
        workspace.claim(stream)?;
        let plan = match self.is_batch_invariant {
            true => GroupedPlan::batch_invariant(&self.weights, self.experts, self.rows)?,
            false => {
                GroupedPlan::with_groups(&self.weights, self.experts, self.rows, raw.group_tokens)?
            }
        };
        let mut operands = RawGrouped {
            x: x.address(),
            x_stride: k,
            x_by_expert,
            y: to,
            y_stride: features,
            output,
            is_gated: self.is_gated,
            follows_routing: true,
            scratch: 0,
        };
        let scratch = plan.scratch_bytes(&operands, raw);
        if scratch > 0 {
            operands.scratch = workspace.scratch(scratch)?;
        }
        // SAFETY: lengths and context are right; outputs are borrowed alone, and the workspace serves this stream only.
        unsafe { plan.run_raw(stream.raw(), &self.weights, &operands, raw, workspace) }
    }
}
