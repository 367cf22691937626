//! cuBLASLt, loaded at run time: dense matrix products, as [decoupled](super::PlanOptions::decoupled)
//! plans have them, and measurements beside them.
//!
//! [`Device::cublaslt`](super::Device::cublaslt) has the library. Its calls want the device to be
//! [entered](super::Device::enter).

use std::{ffi::c_void, ptr};

use bytemuck::NoUninit;
use cudarc::cublaslt::{result, sys};

use super::{driver::RawStream, error::GpuError};

/// A handle of the library, which serves one device and any thread.
pub struct CublasLt {
    handle: sys::cublasLtHandle_t,
}

// SAFETY: cuBLASLt lets any thread use a handle, several at a time.
unsafe impl Send for CublasLt {}
// SAFETY: as above.
unsafe impl Sync for CublasLt {}

/// Y[N, M] = X[N, K] W[M, K]^T: BF16 factors, FP32 sums.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Output features.
    pub m: usize,
    /// Tokens.
    pub n: usize,
    /// Input features.
    pub k: usize,
    /// Values from row to row of X.
    pub x_stride: usize,
    /// Values from row to row of Y.
    pub y_stride: usize,
    /// Y is FP32, not BF16.
    pub f32_out: bool,
    /// Address of M values of Y's type that are added to each of its rows.
    pub bias: Option<u64>,
}

/// What a choice of cuBLASLt may count on.
#[derive(Clone, Copy, Debug)]
pub struct Allowed {
    /// Bytes beside the operands.
    pub workspace: usize,
    /// Bytes to which W, X and Y are aligned.
    pub alignments: [u32; 3],
    /// Partial sums may be rounded to the type of Y.
    pub rounded_sums: bool,
}

/// One of cuBLASLt's choices for a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Algorithm(sys::cublasLtMatmulAlgo_t);

/// A product's description.
pub struct Matmul {
    description: Description,
    w: Layout,
    x: Layout,
    y: Layout,
}

/// Operands on the device.
#[derive(Clone, Copy, Debug)]
pub struct Operands {
    /// N rows of K.
    pub x: u64,
    /// M rows of K.
    pub w: u64,
    /// N rows of M.
    pub y: u64,
}

/// Memory beside the operands: address and bytes.
pub type Scratch = (u64, usize);

/// `CUBLAS_OP_T`.
const TRANSPOSED: i32 = 1;
const BF16: sys::cudaDataType = sys::cudaDataType::CUDA_R_16BF;
const F32: sys::cudaDataType = sys::cudaDataType::CUDA_R_32F;

/// Whether the library can be loaded, by names for which cudarc looks; without it, its first call would
/// panic. (cudarc itself tells only where no other crate has made it link to the library.)
fn is_there() -> bool {
    // SAFETY: loading NVIDIA's library, as its first call would.
    let load = |name: &str| unsafe { libloading::Library::new(name) };
    let names = ["libcublasLt.so", "libcublasLt.so.12", "libcublasLt.so.11"];
    names.into_iter().any(|name| load(name).is_ok())
}

fn check<T>(call: &'static str, result: Result<T, result::CublasError>) -> Result<T, GpuError> {
    result.map_err(|error| GpuError::Cublas {
        call,
        name: format!("{:?}", error.0),
    })
}

impl CublasLt {
    /// Loads the library, for the device of the current context.
    ///
    /// # Errors
    /// [`GpuError::NoLibrary`] when it is missing; [`GpuError::Cublas`] when it cannot be used.
    pub(super) fn load() -> Result<Self, GpuError> {
        if !is_there() {
            let name = "libcublasLt.so";
            return Err(GpuError::NoLibrary { name });
        }
        let handle = check("cublasLtCreate", result::create_handle())?;
        Ok(Self { handle })
    }

    /// Choices for a product, best guess first, at most `limit`.
    ///
    /// # Errors
    /// [`GpuError::Cublas`], perhaps also when there is none.
    pub fn algorithms(
        &self,
        matmul: &Matmul,
        allowed: Allowed,
        limit: usize,
    ) -> Result<Vec<Algorithm>, GpuError> {
        use sys::cublasLtMatmulPreferenceAttributes_t as Attribute;
        let preference = Preference::new()?;
        preference.set(
            Attribute::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
            allowed.workspace as u64,
        )?;
        let [w, x, y] = allowed.alignments;
        for (attribute, bytes) in [
            (Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, w),
            (Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, x),
            (Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, y),
            (Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, y),
        ] {
            preference.set(attribute, bytes)?;
        }
        if !allowed.rounded_sums {
            let scheme = sys::cublasLtReductionScheme_t::CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;
            preference.set(
                Attribute::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
                scheme as u32,
            )?;
        }
        let mut results: Vec<sys::cublasLtMatmulHeuristicResult_t> = Vec::with_capacity(limit);
        let mut found = 0;
        // SAFETY: all handles live; `results` has room for `limit`, of which the call fills
        // `found`.
        unsafe {
            let status = sys::cublasLtMatmulAlgoGetHeuristic(
                self.handle,
                matmul.description.0,
                matmul.w.0,
                matmul.x.0,
                matmul.y.0,
                matmul.y.0,
                preference.0,
                limit as i32,
                results.as_mut_ptr(),
                &mut found,
            );
            check("cublasLtMatmulAlgoGetHeuristic", status.result())?;
            results.set_len(found as usize);
        }
        let good = |result: &sys::cublasLtMatmulHeuristicResult_t| {
            result.state == sys::cublasStatus_t::CUBLAS_STATUS_SUCCESS
        };
        let good = results.into_iter().filter(good);
        Ok(good.map(|result| Algorithm(result.algo)).collect())
    }

