use cudarc::driver::sys::CUdeviceptr;
use cust::memory::DeviceSlice;
use zipserv_gpu::args::Output;

use super::{CudaError, DeviceMatrix, plan::check_tokens};

/// What [`zipgemm_with`](super::zipgemm_with) reads and writes besides the weights:
/// Y[N, M] = X[N, K] W[M, K]^T + bias + Y[N, M].
///
/// Bias and old Y are added if they are asked for, in this order, in FP32 and after all of the
/// sum over K; rounding comes last, and only to BF16 outputs. Of FP32
/// outputs, a [decoupled](super::Plan::is_decoupled) plan's call adds old Y before the bias.
///
/// ```no_run
/// # use cust::memory::DeviceBuffer;
/// # use zipserv::cuda::{DeviceMatrix, GemmSlices, Outputs};
/// # fn operands(weights: &DeviceMatrix, x: &DeviceBuffer<u16>, y: &mut DeviceBuffer<f32>, bias: &DeviceBuffer<u16>) {
/// // 200 tokens, of rows that start 8192 activations apart, added to FP32 outputs.
/// let operands = GemmSlices {
///     x_stride: 8192,
///     bias: Some(bias),
///     accumulate: true,
///     ..GemmSlices::new(weights, x, 200, Outputs::F32(y))
/// };
/// # }
/// ```
pub struct GemmSlices<'a> {
    /// Activations: N rows of K BF16.
    pub x: &'a DeviceSlice<u16>,
    /// Activations from the start of a row to that of the next, at least K.
    pub x_stride: usize,
    /// Tokens, N.
    pub n: usize,
    /// Outputs: N rows of M. What lies between the rows stays as it is.
    pub y: Outputs<'a>,
    /// Outputs from the start of a row to that of the next, at least M.
    pub y_stride: usize,
    /// M BF16 to add to the outputs of every token.
    pub bias: Option<&'a DeviceSlice<u16>>,
    /// Whether to add what the outputs hold.
    pub accumulate: bool,
}

/// Outputs, of one of the types that [`zipgemm_with`](super::zipgemm_with) writes.
pub enum Outputs<'a> {
    /// Bits of BF16.
    Bf16(&'a mut DeviceSlice<u16>),
    /// FP32.
    F32(&'a mut DeviceSlice<f32>),
}

/// [`GemmSlices`] as pointers, for [`zipgemm_raw`](super::zipgemm_raw).
#[derive(Clone, Copy, Debug)]
pub struct GemmOperands {
    /// Activations: N rows of K BF16.
    pub x: CUdeviceptr,
    /// Activations from the start of a row to that of the next, at least K.
    pub x_stride: usize,
    /// Tokens, N.
    pub n: usize,
    /// Outputs: N rows of M. What lies between the rows stays as it is.
    pub y: CUdeviceptr,
    /// Outputs from the start of a row to that of the next, at least M.
    pub y_stride: usize,
    /// Type of the outputs.
    pub output: OutputType,
    /// M BF16 to add to the outputs of every token.
    pub bias: Option<CUdeviceptr>,
    /// Whether to add what the outputs hold.
    pub accumulate: bool,
}

/// Type of outputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutputType {
    /// BF16, rounded to nearest, ties to even.
    Bf16,
    /// FP32: the sums as they are.
    F32,
}

impl OutputType {
    /// Bytes of an output.
    pub fn bytes(self) -> usize {
        match self {
            Self::Bf16 => 2,
            Self::F32 => 4,
        }
    }
}

impl<'a> GemmSlices<'a> {
    /// Rows that follow one another, and no bias, nor anything else that is added.
    pub fn new(weights: &DeviceMatrix, x: &'a DeviceSlice<u16>, n: usize, y: Outputs<'a>) -> Self {
        Self {
            x,
            x_stride: weights.cols(),
            n,
            y,
            y_stride: weights.rows(),
            bias: None,
            accumulate: false,
        }
    }

