use std::fmt;

use cudarc::driver::sys;

use crate::gpu::{
    buffer::same_context,
    cublaslt::{Algorithm, Allowed, Matmul, Operands, Shape},
    driver::{RawStream, check},
    error::{GpuError, Operand},
    matrix::DeviceMatrix,
    operands::{OutputType, RawOperands},
    workspace::{DENSE_ALIGN, DENSE_SCRATCH, DenseLayout, Workspace},
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

    fn of(operands: &RawOperands) -> Self {
        let vector = u64::from(VECTOR);
        let &RawOperands { x, y, x_stride, .. } = operands;
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
            bias: self.bias.then_some(u64::from(VECTOR)),
        }
    }

    fn allowed(self) -> Allowed {
        let (x, y) = match self.aligned {
            true => (VECTOR, VECTOR),
            false => (2, self.output.bytes() as u32),
        };
        Allowed {
            workspace: DENSE_SCRATCH,
            alignments: [DENSE_ALIGN as u32, x, y],
            // As the fused kernels' sums: FP32 until the end.
            rounded_sums: false,
        }
    }
}

impl DecoupledPlan {
    /// Lets cuBLASLt choose for every case, `n` tokens of each.
    ///
    /// # Errors
    /// [`GpuError::EmptyWeights`]; [`GpuError::NoLibrary`] and [`GpuError::NoAlgorithm`] when cuBLASLt
    /// is missing or has no choice for a case; [`GpuError::Cublas`].
    pub fn new(weights: &DeviceMatrix, n: usize) -> Result<Self, GpuError> {
        let (rows, cols) = (weights.rows(), weights.cols());
        let (m, k) = (rows, cols);
        if m * k == 0 {
            return Err(GpuError::EmptyWeights { rows, cols });
        }
        let library = weights.device().cublaslt()?;
        let _current = weights.device().enter()?;
        let choose = |case: Case| {
            let matmul = Matmul::new(library, &case.shape(m, n, k))?;
            let choices = library.algorithms(&matmul, case.allowed(), 1)?;
            let best = choices.first().copied();
            best.ok_or(GpuError::NoAlgorithm { rows, cols })
        };
        let algorithms = Case::all().map(choose).into_iter();
        let algorithms = algorithms.collect::<Result<Vec<_>, _>>()?;
        let algorithms = algorithms.try_into().expect("one for each case");
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
        let megabytes = DenseLayout::new(*m, *k).bytes as f64 / 1e6;
        write!(
            f,
            "{m} x {k} to memory, then cuBLASLt for {n} tokens; {megabytes:.0} MB of workspace"
        )
    }
}

impl DecoupledPlan {
    /// Where a call decompresses to.
    ///
    /// # Errors
    /// [`GpuError::PlanMismatch`] when the plan does not fit the call; [`GpuError::Missing`],
    /// [`GpuError::WorkspaceTooSmall`], [`GpuError::Alignment`] and [`GpuError::Context`] for memory
    /// for dense weights that does not.
    pub fn memory(
        &self,
        weights: &DeviceMatrix,
        operands: &RawOperands,
        workspace: &Workspace,
    ) -> Result<u64, GpuError> {
        let &Self { m, n, k, .. } = self;
        let (rows, cols) = (weights.rows(), weights.cols());
        if (operands.n, rows, cols) != (n, m, k) {
            let problem = |n, m, k| format!("{n} and weights of {m} x {k}");
            let got = problem(operands.n, rows, cols);
            return Err(GpuError::mismatch("tokens", problem(n, m, k), got));
        }
        let operand = Operand::DenseMemory;
        let memory = workspace.dense.as_ref();
        let memory = memory.ok_or(GpuError::Missing { operand })?;
        let (needed, address) = (DenseLayout::new(m, k).bytes, memory.address());
        Workspace::check_room("bytes for dense weights", needed, memory.len())?;
        if !address.is_multiple_of(DENSE_ALIGN as u64) {
            return Err(GpuError::Alignment {
                operand,
                align: DENSE_ALIGN,
                address,
                pitch: 0,
            });
        }
        same_context(weights.device(), memory.device(), operand)?;
        Ok(address)
    }
}

