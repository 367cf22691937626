use std::{ffi::c_void, mem};

use cudarc::{
    cublas::{self, sys as blas},
    cublaslt::{self, sys as lt},
    driver::sys::CUdeviceptr,
};
use cust::memory::DeviceBuffer;

use crate::cuda::{CudaError, RawStream};

/// What cuBLAS or cuBLASLt said.
#[derive(Debug, thiserror::Error)]
#[error("cuBLAS: {0}")]
pub struct CublasError(String);

impl From<cublas::result::CublasError> for CublasError {
    fn from(error: cublas::result::CublasError) -> Self {
        Self(format!("{error:?}"))
    }
}

impl From<cublaslt::result::CublasError> for CublasError {
    fn from(error: cublaslt::result::CublasError) -> Self {
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
    lt: lt::cublasLtHandle_t,
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

/// Operands on the device.
#[derive(Clone, Copy, Debug)]
pub struct Operands {
    /// N rows of K.
    pub x: CUdeviceptr,
    /// M rows of K.
    pub w: CUdeviceptr,
    /// N rows of M.
    pub y: CUdeviceptr,
}

/// One of cuBLASLt's choices for a problem.
pub struct Algorithm {
    desc: lt::cublasLtMatmulDesc_t,
    layouts: [lt::cublasLtMatrixLayout_t; 3],
    algo: lt::cublasLtMatmulAlgo_t,
}

const MISSING: &str = "the libraries libcublas.so and libcublasLt.so are not found; they come with \
    the CUDA toolkit, and LD_LIBRARY_PATH names the folder where they are looked for";

/// Bytes that cuBLAS may use beside the operands, as much as it recommends for Hopper.
const WORKSPACE: usize = 32 << 20;

impl Cublas {
    /// Loads the libraries, for calls on `stream`.
    ///
    /// # Errors
    /// [`CudaError`] when a library cannot be used.
    pub fn new(stream: RawStream) -> Result<Self, CudaError> {
        // SAFETY: loading NVIDIA's libraries, as the first call of each would, which panics without.
        if !unsafe { blas::is_culib_present() && lt::is_culib_present() } {
            return Err(CublasError(MISSING.to_owned()).into());
        }
        let blas = cublas::result::create_handle().map_err(CublasError::from)?;
        let lt = cublaslt::result::create_handle().map_err(CublasError::from)?;
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
    /// [`CublasError`].
    pub fn algorithms(&self, p: Problem, limit: usize) -> Result<Vec<Algorithm>, CublasError> {
        let out = if p.f32_out {
            lt::cudaDataType::CUDA_R_32F
        } else {
            lt::cudaDataType::CUDA_R_16BF
        };
        let bf16 = lt::cudaDataType::CUDA_R_16BF;
        let f32 = lt::cudaDataType::CUDA_R_32F;
        use cublaslt::result as r;
        let desc = r::create_matmul_desc(lt::cublasComputeType_t::CUBLAS_COMPUTE_32F, f32)?;
        let (m, n, k) = (p.m as u64, p.n as u64, p.k as u64);
        let layouts = [
            r::create_matrix_layout(bf16, k, m, k as i64)?,
            r::create_matrix_layout(bf16, k, n, k as i64)?,
            r::create_matrix_layout(out, m, n, m as i64)?,
        ];
        let preference = r::create_matmul_pref()?;
        let mut results: Vec<lt::cublasLtMatmulHeuristicResult_t> = Vec::with_capacity(limit);
        let mut found = 0;
        let (transpose, workspace) = (1i32, WORKSPACE);
        // SAFETY: attributes have their types; `results` has room for `limit`, of which the call
        // fills `found`. Descriptors and layouts are few and live until the process ends.
        unsafe {
            r::set_matmul_desc_attribute(
                desc,
                lt::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_TRANSA,
                (&raw const transpose).cast(),
                mem::size_of_val(&transpose),
            )?;
            r::set_matmul_pref_attribute(
                preference,
                lt::cublasLtMatmulPreferenceAttributes_t::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                (&raw const workspace).cast(),
                mem::size_of_val(&workspace),
            )?;
            lt::cublasLtMatmulAlgoGetHeuristic(
                self.lt,
                desc,
                layouts[0],
                layouts[1],
                layouts[2],
                layouts[2],
                preference,
                limit as i32,
                results.as_mut_ptr(),
                &mut found,
            )
            .result()?;
            results.set_len(found as usize);
            r::destroy_matmul_pref(preference)?;
        }
        Ok(results
            .into_iter()
            .filter(|result| result.state == lt::cublasStatus_t::CUBLAS_STATUS_SUCCESS)
            .map(|result| Algorithm {
                desc,
                layouts,
                algo: result.algo,
            })
            .collect())
    }

    /// Multiplies by a choice of cuBLASLt.
    ///
    /// # Errors
    /// [`CublasError`].
    ///
    /// # Safety
    /// The operands are as large as the problem of the algorithm says.
    pub unsafe fn matmul(&self, algorithm: &Algorithm, at: Operands) -> Result<(), CublasError> {
        let (one, zero) = (1f32, 0f32);
        let [w, x, y] = algorithm.layouts;
        // SAFETY: the caller's promise.
        unsafe {
            cublaslt::result::matmul(
                self.lt,
                algorithm.desc,
                (&raw const one).cast(),
                (&raw const zero).cast(),
                at.w as *const c_void,
                w,
                at.x as *const c_void,
                x,
                at.y as *const c_void,
                y,
                at.y as *mut c_void,
                y,
                &raw const algorithm.algo,
                self.workspace.as_device_ptr().as_raw() as *mut c_void,
                WORKSPACE,
                self.stream.cast(),
            )?;
        }
        Ok(())
    }
}

impl Drop for Cublas {
    fn drop(&mut self) {
        // SAFETY: destroyed once.
        unsafe {
            let _ = cublas::result::destroy_handle(self.blas);
            let _ = cublaslt::result::destroy_handle(self.lt);
        }
    }
}