    /// The same as pointers, if all that a multiplication by weights of `m` x `k` touches is there.
    pub(super) fn checked(&self, m: usize, k: usize) -> Result<GemmOperands, CudaError> {
        let (y, len, output) = match &self.y {
            Outputs::Bf16(y) => (y.as_device_ptr().as_raw(), y.len(), OutputType::Bf16),
            Outputs::F32(y) => (y.as_device_ptr().as_raw(), y.len(), OutputType::F32),
        };
        let operands = GemmOperands {
            x: self.x.as_device_ptr().as_raw(),
            x_stride: self.x_stride,
            n: self.n,
            y,
            y_stride: self.y_stride,
            output,
            bias: self.bias.map(|bias| bias.as_device_ptr().as_raw()),
            accumulate: self.accumulate,
        };
        operands.check(m, k)?;
        let fits = |what, len, stride, width| match span(self.n, stride, width) {
            Some(span) if span <= len => Ok(()),
            _ => Err(CudaError::Argument(format!(
                "{} rows of {width} {what}, {stride} apart, do not fit {len}",
                self.n
            ))),
        };
        fits("activations", self.x.len(), self.x_stride, k)?;
        fits("outputs", len, self.y_stride, m)?;
        match self.bias.map(DeviceSlice::len) {
            Some(len) if len != m => Err(CudaError::Argument(format!(
                "a bias of {len} does not fit {m} output features"
            ))),
            _ => Ok(operands),
        }
    }
}

/// Values from the start of the first of `rows` rows of `width` to the end of the last, if that
/// many can be.
fn span(rows: usize, stride: usize, width: usize) -> Option<usize> {
    match rows.checked_sub(1) {
        Some(before) if width > 0 => before.checked_mul(stride)?.checked_add(width),
        _ => Some(0),
    }
}

impl GemmOperands {
    /// BF16 outputs, rows that follow one another, and no bias, nor anything else that is added.
    pub fn new(weights: &DeviceMatrix, x: CUdeviceptr, n: usize, y: CUdeviceptr) -> Self {
        Self {
            x,
            x_stride: weights.cols(),
            n,
            y,
            y_stride: weights.rows(),
            output: OutputType::Bf16,
            bias: None,
            accumulate: false,
        }
    }

    /// Fails unless weights of `m` x `k` can be multiplied by them, as far as numbers tell.
    pub(super) fn check(&self, m: usize, k: usize) -> Result<(), CudaError> {
        check_tokens(self.n)?;
        let wrong = |wrong: String| Err(CudaError::Argument(wrong));
        let bytes = self.output.bytes();
        for (what, stride, width, bytes) in [
            ("activations", self.x_stride, k, 2),
            ("outputs", self.y_stride, m, bytes),
        ] {
            let most = u32::MAX as usize / bytes;
            if !(width..=most).contains(&stride) {
                return wrong(format!(
                    "rows of {width} {what} cannot start {stride} apart, but {width} to {most}"
                ));
            }
        }
        for (what, address, bytes) in [
            ("activations", Some(self.x), 2),
            ("outputs", Some(self.y), bytes),
            ("the bias", self.bias, 2),
        ] {
            if address.is_some_and(|address| !address.is_multiple_of(bytes as CUdeviceptr)) {
                return wrong(format!("{what} must be aligned to {bytes} bytes"));
            }
        }
        if self.bias == Some(0) && m > 0 {
            return wrong("the bias is null".to_owned());
        }
        Ok(())
    }

    /// Bytes from the start of a row of outputs to that of the next.
    pub(super) fn y_pitch(&self) -> usize {
        self.y_stride * self.output.bytes()
    }

    /// Those of up to `most` tokens from `first` on.
    pub(super) fn slice(&self, first: usize, most: usize) -> Self {
        let x_pitch = 2 * self.x_stride;
        let from = |address: CUdeviceptr, pitch| address.wrapping_add((first * pitch) as u64);
        Self {
            x: from(self.x, x_pitch),
            y: from(self.y, self.y_pitch()),
            n: most.min(self.n - first),
            ..*self
        }
    }

    /// Outputs as kernels take them; they are [checked](Self::check).
    pub(super) fn output(&self) -> Output {
        Output {
            y: self.y as *mut u8,
            bias: self.bias.unwrap_or(0) as *const u16,
            pitch: self.y_pitch() as u32,
            is_f32: self.output == OutputType::F32,
            accumulate: self.accumulate,
        }
    }
}

#[cfg(test)]
mod tests {
    use cust::memory::{DeviceCopy, DevicePointer};

    use super::*;

    const M: usize = 100;
    const K: usize = 200;

    /// Memory that is never touched.
    fn slice<T: DeviceCopy>(len: usize) -> DeviceSlice<T> {
        // SAFETY: only its address and length are asked for.
        unsafe { DeviceSlice::from_raw_parts(DevicePointer::from_raw(0x1000), len) }
    }