/// [`Plan::run_raw`](super::Plan::run_raw) in two steps, by way of the [memory](DecoupledPlan::memory)
/// at `dense`; neither dimension of the weights is 0.
///
/// # Errors
/// [`GpuError`] from driver and library.
///
/// # Safety
/// As [`Plan::run_raw`](super::Plan::run_raw).
pub unsafe fn run_decoupled(
    stream: RawStream,
    plan: &DecoupledPlan,
    weights: &DeviceMatrix,
    operands: &RawOperands,
    dense: u64,
) -> Result<(), GpuError> {
    let &DecoupledPlan { m, n, k, .. } = plan;
    let layout = DenseLayout::new(m, k);
    let at = |offset: usize| dense + offset as u64;
    let place = at(layout.bias);
    let case = Case::of(operands);
    let library = weights.device().cublaslt()?;
    // SAFETY: the caller's promise; weights, bias and cuBLASLt's memory follow one another in what
    // is large enough, and the choice was made for what the case says.
    unsafe {
        weights.decompress_raw(stream, dense)?;
        let bias = match operands.bias {
            Some(bias) => Some(place_bias(stream, bias, m, operands.output, place)?),
            None => None,
        };
        let matmul = Matmul::new(
            library,
            &Shape {
                m,
                n,
                k,
                x_stride: operands.x_stride,
                y_stride: operands.y_stride,
                f32_out: operands.output == OutputType::F32,
                bias,
            },
        )?;
        let factors = Operands {
            x: operands.x,
            w: dense,
            y: operands.y,
        };
        library.multiply(
            &matmul,
            &plan.algorithms[case.index()],
            factors,
            operands.accumulate,
            (at(layout.scratch), DENSE_SCRATCH),
            stream,
        )
    }
}

/// Whether cuBLASLt rounds to the type of the outputs before all is added up: it does, as seen on an
/// H100, if BF16 outputs get a bias.
pub fn rounds_twice(operands: &RawOperands) -> bool {
    operands.output == OutputType::Bf16 && operands.bias.is_some()
}

/// Makes `m` BF16 what cuBLASLt adds: of the outputs' type, and aligned. Gives its address, which
/// is `place` unless it can stay where it is.
///
/// # Safety
/// When the stream has come so far, the bias is there and `place` has room for `m` FP32.
unsafe fn place_bias(
    stream: RawStream,
    bias: u64,
    m: usize,
    output: OutputType,
    place: u64,
) -> Result<u64, GpuError> {
    if output == OutputType::Bf16 && bias.is_multiple_of(u64::from(VECTOR)) {
        return Ok(bias);
    }
    // SAFETY: the caller's promise.
    unsafe {
        match output {
            OutputType::Bf16 => check(
                "cuMemcpyDtoDAsync",
                sys::cuMemcpyDtoDAsync_v2(place, bias, 2 * m, stream.cast()),
            )?,
            OutputType::F32 => {
                // BF16 are the upper halves of FP32.
                check(
                    "cuMemsetD32Async",
                    sys::cuMemsetD32Async(place, 0, m, stream.cast()),
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
                check(
                    "cuMemcpy2DAsync",
                    sys::cuMemcpy2DAsync_v2(&halves, stream.cast()),
                )?;
            }
        }
    }
    Ok(place)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cases_have_places_of_their_own() {
        for (index, case) in Case::all().into_iter().enumerate() {
            assert_eq!(case.index(), index);
        }
    }

    #[test]
    fn a_case_is_aligned_if_every_row_is() {
        let aligned = RawOperands {
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
        let f32 = RawOperands {
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
            let operands = RawOperands {
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
            let operands = RawOperands {
                x_stride,
                y_stride,
                output: case.output,
                ..aligned
            };
            assert_eq!(Case::of(&operands).aligned, case.aligned);
        }
    }
}
