//! A layer's products, by compressed weights or by dense ones.

use std::sync::Arc;

use half::bf16;
use zipserv::gpu::{
    Buffer, DeviceMatrix, GpuError, OutputType, Plan, PlanOptions, RawOperands, Stream, Workspace,
};

use super::dense::{DenseMatrix, DensePlan, SCRATCH_BYTES};
use crate::Result;

/// A matrix on a device.
pub enum Matrix {
    /// An embedding may be the head too.
    Compressed(Arc<DeviceMatrix>),
    Dense(DenseMatrix),
}

/// A value for each output.
pub enum Bias {
    Bf16(Buffer<bf16>),
    F32(Buffer<f32>),
}

/// `y = weights x + bias`.
pub struct Product {
    pub weights: Matrix,
    /// For dense weights it is of the outputs' type, else BF16.
    pub bias: Option<Bias>,
    pub output: OutputType,
}

/// How products of one shape and so many tokens are made.
#[derive(Clone, Copy)]
#[expect(
    clippy::large_enum_variant,
    reason = "plans are few, and copies of them convenient"
)]
pub enum ProductPlan {
    Compressed(Plan),
    Dense(DensePlan),
}

/// What products of a stream need beside operands.
pub struct Multiplier {
    pub stream: Stream,
    pub workspace: Workspace,
    pub options: PlanOptions,
    /// Of cuBLASLt; empty where all weights are compressed.
    scratch: Buffer<u8>,
}

impl Matrix {
    fn shape(&self) -> (usize, usize) {
        match self {
            Self::Compressed(matrix) => (matrix.rows(), matrix.cols()),
            Self::Dense(matrix) => (matrix.rows, matrix.cols),
        }
    }

    /// On the device.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Compressed(matrix) => matrix.device_bytes(),
            Self::Dense(matrix) => 2 * matrix.rows * matrix.cols,
        }
    }
}

impl Product {
    /// Rows that follow one another, of `n` tokens.
    pub fn operands(&self, x: u64, n: usize, y: u64) -> RawOperands {
        let (rows, cols) = self.weights.shape();
        RawOperands {
            x,
            x_stride: cols,
            n,
            y,
            y_stride: rows,
            output: self.output,
            bias: self.bias.as_ref().map(|bias| match bias {
                Bias::Bf16(bias) => bias.address(),
                Bias::F32(bias) => bias.address(),
            }),
            accumulate: false,
        }
    }
}

impl ProductPlan {
    /// Whether a kernel behind it may start before it has ended, and wait then. cuBLASLt's kernels let none start early,
    /// but its launch is prepared by then.
    pub fn is_pdl(&self) -> bool {
        match self {
            Self::Compressed(plan) => plan.is_pdl(),
            Self::Dense(_) => true,
        }
    }
}

impl Multiplier {
    /// For dense weights, or for compressed ones alone.
    pub fn new(stream: Stream, options: PlanOptions, dense: bool) -> Result<Self> {
        let scratch = if dense { SCRATCH_BYTES } else { 0 };
        Ok(Self {
            workspace: Workspace::new(stream.device())?,
            scratch: Buffer::uninitialized(stream.device(), scratch)?,
            options,
            stream,
        })
    }

    /// For products of one shape, of which some are tried if their weights are dense.
    ///
    /// # Safety
    /// As [`run`](Self::run), but nothing of what outputs hold is wanted.
    pub unsafe fn plan(&self, products: &[(&Product, RawOperands)]) -> Result<ProductPlan> {
        let (first, operands) = &products[0];
        if let Matrix::Compressed(weights) = &first.weights {
            let plan = Plan::new(weights, operands.n, &self.options)?;
            return Ok(ProductPlan::Compressed(plan));
        }
        let dense = products
            .iter()
            .filter_map(|(product, operands)| match &product.weights {
                Matrix::Dense(weights) => Some((weights, *operands)),
                Matrix::Compressed(_) => None,
            });
        let dense: Vec<_> = dense.collect();
        // SAFETY: the caller's promise.
        let plan = unsafe { DensePlan::fastest(&self.stream, &dense, &self.scratch) };
        Ok(ProductPlan::Dense(plan?))
    }

    /// Multiplies.
    ///
    /// # Safety
    /// As [`Plan::run_raw`], of operands aligned as those that the plan was made for.
    pub unsafe fn run(
        &self,
        plan: &ProductPlan,
        product: &Product,
        operands: &RawOperands,
    ) -> std::result::Result<(), GpuError> {
        let (stream, workspace) = (&self.stream, &self.workspace);
        // SAFETY: the caller's promise.
        unsafe {
            match (plan, &product.weights) {
                (ProductPlan::Compressed(plan), Matrix::Compressed(weights)) => {
                    plan.run_raw(stream.raw(), weights, operands, workspace)
                }
                (ProductPlan::Dense(plan), Matrix::Dense(weights)) => {
                    plan.run(stream, weights, operands, &self.scratch)
                }
                _ => unreachable!("a model's weights are either, and plans are made for them"),
            }
        }
    }
}