    /// Multiplies; with `accumulate`, onto what Y holds, which is added before a bias. The call
    /// returns at once, and can be captured into a CUDA graph.
    ///
    /// # Errors
    /// [`GpuError::Cublas`].
    ///
    /// # Safety
    /// The stream is one of the handle's device, and the choice one for this product. When the kernels
    /// run, operands and bias are as large as the description says and aligned as the choice counted on,
    /// and nothing else uses the scratch memory.
    pub unsafe fn multiply(
        &self,
        matmul: &Matmul,
        algorithm: &Algorithm,
        at: Operands,
        accumulate: bool,
        (scratch, bytes): Scratch,
        stream: RawStream,
    ) -> Result<(), GpuError> {
        let one = 1f32;
        let beta = f32::from(accumulate);
        // SAFETY: the caller's promise; the call has read the factors when it returns.
        let multiplied = unsafe {
            result::matmul(
                self.handle,
                matmul.description.0,
                (&raw const one).cast(),
                (&raw const beta).cast(),
                at.w as *const c_void,
                matmul.w.0,
                at.x as *const c_void,
                matmul.x.0,
                at.y as *const c_void,
                matmul.y.0,
                at.y as *mut c_void,
                matmul.y.0,
                &algorithm.0,
                scratch as *mut c_void,
                bytes,
                stream.cast(),
            )
        };
        check("cublasLtMatmul", multiplied)
    }
}

impl Drop for CublasLt {
    fn drop(&mut self) {
        // SAFETY: destroyed once. Nothing can be done about an error.
        let _ = unsafe { result::destroy_handle(self.handle) };
    }
}

impl Matmul {
    /// Describes a product to a library, which is thereby known to be there.
    ///
    /// # Errors
    /// [`GpuError::Cublas`].
    pub fn new(_: &CublasLt, shape: &Shape) -> Result<Self, GpuError> {
        use sys::cublasLtMatmulDescAttributes_t as Attribute;
        let &Shape { m, n, k, .. } = shape;
        let description = Description::new()?;
        // Row-major Y is column-major Y^T = W X^T, whose rows are the output features.
        description.set(Attribute::CUBLASLT_MATMUL_DESC_TRANSA, TRANSPOSED)?;
        if let Some(bias) = shape.bias {
            let epilogue = sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BIAS as u32;
            description.set(Attribute::CUBLASLT_MATMUL_DESC_EPILOGUE, epilogue)?;
            description.set(Attribute::CUBLASLT_MATMUL_DESC_BIAS_POINTER, bias)?;
        }
        let y = if shape.f32_out { F32 } else { BF16 };
        Ok(Self {
            description,
            w: Layout::new(BF16, k, m, k)?,
            x: Layout::new(BF16, k, n, shape.x_stride)?,
            y: Layout::new(y, m, n, shape.y_stride)?,
        })
    }
}

struct Description(sys::cublasLtMatmulDesc_t);

impl Description {
    fn new() -> Result<Self, GpuError> {
        let compute = sys::cublasComputeType_t::CUBLAS_COMPUTE_32F;
        let description = result::create_matmul_desc(compute, F32);
        Ok(Self(check("cublasLtMatmulDescCreate", description)?))
    }

    fn set<T: NoUninit>(
        &self,
        attribute: sys::cublasLtMatmulDescAttributes_t,
        value: T,
    ) -> Result<(), GpuError> {
        let value = ptr::from_ref(&value).cast();
        // SAFETY: lives until it is dropped; the call copies the value, and knows its size.
        let set =
            unsafe { result::set_matmul_desc_attribute(self.0, attribute, value, size_of::<T>()) };
        check("cublasLtMatmulDescSetAttribute", set)
    }
}

impl Drop for Description {
    fn drop(&mut self) {
        // SAFETY: destroyed once.
        let _ = unsafe { result::destroy_matmul_desc(self.0) };
    }
}

/// A column-major matrix.
struct Layout(sys::cublasLtMatrixLayout_t);

impl Layout {
    fn new(
        of: sys::cudaDataType,
        rows: usize,
        cols: usize,
        stride: usize,
    ) -> Result<Self, GpuError> {
        let layout = result::create_matrix_layout(of, rows as u64, cols as u64, stride as i64);
        Ok(Self(check("cublasLtMatrixLayoutCreate", layout)?))
    }
}

impl Drop for Layout {
    fn drop(&mut self) {
        // SAFETY: destroyed once.
        let _ = unsafe { result::destroy_matrix_layout(self.0) };
    }
}

struct Preference(sys::cublasLtMatmulPreference_t);

impl Preference {
    fn new() -> Result<Self, GpuError> {
        let preference = result::create_matmul_pref();
        Ok(Self(check("cublasLtMatmulPreferenceCreate", preference)?))
    }

    fn set<T: NoUninit>(
        &self,
        attribute: sys::cublasLtMatmulPreferenceAttributes_t,
        value: T,
    ) -> Result<(), GpuError> {
        let value = ptr::from_ref(&value).cast();
        // SAFETY: lives until it is dropped; the call copies the value, and knows its size.
        let set =
            unsafe { result::set_matmul_pref_attribute(self.0, attribute, value, size_of::<T>()) };
        check("cublasLtMatmulPreferenceSetAttribute", set)
    }
}

impl Drop for Preference {
    fn drop(&mut self) {
        // SAFETY: destroyed once.
        let _ = unsafe { result::destroy_matmul_pref(self.0) };
    }
}
