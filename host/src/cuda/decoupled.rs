use std::fmt;

use cudarc::driver::sys::{self, CUdeviceptr};

use super::{
    CudaError, DeviceMatrix, GemmOperands, Gpu, OutputType, RawStream, Workspace, check,
    cublaslt::{Algorithm, Allowed, Matmul, Operands, Shape},
    decompress::decompress_raw,
    gemm::zipgemm_fused_raw,
    guard,
};

/// Decompression to memory, followed by a dense product of cuBLASLt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DecoupledPlan {
    m: usize,
    n: usize,
    k: usize,
    /// cuBLASLt's choice for each [`Case`].
    algorithms: [Algorithm; Case::COUNT],
}

/// What cuBLASLt's choice depends on and a call decides.
#[derive(Clone, Copy, Debug)]
struct Case {
    output: OutputType,
    bias: bool,
    /// Rows of activations and outputs are aligned to [`VECTOR`].
    aligned: bool,
}

/// Bytes to which cuBLASLt's fast kernels want rows of activations and outputs aligned.
const VECTOR: u32 = 16;
/// Bytes to which memory for dense weights is aligned, as allocations are.
const ALIGN: usize = 256;
/// Bytes that cuBLASLt may use beside the operands, as much as it is recommended for Hopper.
const SCRATCH: usize = 32 << 20;

/// How memory for dense weights is used: the weights, a bias, then cuBLASLt's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    bias: usize,
    scratch: usize,
    /// All of it.
    pub bytes: usize,
}

impl Layout {
    pub fn new(m: usize, k: usize) -> Self {
        let bias = (2 * m * k).next_multiple_of(ALIGN);
        let scratch = (bias + 4 * m).next_multiple_of(ALIGN);
        Self {
            bias,
            scratch,
            bytes: scratch + SCRATCH,
        }
    }
}

impl Case {
    const COUNT: usize = 8;

    fn all() -> [Self; Self::COUNT] {
        std::array::from_fn(|index| Self {
            output: match index & 4 {
                0 => OutputType::Bf16,
                _ => OutputType::F32,
            },
            bias: index & 2 != 0,
            aligned: index & 1 != 0,
        })
    }

    fn of(operands: &GemmOperands) -> Self {
        let vector = u64::from(VECTOR);
        let &GemmOperands { x, y, x_stride, .. } = operands;
        let starts = [x, y, 2 * x_stride as u64, operands.y_pitch() as u64];
        Self {
            output: operands.output,
            bias: operands.bias.is_some(),
            aligned: starts.iter().all(|start| start.is_multiple_of(vector)),
        }
    }

    fn index(self) -> usize {
        let f32_out = self.output == OutputType::F32;
        4 * usize::from(f32_out) + 2 * usize::from(self.bias) + usize::from(self.aligned)
    }

    /// A product of this case that is as hard as any.
    fn shape(self, m: usize, n: usize, k: usize) -> Shape {
        let per_vector = VECTOR as usize / self.output.bytes();
        let (x_stride, y_stride) = match self.aligned {
            true => (k.next_multiple_of(8), m.next_multiple_of(per_vector)),
            false => (k | 1, m | 1),
        };
        Shape {
            m,
            n,
            k,
            x_stride,
            y_stride,
            f32_out: self.output == OutputType::F32,
            // Never read, but some versions make no choice without an address.
            bias: self.bias.then_some(CUdeviceptr::from(VECTOR)),
        }
    }

    fn allowed(self) -> Allowed {
        let (x, y) = match self.aligned {
            true => (VECTOR, VECTOR),
            false => (2, self.output.bytes() as u32),
        };
        Allowed {
            workspace: SCRATCH,
            alignments: [ALIGN as u32, x, y],
            // As the fused kernels' sums: FP32 until the end.
            rounded_sums: false,
        }
    }
}

