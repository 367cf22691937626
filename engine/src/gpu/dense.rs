//! Products by dense weights, with cuBLASLt: what compressed ones are measured against.

use std::time::{Duration, Instant};

use half::bf16;
use zipserv::gpu::{
    Buffer, GpuError, Graph, OutputType, RawOperands, Stream,
    cublaslt::{Algorithm, Allowed, Matmul, Operands, Shape},
};

/// Bytes that cuBLASLt may use beside the operands, as much as is recommended for Hopper.
pub const SCRATCH_BYTES: usize = 32 << 20;
/// cuBLASLt's choices that are tried.
const CHOICES: usize = 12;
/// Runs of which the fastest counts.
const RUNS: usize = 3;

/// A matrix as it was, row after row.
pub struct DenseMatrix {
    pub values: Buffer<bf16>,
    pub rows: usize,
    pub cols: usize,
}

/// The fastest of cuBLASLt's choices for products of one shape and so many tokens.
#[derive(Clone, Copy)]
pub struct DensePlan(Algorithm);

impl DensePlan {
    /// Measures the choices on some products of one shape, one after another, so that weights come from memory as they
    /// do in a model. Outputs are overwritten.
    ///
    /// # Errors
    /// [`GpuError::NoAlgorithm`]; [`GpuError::NoLibrary`] and [`GpuError::Cublas`].
    ///
    /// # Safety
    /// As [`run`](Self::run), of all products, of which there is one.
    pub unsafe fn fastest(
        stream: &Stream,
        products: &[(&DenseMatrix, RawOperands)],
        scratch: &Buffer<u8>,
    ) -> Result<Self, GpuError> {
        let (matrix, operands) = &products[0];
        let library = stream.device().cublaslt()?;
        let choices = {
            let _current = stream.device().enter()?;
            let matmul = Matmul::new(library, &shape(matrix, operands))?;
            let allowed = Allowed {
                workspace: scratch.len(),
                alignments: [matrix.values.address(), operands.x, operands.y].map(alignment),
                // As PyTorch allows by default.
                rounded_sums: true,
            };
            library.algorithms(&matmul, allowed, CHOICES)?
        };
        let mut fastest = None;
        for choice in choices {
            let plan = Self(choice);
            // SAFETY: the caller's promise.
            let time = match unsafe { plan.time(stream, products, scratch) } {
                // It is refused when it is to run.
                Err(GpuError::Cublas { .. }) => continue,
                time => time?,
            };
            if fastest.is_none_or(|(least, _)| time < least) {
                fastest = Some((time, plan));
            }
        }
        let none = GpuError::NoAlgorithm {
            rows: matrix.rows,
            cols: matrix.cols,
        };
        fastest.map(|(_, plan)| plan).ok_or(none)
    }

    unsafe fn time(
        self,
        stream: &Stream,
        products: &[(&DenseMatrix, RawOperands)],
        scratch: &Buffer<u8>,
    ) -> Result<Duration, GpuError> {
        let all = || {
            products.iter().try_for_each(|(matrix, operands)| {
                // SAFETY: the caller's promise.
                unsafe { self.run(stream, matrix, operands, scratch) }
            })
        };
        // The first run loads the kernel, which a recording cannot.
        all()?;
        let graph = Graph::record(stream, all)?;
        let mut least = Duration::MAX;
        for _ in 0..RUNS {
            stream.synchronize()?;
            let start = Instant::now();
            // SAFETY: as above; it is waited for.
            unsafe { graph.replay()? };
            stream.synchronize()?;
            least = least.min(start.elapsed());
        }
        Ok(least)
    }

    /// Multiplies. A bias is of the outputs' type.
    ///
    /// # Errors
    /// [`GpuError::Cublas`].
    ///
    /// # Safety
    /// When the kernel runs, operands are there, and nothing else uses the scratch memory. They have the shape and the
    /// alignment of those that the plan was made for.
    pub unsafe fn run(
        self,
        stream: &Stream,
        matrix: &DenseMatrix,
        operands: &RawOperands,
        scratch: &Buffer<u8>,
    ) -> Result<(), GpuError> {
        let library = stream.device().cublaslt()?;
        let _current = stream.device().enter()?;
        let matmul = Matmul::new(library, &shape(matrix, operands))?;
        let at = Operands {
            x: operands.x,
            w: matrix.values.address(),
            y: operands.y,
        };
        let scratch = (scratch.address(), scratch.len());
        let accumulate = operands.accumulate;
        // SAFETY: the caller's promise.
        unsafe { library.multiply(&matmul, &self.0, at, accumulate, scratch, stream.raw()) }
    }
}

/// Bytes to which an address is aligned, up to what allocations are.
fn alignment(address: u64) -> u32 {
    1 << (address | 256).trailing_zeros()
}

fn shape(matrix: &DenseMatrix, operands: &RawOperands) -> Shape {
    Shape {
        m: matrix.rows,
        n: operands.n,
        k: matrix.cols,
        x_stride: operands.x_stride,
        y_stride: operands.y_stride,
        f32_out: operands.output == OutputType::F32,
        bias: operands.bias,
    }
}