    /// What is wrong with operands of which `x`, `y` and `bias` have so many values.
    fn wrong([x, y, bias]: [usize; 3], change: impl FnOnce(&mut GemmSlices)) -> Option<String> {
        let (x, mut y, bias) = (slice(x), slice(y), slice(bias));
        let mut operands = GemmSlices {
            x: &x,
            x_stride: K,
            n: 3,
            y: Outputs::F32(&mut y),
            y_stride: M,
            bias: Some(&bias),
            accumulate: true,
        };
        change(&mut operands);
        let result = operands.checked(M, K);
        result.err().map(|error| error.to_string())
    }

    #[test]
    fn rows_that_fit() {
        let dense = [3 * K, 3 * M, M];
        assert_eq!(wrong(dense, |_| ()), None);
        assert_eq!(wrong(dense, |operands| operands.n = 2), None);
        // The last row ends where its values do, not its stride.
        let strided = [2 * 201 + K, 2 * 128 + M, M];
        let stride = |operands: &mut GemmSlices| {
            operands.x_stride = 201;
            operands.y_stride = 128;
        };
        assert_eq!(wrong(strided, stride), None);
        let [x, y, bias] = strided;
        for short in [[x - 1, y, bias], [x, y - 1, bias]] {
            let error = wrong(short, stride).expect("too short");
            assert!(error.contains("do not fit"), "{error}");
        }
        for bias in [0, M - 1, M + 1] {
            let error = wrong([x, y, bias], stride).expect("another length");
            assert!(error.contains("bias"), "{error}");
        }
        assert_eq!(wrong([x, y, 0], |operands| operands.bias = None), None);
    }

    #[test]
    fn numbers_out_of_range() {
        let dense = [3 * K, 3 * M, M];
        for n in [0, 4, 16_385, usize::MAX] {
            assert!(wrong(dense, |operands| operands.n = n).is_some(), "{n}");
        }
        // The last ones would wrap around to something small.
        for stride in [0, K - 1, 1 << 32, usize::MAX / 2 + 1, usize::MAX] {
            let error = wrong(dense, |operands| operands.x_stride = stride);
            assert!(error.is_some_and(|error| error.contains("apart")));
        }
        for stride in [0, M - 1, 1 << 30, usize::MAX / 2 + 1, usize::MAX] {
            let error = wrong(dense, |operands| operands.y_stride = stride);
            assert!(error.is_some_and(|error| error.contains("apart")));
        }
    }

    #[test]
    fn spans() {
        assert_eq!(span(1, usize::MAX, 7), Some(7));
        assert_eq!(span(3, 10, 7), Some(27));
        assert_eq!(span(2, usize::MAX, 1), None);
        assert_eq!(span(3, usize::MAX / 2 + 1, 1), None);
        assert_eq!(span(0, 10, 7), Some(0));
        assert_eq!(span(3, 10, 0), Some(0));
    }

    #[test]
    fn pointers_out_of_line() {
        let operands = GemmOperands {
            x: 0x1002,
            x_stride: K,
            n: 3,
            y: 0x1004,
            y_stride: M,
            output: OutputType::F32,
            bias: Some(0x1002),
            accumulate: false,
        };
        assert!(operands.check(M, K).is_ok());
        let bf16 = GemmOperands {
            y: 0x1002,
            output: OutputType::Bf16,
            ..operands
        };
        assert!(bf16.check(M, K).is_ok());
        for wrong in [
            GemmOperands {
                x: 0x1001,
                ..operands
            },
            GemmOperands {
                y: 0x1002,
                ..operands
            },
            GemmOperands {
                bias: Some(0x1001),
                ..operands
            },
            GemmOperands {
                bias: Some(0),
                ..operands
            },
        ] {
            assert!(wrong.check(M, K).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn slices_of_tokens_start_where_their_rows_do() {
        let operands = GemmOperands {
            x: 0x1000,
            x_stride: 208,
            n: 130,
            y: 0x2000,
            y_stride: 104,
            output: OutputType::F32,
            bias: None,
            accumulate: true,
        };
        let slice = operands.slice(64, 64);
        assert_eq!((slice.x, slice.n), (0x1000 + 64 * 208 * 2, 64));
        let output = slice.output();
        assert_eq!(output.y as usize, 0x2000 + 64 * 104 * 4);
        assert_eq!(operands.slice(128, 64).n, 2);
        assert_eq!(output.pitch, 104 * 4);
        assert!(output.bias.is_null() && output.is_f32 && output.accumulate);
    }
}