impl DecoupledPlan {
    /// Lets cuBLASLt choose for every case, `n` tokens of each.
    ///
    /// # Errors
    /// [`CudaError`] when the library is missing, or has no choice for a case.
    pub fn new(gpu: &Gpu, weights: &DeviceMatrix, n: usize) -> Result<Self, CudaError> {
        let (m, k) = (weights.rows(), weights.cols());
        if m * k == 0 {
            return Err(CudaError::Argument("there are no weights".to_owned()));
        }
        guard::current_context(gpu)?;
        let library = gpu.cublaslt()?;
        let choose = |case: Case| {
            let matmul = Matmul::new(&case.shape(m, n, k))?;
            let choices = library.algorithms(&matmul, case.allowed(), 1)?;
            choices.first().copied().ok_or_else(|| {
                CudaError::Argument(format!("cuBLASLt has no choice for {m} x {k}, {case:?}"))
            })
        };
        let mut algorithms = [Algorithm { data: [0; 8] }; Case::COUNT];
        for (case, algorithm) in Case::all().into_iter().zip(&mut algorithms) {
            *algorithm = choose(case)?;
        }
        Ok(Self {
            m,
            n,
            k,
            algorithms,
        })
    }
}

impl fmt::Display for DecoupledPlan {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Self { m, n, k, .. } = self;
        let megabytes = Layout::new(*m, *k).bytes as f64 / 1e6;
        write!(
            f,
            "{m} x {k} to memory, then cuBLASLt for {n} tokens; {megabytes:.0} MB of workspace"
        )
    }
}

/// [`zipgemm_raw`](super::zipgemm_raw) in two steps, or fused where cuBLASLt rounds twice; neither
/// dimension of the weights is 0.
///
/// # Errors
/// [`CudaError::Argument`] when the plan or the workspace does not fit; [`CudaError`] from driver
/// and library.
///
/// # Safety
/// As [`zipgemm_raw`](super::zipgemm_raw).
pub unsafe fn zipgemm_decoupled_raw(
    gpu: &Gpu,
    stream: RawStream,
    plan: &DecoupledPlan,
    weights: &DeviceMatrix,
    operands: &GemmOperands,
    workspace: &Workspace,
) -> Result<(), CudaError> {
    let &DecoupledPlan { m, n, k, .. } = plan;
    let wrong = |wrong: String| Err(CudaError::Argument(wrong));
    if (operands.n, weights.rows(), weights.cols()) != (n, m, k) {
        return wrong(format!(
            "the plan is for {n} tokens and {m} x {k}, not {} and {} x {}",
            operands.n,
            weights.rows(),
            weights.cols()
        ));
    }
    let Some(dense) = &workspace.dense else {
        let wanted = "the plan decompresses to memory, and the workspace has none for it";
        return wrong(format!("{wanted}; see Workspace::with_dense"));
    };
    let layout = Layout::new(m, k);
    if dense.bytes < layout.bytes {
        return wrong(format!(
            "{m} x {k} takes {} bytes of memory for dense weights, not {}",
            layout.bytes, dense.bytes
        ));
    }
    if !dense.address.is_multiple_of(ALIGN as CUdeviceptr) {
        return wrong(format!(
            "memory for dense weights must be aligned to {ALIGN} bytes"
        ));
    }
    let memory = [("the memory for dense weights", dense.address)];
    guard::current_context(gpu)?;
    guard::same_device(gpu, stream, &memory)?;

    if rounds_twice(operands) {
        // SAFETY: the caller's promise.
        return unsafe { zipgemm_fused_raw(gpu, stream, false, weights, operands, workspace) };
    }
    let at = |offset: usize| dense.address + offset as CUdeviceptr;
    let place = at(layout.bias);
    let case = Case::of(operands);
    let library = gpu.cublaslt()?;
    // SAFETY: the caller's promise; weights, bias and cuBLASLt's memory follow one another in what
    // is large enough, and the choice was made for what the case says.
    unsafe {
        decompress_raw(gpu, stream, weights, dense.address)?;
        let bias = match operands.bias {
            Some(bias) => Some(place_bias(stream, bias, m, operands.output, place)?),
            None => None,
        };
        let matmul = Matmul::new(&Shape {
            m,
            n,
            k,
            x_stride: operands.x_stride,
            y_stride: operands.y_stride,
            f32_out: operands.output == OutputType::F32,
            bias,
        })?;
        let factors = Operands {
            x: operands.x,
            w: dense.address,
            y: operands.y,
        };
        library.multiply(
            &matmul,
            &plan.algorithms[case.index()],
            factors,
            operands.accumulate,
            (at(layout.scratch), SCRATCH),
            stream,
        )
    }
}

