use std::{ffi::c_void, rc::Rc};

use cudarc::cublas::{self, sys as blas};
use cust::memory::DeviceBuffer;

use crate::cuda::{
    CudaError, RawStream,
    cublaslt::{self, Allowed, CublasLt, Matmul, Shape},
};

pub use crate::cuda::cublaslt::Operands;

/// What cuBLAS said.
#[derive(Debug, thiserror::Error)]
#[error("cuBLAS: {0}")]
pub struct CublasError(String);

impl From<cublas::result::CublasError> for CublasError {
    fn from(error: cublas::result::CublasError) -> Self {
        Self(format!("{error:?}"))
    }
}

impl From<CublasError> for CudaError {
    fn from(error: CublasError) -> Self {
        Self::Argument(error.to_string())
    }
}

/// cuBLAS and cuBLASLt, loaded at run time, for comparison.
pub struct Cublas {
    blas: blas::cublasHandle_t,
    lt: CublasLt,
    workspace: DeviceBuffer<u8>,
    stream: RawStream,
}

/// Y[N, M] = X[N, K] W[M, K]^T, all BF16 but perhaps Y.
#[derive(Clone, Copy, Debug)]
pub struct Problem {
    /// Output features.
    pub m: usize,
    /// Tokens.
    pub n: usize,
    /// Input features.
    pub k: usize,
    /// Y is FP32.
    pub f32_out: bool,
}

/// One of cuBLASLt's choices for a problem.
pub struct Algorithm {
    matmul: Rc<Matmul>,
    choice: cublaslt::Algorithm,
}

const MISSING: &str = "the library libcublas.so is not found; it comes with the CUDA toolkit, and \
    LD_LIBRARY_PATH names the folder where it is looked for";

/// Bytes that cuBLAS may use beside the operands, as much as it recommends for Hopper.
const WORKSPACE: usize = 32 << 20;

impl Cublas {
    /// Loads the libraries, for calls on `stream`.
    ///
    /// # Errors
    /// [`CudaError`] when a library cannot be used.
    pub fn new(stream: RawStream) -> Result<Self, CudaError> {
        let lt = CublasLt::load()?;
        // SAFETY: loading NVIDIA's library, as its first call would, which panics without.
        if !unsafe { blas::is_culib_present() } {
            return Err(CublasError(MISSING.to_owned()).into());
        }
        let blas = cublas::result::create_handle().map_err(CublasError::from)?;
        let workspace = DeviceBuffer::from_slice(&vec![0u8; WORKSPACE])?;
        // SAFETY: the handle lives, and the workspace as long as it.
        unsafe {
            cublas::result::set_stream(blas, stream.cast()).map_err(CublasError::from)?;
            let at = workspace.as_device_ptr().as_raw() as *mut c_void;
            blas::cublasSetWorkspace_v2(blas, at, WORKSPACE)
                .result()
                .map_err(CublasError::from)?;
        }
        Ok(Self {
            blas,
            lt,
            workspace,
            stream,
        })
    }

    /// Multiplies by cuBLAS's own choice of kernel.
    ///
    /// # Errors
    /// [`CublasError`].
    ///
    /// # Safety
    /// The operands are as large as the problem says.
    pub unsafe fn gemm(&self, p: Problem, at: Operands) -> Result<(), CublasError> {
        let (one, zero) = (1f32, 0f32);
        let out = if p.f32_out {
            blas::cudaDataType::CUDA_R_32F
        } else {
            blas::cudaDataType::CUDA_R_16BF
        };
        // Row-major Y is column-major Y^T = W X^T.
        // SAFETY: the caller's promise.
        unsafe {
            cublas::result::gemm_ex(
                self.blas,
                blas::cublasOperation_t::CUBLAS_OP_T,
                blas::cublasOperation_t::CUBLAS_OP_N,
                p.m as i32,
                p.n as i32,
                p.k as i32,
                (&raw const one).cast(),
                at.w as *const c_void,
                blas::cudaDataType::CUDA_R_16BF,
                p.k as i32,
                at.x as *const c_void,
                blas::cudaDataType::CUDA_R_16BF,
                p.k as i32,
                (&raw const zero).cast(),
                at.y as *mut c_void,
                out,
                p.m as i32,
                blas::cublasComputeType_t::CUBLAS_COMPUTE_32F,
                blas::cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT,
            )?;
        }
        Ok(())
    }

    /// cuBLASLt's choices for a problem, best guess first.
    ///
    /// # Errors
    /// [`CudaError::CublasLt`].
    pub fn algorithms(&self, p: Problem, limit: usize) -> Result<Vec<Algorithm>, CudaError> {
        let matmul = Rc::new(Matmul::new(&Shape {
            m: p.m,
            n: p.n,
            k: p.k,
            x_stride: p.k,
            y_stride: p.m,
            f32_out: p.f32_out,
            bias: None,
        })?);
        // All that it could ask for.
        let allowed = Allowed {
            workspace: WORKSPACE,
            alignments: [256; 3],
            rounded_sums: true,
        };
        let choices = self.lt.algorithms(&matmul, allowed, limit)?.into_iter();
        Ok(choices
            .map(|choice| Algorithm {
                matmul: matmul.clone(),
                choice,
            })
            .collect())
    }

    /// Multiplies by a choice of cuBLASLt.
    ///
    /// # Errors
    /// [`CudaError::CublasLt`].
    ///
    /// # Safety
    /// The operands are as large as the problem of the algorithm says.
    pub unsafe fn matmul(&self, algorithm: &Algorithm, at: Operands) -> Result<(), CudaError> {
        let Algorithm { matmul, choice } = algorithm;
        let scratch = (self.workspace.as_device_ptr().as_raw(), WORKSPACE);
        // SAFETY: the caller's promise; one stream uses the workspace.
        unsafe {
            self.lt
                .multiply(matmul, choice, at, false, scratch, self.stream)
        }
    }
}

impl Drop for Cublas {
    fn drop(&mut self) {
        // SAFETY: destroyed once.
        let _ = unsafe { cublas::result::destroy_handle(self.blas) };
    }
}
