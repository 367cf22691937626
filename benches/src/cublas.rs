use std::{ffi::c_void, rc::Rc};

use cudarc::cublas::{self, sys as blas};

pub use zipserv::gpu::cublaslt::Operands;
use zipserv::gpu::{
    Buffer, GpuError, Stream,
    cublaslt::{self, Allowed, CublasLt, Matmul, Shape},
};

fn check<T>(
    call: &'static str,
    result: Result<T, cublas::result::CublasError>,
) -> Result<T, GpuError> {
    result.map_err(|error| GpuError::Cublas {
        call,
        name: format!("{:?}", error.0),
    })
}

/// cuBLAS and cuBLASLt, loaded at run time, for comparison.
pub struct Cublas {
    blas: blas::cublasHandle_t,
    workspace: Buffer<u8>,
    stream: Stream,
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

/// Bytes that cuBLAS may use beside the operands, as much as it recommends for Hopper.
const WORKSPACE: usize = 32 << 20;

impl Cublas {
    /// Loads the libraries, for calls on `stream`.
    ///
    /// # Errors
    /// [`GpuError`] when a library cannot be used.
    pub fn new(stream: &Stream) -> Result<Self, GpuError> {
        let _current = stream.device().enter()?;
        // SAFETY: loading NVIDIA's library, as its first call would, which panics without.
        if !unsafe { blas::is_culib_present() } {
            let name = "libcublas.so";
            return Err(GpuError::NoLibrary { name });
        }
        let blas = check("cublasCreate", cublas::result::create_handle())?;
        let workspace = Buffer::uninitialized(stream.device(), WORKSPACE)?;
        let this = Self {
            blas,
            workspace,
            stream: stream.clone(),
        };
        let at = this.workspace.address() as *mut c_void;
        // SAFETY: the handle lives; stream and workspace live as long.
        unsafe {
            let set = cublas::result::set_stream(blas, stream.raw().cast());
            check("cublasSetStream", set)?;
            let set = blas::cublasSetWorkspace_v2(blas, at, WORKSPACE).result();
            check("cublasSetWorkspace", set)?;
        }
        Ok(this)
    }

    /// Multiplies by cuBLAS's own choice of kernel.
    ///
    /// # Errors
    /// [`GpuError::Cublas`].
    ///
    /// # Safety
    /// The operands are as large as the problem says.
    pub unsafe fn gemm(&self, p: Problem, at: Operands) -> Result<(), GpuError> {
        let (one, zero) = (1f32, 0f32);
        let out = if p.f32_out {
            blas::cudaDataType::CUDA_R_32F
        } else {
            blas::cudaDataType::CUDA_R_16BF
        };
        let _current = self.stream.device().enter()?;
        // Row-major Y is column-major Y^T = W X^T.
        // SAFETY: the caller's promise.
        let multiplied = unsafe {
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
            )
        };
        check("cublasGemmEx", multiplied)
    }

    /// cuBLASLt's choices for a problem, best guess first.
    ///
    /// # Errors
    /// [`GpuError::Cublas`].
    pub fn algorithms(&self, p: Problem, limit: usize) -> Result<Vec<Algorithm>, GpuError> {
        let lt = self.lt()?;
        let _current = self.stream.device().enter()?;
        let matmul = Rc::new(Matmul::new(
            lt,
            &Shape {
                m: p.m,
                n: p.n,
                k: p.k,
                x_stride: p.k,
                y_stride: p.m,
                f32_out: p.f32_out,
                bias: None,
            },
        )?);
        // All that it could ask for.
        let allowed = Allowed {
            workspace: WORKSPACE,
            alignments: [256; 3],
            rounded_sums: true,
        };
        let choices = lt.algorithms(&matmul, allowed, limit)?.into_iter();
        Ok(choices
            .map(|choice| Algorithm {
                matmul: matmul.clone(),
                choice,
            })
            .collect())
    }

    fn lt(&self) -> Result<&CublasLt, GpuError> {
        self.stream.device().cublaslt()
    }

    /// Multiplies by a choice of cuBLASLt.
    ///
    /// # Errors
    /// [`GpuError::Cublas`].
    ///
    /// # Safety
    /// The operands are as large as the problem of the algorithm says.
    pub unsafe fn matmul(&self, algorithm: &Algorithm, at: Operands) -> Result<(), GpuError> {
        let Algorithm { matmul, choice } = algorithm;
        let scratch = (self.workspace.address(), WORKSPACE);
        let _current = self.stream.device().enter()?;
        // SAFETY: the caller's promise; one stream uses the workspace.
        unsafe {
            self.lt()?
                .multiply(matmul, choice, at, false, scratch, self.stream.raw())
        }
    }
}

impl Drop for Cublas {
    fn drop(&mut self) {
        let _current = self.stream.device().enter();
        // SAFETY: destroyed once.
        let _ = unsafe { cublas::result::destroy_handle(self.blas) };
    }
}
