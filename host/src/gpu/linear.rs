use std::{
    collections::HashMap,
    sync::{PoisonError, RwLock},
};

use half::bf16;

use super::{
    buffer::{Buffer, View, check_len, same_context},
    device::Device,
    driver::RawStream,
    error::{GpuError, Need, Operand},
    matrix::DeviceMatrix,
    operands::{MAX_TOKENS, Operands, Outputs, RawOperands, check_tokens},
    plan::{Plan, PlanOptions},
    stream::{Stream, is_capturing},
    workspace::Workspace,
};
use crate::CompressedMatrix;

/// A linear layer: compressed weights on a device, perhaps a bias, and the plan for each number of
/// tokens that came along.
///
/// Any thread may use it. The first call for a number of tokens makes the plan, which may have the
/// driver compile its kernel; calls after it allocate nothing and wait for nothing.
///
/// ```no_run
/// use half::bf16;
/// use zipserv::{Matrix, encode, gpu::{Buffer, Device, Linear, Stream, Workspace}};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let (m, k, n, w) = (64, 64, 1, vec![bf16::ONE; 64 * 64]);
/// let device = Device::new(0)?;
/// let stream = Stream::new(&device)?;
/// let mut workspace = Workspace::new(&device)?;
/// let layer = Linear::new(&device, &encode(&Matrix::from_bf16(m, k, &w)?)?)?;
///
/// let x = Buffer::from_slice(&device, &vec![bf16::ONE; n * k])?;
/// let mut y = Buffer::<bf16>::zeroed(&device, n * m)?;
/// layer.forward(&stream, &x, n, &mut y, &mut workspace)?;
/// println!("{}", y.to_vec(&stream)?[0]);
/// # Ok(())
/// # }
/// ```
pub struct Linear {
    weights: DeviceMatrix,
    bias: Option<Buffer<bf16>>,
    options: PlanOptions,
    /// By number of tokens; under [`ANY`] what is for all of them.
    plans: RwLock<HashMap<usize, Plan>>,
}

/// No number of tokens.
const ANY: usize = 0;

impl Linear {
    /// Copies compressed weights to `device`.
    ///
    /// # Errors
    /// As [`DeviceMatrix::upload`].
    pub fn new(device: &Device, weights: &CompressedMatrix) -> Result<Self, GpuError> {
        Ok(DeviceMatrix::upload(device, weights)?.into())
    }

    /// With plans of these options, in place of those that there were.
    #[must_use]
    pub fn with_options(self, options: PlanOptions) -> Self {
        Self {
            options,
            plans: RwLock::default(),
            ..self
        }
    }

    /// With a bias of M values, which is added to the outputs of every token.
    ///
    /// # Errors
    /// [`GpuError::Length`] and [`GpuError::Context`].
    pub fn with_bias(self, bias: Buffer<bf16>) -> Result<Self, GpuError> {
        check_len(
            Operand::Bias,
            Need::Exactly(self.weights.rows()),
            bias.len(),
        )?;
        same_context(self.weights.device(), bias.device(), Operand::Bias)?;
        let bias = Some(bias);
        Ok(Self { bias, ..self })
    }

    /// The weights.
    pub fn weights(&self) -> &DeviceMatrix {
        &self.weights
    }

    /// Makes the plan for `n` tokens, unless it is there.
    ///
    /// # Errors
    /// As [`Plan::new`].
    pub fn prepare(&self, n: usize) -> Result<Plan, GpuError> {
        check_tokens(n)?;
        if let Some(plan) = self.known(n) {
            return Ok(plan);
        }
        let plan = Plan::new(&self.weights, n, &self.options)?;
        let key = match self.options.is_batch_invariant() {
            true => ANY,
            false => n,
        };
        let mut plans = self.plans.write().unwrap_or_else(PoisonError::into_inner);
        // No more than `MAX_TOKENS` of them: there are no others.
        debug_assert!(plans.len() <= MAX_TOKENS);
        Ok(*plans.entry(key).or_insert(plan))
    }

    /// Y[N, M] = X[N, K] W[M, K]^T + bias, of `n` rows of activations that follow one another, as
    /// [`Plan::run`] says.
    ///
    /// # Errors
    /// As [`Plan::run`] and [`Plan::new`]; [`GpuError::NotPrepared`] when there is no plan for `n`
    /// tokens yet and the stream is captured.
    pub fn forward<'a>(
        &'a self,
        stream: &Stream,
        x: impl Into<View<'a, bf16>>,
        n: usize,
        y: impl Into<Outputs<'a>>,
        workspace: &mut Workspace,
    ) -> Result<(), GpuError> {
        // SAFETY: the stream lives.
        let plan = unsafe { self.plan(stream.raw(), n)? };
        let operands = Operands::new(x, y).tokens(n);
        let operands = match &self.bias {
            Some(bias) => operands.bias(bias),
            None => operands,
        };
        plan.run(stream, &self.weights, operands, workspace)
    }

    /// [`forward`](Self::forward) on the caller's own pointers and stream, with what else the
    /// operands ask for. A bias of theirs goes before the layer's.
    ///
    /// # Errors
    /// As [`forward`](Self::forward) and [`Plan::run_raw`].
    ///
    /// # Safety
    /// As [`Plan::run_raw`].
    pub unsafe fn forward_raw(
        &self,
        stream: RawStream,
        operands: &RawOperands,
        workspace: &Workspace,
    ) -> Result<(), GpuError> {
        let own = self.bias.as_ref().map(Buffer::address);
        let operands = RawOperands {
            bias: operands.bias.or(own),
            ..*operands
        };
        // SAFETY: the caller's promise.
        unsafe {
            let plan = self.plan(stream, operands.n)?;
            plan.run_raw(stream, &self.weights, &operands, workspace)
        }
    }

    fn known(&self, n: usize) -> Option<Plan> {
        let plans = self.plans.read().unwrap_or_else(PoisonError::into_inner);
        plans.get(&n).or_else(|| plans.get(&ANY)).copied()
    }

    /// # Safety
    /// The stream lives.
    unsafe fn plan(&self, stream: RawStream, n: usize) -> Result<Plan, GpuError> {
        if let Some(plan) = self.known(n) {
            return Ok(plan);
        }
        // Loading a kernel may end the recording.
        // SAFETY: the caller's promise.
        match unsafe { is_capturing(self.weights.device(), stream)? } {
            true => Err(GpuError::NotPrepared { tokens: n }),
            false => self.prepare(n),
        }
    }
}

impl From<DeviceMatrix> for Linear {
    fn from(weights: DeviceMatrix) -> Self {
        Self {
            weights,
            bias: None,
            options: PlanOptions::default(),
            plans: RwLock::default(),
        }
    }
}