/// Whether cuBLASLt rounds to the type of the outputs before all is added up: it does, as seen on an
/// H100, if BF16 outputs get a bias.
fn rounds_twice(operands: &GemmOperands) -> bool {
    operands.output == OutputType::Bf16 && operands.bias.is_some()
}

/// Makes `m` BF16 what cuBLASLt adds: of the outputs' type, and aligned. Gives its address, which
/// is `place` unless it can stay where it is.
///
/// # Safety
/// When the stream has come so far, the bias is there and `place` has room for `m` FP32.
unsafe fn place_bias(
    stream: RawStream,
    bias: CUdeviceptr,
    m: usize,
    output: OutputType,
    place: CUdeviceptr,
) -> Result<CUdeviceptr, CudaError> {
    if output == OutputType::Bf16 && bias.is_multiple_of(u64::from(VECTOR)) {
        return Ok(bias);
    }
    // SAFETY: the caller's promise.
    unsafe {
        match output {
            OutputType::Bf16 => check(
                "cuMemcpyDtoDAsync",
                sys::cuMemcpyDtoDAsync_v2(place, bias, 2 * m, stream),
            )?,
            OutputType::F32 => {
                // BF16 are the upper halves of FP32.
                check(
                    "cuMemsetD32Async",
                    sys::cuMemsetD32Async(place, 0, m, stream),
                )?;
                let halves = sys::CUDA_MEMCPY2D {
                    srcMemoryType: sys::CUmemorytype::CU_MEMORYTYPE_DEVICE,
                    srcDevice: bias,
                    srcPitch: 2,
                    dstXInBytes: 2,
                    dstMemoryType: sys::CUmemorytype::CU_MEMORYTYPE_DEVICE,
                    dstDevice: place,
                    dstPitch: 4,
                    WidthInBytes: 2,
                    Height: m,
                    srcXInBytes: 0,
                    srcY: 0,
                    srcHost: std::ptr::null(),
                    srcArray: std::ptr::null_mut(),
                    dstY: 0,
                    dstHost: std::ptr::null_mut(),
                    dstArray: std::ptr::null_mut(),
                };
                check("cuMemcpy2DAsync", sys::cuMemcpy2DAsync_v2(&halves, stream))?;
            }
        }
    }
    Ok(place)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_the_workspace_do_not_overlap() {
        for (m, k) in [(1, 1), (133, 267), (4096, 4096), (57344, 8192)] {
            let Layout {
                bias,
                scratch,
                bytes,
            } = Layout::new(m, k);
            assert!(bias >= 2 * m * k && scratch >= bias + 4 * m);
            assert_eq!(bytes, scratch + SCRATCH);
            assert!(bias.is_multiple_of(ALIGN) && scratch.is_multiple_of(ALIGN));
        }
    }

    #[test]
    fn cases_have_places_of_their_own() {
        for (index, case) in Case::all().into_iter().enumerate() {
            assert_eq!(case.index(), index);
        }
    }

    #[test]
    fn a_case_is_aligned_if_every_row_is() {
        let aligned = GemmOperands {
            x: 0x1000,
            x_stride: 264,
            n: 3,
            y: 0x2010,
            y_stride: 136,
            output: OutputType::Bf16,
            bias: Some(0x3002),
            accumulate: true,
        };
        assert!(Case::of(&aligned).aligned && Case::of(&aligned).bias);
        let f32 = GemmOperands {
            y_stride: 132,
            output: OutputType::F32,
            bias: None,
            ..aligned
        };
        assert!(Case::of(&f32).aligned && !Case::of(&f32).bias);
        for (x, x_stride, y, y_stride) in [
            (0x1002, 264, 0x2010, 136),
            (0x1000, 265, 0x2010, 136),
            (0x1000, 264, 0x2008, 136),
            (0x1000, 264, 0x2010, 132),
        ] {
            let operands = GemmOperands {
                x,
                x_stride,
                y,
                y_stride,
                ..aligned
            };
            assert!(!Case::of(&operands).aligned, "{operands:?}");
        }
        // What a choice is made for is as the case says.
        for case in Case::all() {
            let Shape {
                x_stride, y_stride, ..
            } = case.shape(133, 100, 267);
            let operands = GemmOperands {
                x_stride,
                y_stride,
                output: case.output,
                ..aligned
            };
            assert_eq!(Case::of(&operands).aligned, case.aligned);
        }
    }
}
