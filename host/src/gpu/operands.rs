use half::bf16;
use zipserv_gpu::args::Output;

use super::{
    buffer::{Buffer, View, ViewMut, check_len, same_context},
    device::Device,
    error::{GpuError, Need, Operand},
    matrix::DeviceMatrix,
    workspace::Workspace,
};

/// Tokens of one call at most.
pub const MAX_TOKENS: usize = 16_384;

/// What a [plan](super::Plan::run) reads and writes besides the weights:
/// Y[N, M] = X[N, K] W[M, K]^T + bias + Y[N, M].
///
/// Bias and old Y are added if they are asked for, in this order, in FP32 and after all of the
/// sum over K; rounding comes last, and only to BF16 outputs. Of FP32
/// outputs, a [decoupled](super::Plan::is_decoupled) plan's call adds old Y before the bias.
///
/// ```no_run
/// # use half::bf16;
/// # use zipserv::gpu::{Buffer, Operands};
/// # fn operands(x: &Buffer<bf16>, y: &mut Buffer<f32>, bias: &Buffer<bf16>) {
/// // 200 tokens, of rows that start 8192 activations apart, added to FP32 outputs.
/// let operands = Operands::new(x, y).tokens(200).x_stride(8192).bias(bias).accumulate();
/// # }
/// ```
pub struct Operands<'a> {
    x: View<'a, bf16>,
    y: Outputs<'a>,
    bias: Option<View<'a, bf16>>,
    accumulate: bool,
    n: Option<usize>,
    x_stride: Option<usize>,
    y_stride: Option<usize>,
}

/// Outputs, of one of the types that kernels write.
pub enum Outputs<'a> {
    /// BF16.
    Bf16(ViewMut<'a, bf16>),
    /// FP32.
    F32(ViewMut<'a, f32>),
}

/// [`Operands`] as pointers, for [`Plan::run_raw`](super::Plan::run_raw).
#[derive(Clone, Copy, Debug)]
pub struct RawOperands {
    /// Activations: N rows of K BF16.
    pub x: u64,
    /// Activations from the start of a row to that of the next, at least K.
    pub x_stride: usize,
    /// Tokens, N.
    pub n: usize,
    /// Outputs: N rows of M. What lies between the rows stays as it is.
    pub y: u64,
    /// Outputs from the start of a row to that of the next, at least M.
    pub y_stride: usize,
    /// Type of the outputs.
    pub output: OutputType,
    /// M BF16 to add to the outputs of every token.
    pub bias: Option<u64>,
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

impl<'a> Operands<'a> {
    /// Rows of activations and of outputs that follow one another, as many as `x` has, and no bias,
    /// nor anything else that is added.
    pub fn new(x: impl Into<View<'a, bf16>>, y: impl Into<Outputs<'a>>) -> Self {
        Self {
            x: x.into(),
            y: y.into(),
            bias: None,
            accumulate: false,
            n: None,
            x_stride: None,
            y_stride: None,
        }
    }

    /// Adds M BF16 to the outputs of every token.
    #[must_use]
    pub fn bias(self, bias: impl Into<View<'a, bf16>>) -> Self {
        Self {
            bias: Some(bias.into()),
            ..self
        }
    }

    /// Adds what the outputs hold.
    #[must_use]
    pub fn accumulate(self) -> Self {
        Self {
            accumulate: true,
            ..self
        }
    }

    /// So many tokens, N, of perhaps more that there is room for. Without it, `x` holds just N rows
    /// that follow one another.
    #[must_use]
    pub fn tokens(self, n: usize) -> Self {
        Self { n: Some(n), ..self }
    }

    /// Activations from the start of a row to that of the next, at least K; it goes with
    /// [`tokens`](Self::tokens).
    #[must_use]
    pub fn x_stride(self, stride: usize) -> Self {
        Self {
            x_stride: Some(stride),
            ..self
        }
    }

    /// Outputs from the start of a row to that of the next, at least M. What lies between the rows
    /// stays as it is.
    #[must_use]
    pub fn y_stride(self, stride: usize) -> Self {
        Self {
            y_stride: Some(stride),
            ..self
        }
    }

    /// The same as pointers, if all that a multiplication by `weights` touches is there.
    pub(super) fn checked(&self, weights: &DeviceMatrix) -> Result<RawOperands, GpuError> {
        let device = weights.device();
        same_context(device, self.x.device(), Operand::Activations)?;
        same_context(device, self.y.device(), Operand::Outputs)?;
        if let Some(bias) = &self.bias {
            same_context(device, bias.device(), Operand::Bias)?;
        }
        let (m, k) = (weights.rows(), weights.cols());
        let n = match self.n {
            Some(n) => n,
            None => {
                check_len(Operand::Activations, Need::MultipleOf(k), self.x.len())?;
                self.x.len() / k
            }
        };
        let (y, y_len, output) = match &self.y {
            Outputs::Bf16(y) => (y.as_view().address(), y.as_view().len(), OutputType::Bf16),
            Outputs::F32(y) => (y.as_view().address(), y.as_view().len(), OutputType::F32),
        };
        let operands = RawOperands {
            x: self.x.address(),
            x_stride: self.x_stride.unwrap_or(k),
            n,
            y,
            y_stride: self.y_stride.unwrap_or(m),
            output,
            bias: self.bias.map(|bias| bias.address()),
            accumulate: self.accumulate,
        };
        let lengths = Lengths {
            x: self.x.len(),
            y: y_len,
            bias: self.bias.map(|bias| bias.len()),
            all: self.n.is_none(),
        };
        operands.check(m, k)?;
        lengths.check(&operands, m, k)?;
        Ok(operands)
    }
}

/// Values that operands have.
#[derive(Clone, Copy)]
struct Lengths {
    x: usize,
    y: usize,
    bias: Option<usize>,
    /// Nothing may be left over.
    all: bool,
}

impl Lengths {
    /// Fails unless they fit weights of `m` x `k`.
    fn check(&self, operands: &RawOperands, m: usize, k: usize) -> Result<(), GpuError> {
        let need = |values| match self.all {
            true => Need::Exactly(values),
            false => Need::AtLeast(values),
        };
        for (operand, len, stride, width) in [
            (Operand::Activations, self.x, operands.x_stride, k),
            (Operand::Outputs, self.y, operands.y_stride, m),
        ] {
            let need = span(operands.n, stride, width).map_or(Need::Overflow, need);
            check_len(operand, need, len)?;
        }
        match self.bias {
            Some(len) => check_len(Operand::Bias, Need::Exactly(m), len),
            None => Ok(()),
        }
    }
}

impl Outputs<'_> {
    pub(super) fn device(&self) -> &Device {
        match self {
            Self::Bf16(y) => y.device(),
            Self::F32(y) => y.device(),
        }
    }

    /// Address, values, and what they are.
    pub(super) fn parts(&self) -> (u64, usize, OutputType) {
        match self {
            Self::Bf16(y) => (y.as_view().address(), y.as_view().len(), OutputType::Bf16),
            Self::F32(y) => (y.as_view().address(), y.as_view().len(), OutputType::F32),
        }
    }
}

macro_rules! outputs {
    ($($variant:ident: $type:ty),*) => {$(
        impl<'a> From<ViewMut<'a, $type>> for Outputs<'a> {
            fn from(y: ViewMut<'a, $type>) -> Self {
                Self::$variant(y)
            }
        }

        impl<'a> From<&'a mut Buffer<$type>> for Outputs<'a> {
            fn from(y: &'a mut Buffer<$type>) -> Self {
                Self::$variant(y.into())
            }
        }
    )*};
}
outputs!(Bf16: bf16, F32: f32);

/// Fails for a number of tokens that no call takes.
pub(super) fn check_tokens(tokens: usize) -> Result<(), GpuError> {
    let most = MAX_TOKENS;
    match (1..=most).contains(&tokens) {
        true => Ok(()),
        false => Err(GpuError::Tokens { tokens, most }),
    }
}

/// Fails unless rows of at least `least` values of so many bytes can start `stride` apart: kernels count in 32 bits.
pub(super) fn check_stride(
    operand: Operand,
    stride: usize,
    least: usize,
    bytes: usize,
) -> Result<(), GpuError> {
    let most = u32::MAX as usize / bytes;
    match (least..=most).contains(&stride) {
        true => Ok(()),
        false => Err(GpuError::Stride {
            operand,
            stride,
            least,
            most,
        }),
    }
}

/// Fails for an address that is not aligned.
pub(super) fn check_aligned(operand: Operand, address: u64, align: usize) -> Result<(), GpuError> {
    match address.is_multiple_of(align as u64) {
        true => Ok(()),
        false => Err(GpuError::Alignment {
            operand,
            align,
            address,
            pitch: 0,
        }),
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

impl RawOperands {
    /// BF16 outputs, rows that follow one another, and no bias, nor anything else that is added.
    pub fn new(weights: &DeviceMatrix, x: u64, n: usize, y: u64) -> Self {
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
    pub(super) fn check(&self, m: usize, k: usize) -> Result<(), GpuError> {
        check_tokens(self.n)?;
        let bytes = self.output.bytes();
        for (operand, stride, least, bytes) in [
            (Operand::Activations, self.x_stride, k, 2),
            (Operand::Outputs, self.y_stride, m, bytes),
        ] {
            check_stride(operand, stride, least, bytes)?;
        }
        for (operand, address, align) in [
            (Operand::Activations, Some(self.x), 2),
            (Operand::Outputs, Some(self.y), bytes),
            (Operand::Bias, self.bias, 2),
        ] {
            if let Some(address) = address {
                check_aligned(operand, address, align)?;
            }
        }
        if k == 0 && self.bias.is_some() {
            return Err(GpuError::EmptyBias);
        }
        if self.bias == Some(0) && m > 0 {
            let operand = Operand::Bias;
            return Err(GpuError::Missing { operand });
        }
        Ok(())
    }

    /// Fails when outputs overlap what else a call reads.
    pub(super) fn check_overlap(&self, m: usize, k: usize) -> Result<(), GpuError> {
        let bytes = self.output.bytes();
        let y = Rows::new(self.y, m * bytes, self.y_pitch(), self.n);
        let x = Rows::new(self.x, 2 * k, 2 * self.x_stride, self.n);
        let bias = Rows::new(self.bias.unwrap_or(0), 2 * m, 2 * m, 1);
        for (operand, rows) in [(Operand::Activations, x), (Operand::Bias, bias)] {
            if rows.at > 0 && y.overlap(&rows) {
                return Err(GpuError::Overlap { operand });
            }
        }
        Ok(())
    }

    /// Fails when outputs overlap the weights, or the workspace.
    pub(super) fn check_apart(
        &self,
        weights: &DeviceMatrix,
        workspace: &Workspace,
    ) -> Result<(), GpuError> {
        let m = weights.rows();
        let y = Rows::new(self.y, m * self.output.bytes(), self.y_pitch(), self.n).all();
        let meets = |other: std::ops::Range<u64>| y.start < other.end && other.start < y.end;
        let operand = if meets(weights.memory()) {
            Operand::Weights
        } else if workspace.memory().any(meets) {
            Operand::Workspace
        } else {
            return Ok(());
        };
        Err(GpuError::Overlap { operand })
    }

    /// Bytes from the start of a row of outputs to that of the next.
    pub(super) fn y_pitch(&self) -> usize {
        self.y_stride * self.output.bytes()
    }

    /// Those of up to `most` tokens from `first` on.
    pub(super) fn slice(&self, first: usize, most: usize) -> Self {
        let x_pitch = 2 * self.x_stride;
        let from = |address: u64, pitch| address.wrapping_add((first * pitch) as u64);
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

/// Rows of bytes in memory.
#[derive(Clone, Copy)]
struct Rows {
    at: u64,
    width: u64,
    pitch: u64,
    rows: u64,
}

impl Rows {
    fn new(at: u64, width: usize, pitch: usize, rows: usize) -> Self {
        Self {
            at,
            width: width as u64,
            pitch: pitch as u64,
            rows: rows as u64,
        }
    }

    /// From the first byte to the last.
    fn all(&self) -> std::ops::Range<u64> {
        let bytes = match self.width {
            0 => 0,
            width => self.rows.saturating_sub(1) * self.pitch + width,
        };
        self.at..self.at.saturating_add(bytes)
    }

    /// Whether both have a byte in common. Where rows of the one lie in the gaps of the other, they
    /// have none, as long as their pitches are equal.
    fn overlap(&self, other: &Self) -> bool {
        let (a, b) = (self.all(), other.all());
        if a.is_empty() || b.is_empty() || a.start >= b.end || b.start >= a.end {
            return false;
        }
        if self.pitch != other.pitch {
            return true;
        }
        // Where the rows of `other` start between two of this.
        let start =
            (i128::from(other.at) - i128::from(self.at)).rem_euclid(self.pitch.into()) as u64;
        start < self.width || start + other.width > self.pitch
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const M: usize = 100;
    const K: usize = 200;

    fn operands() -> RawOperands {
        RawOperands {
            x: 0x1_0000,
            x_stride: K,
            n: 3,
            y: 0x2_0000,
            y_stride: M,
            output: OutputType::F32,
            bias: Some(0x3_0002),
            accumulate: true,
        }
    }

    /// What is wrong with operands of which `x`, `y` and `bias` have so many values.
    fn wrong([x, y, bias]: [usize; 3], change: impl FnOnce(&mut RawOperands)) -> Option<GpuError> {
        let mut operands = operands();
        change(&mut operands);
        let lengths = Lengths {
            x,
            y,
            bias: operands.bias.map(|_| bias),
            all: false,
        };
        let result = operands.check(M, K);
        result.and_then(|()| lengths.check(&operands, M, K)).err()
    }

    #[test]
    fn rows_that_fit() {
        let dense = [3 * K, 3 * M, M];
        assert!(wrong(dense, |_| ()).is_none());
        assert!(wrong(dense, |operands| operands.n = 2).is_none());
        // The last row ends where its values do, not its stride.
        let strided = [2 * 201 + K, 2 * 128 + M, M];
        let stride = |operands: &mut RawOperands| {
            operands.x_stride = 201;
            operands.y_stride = 128;
        };
        assert!(wrong(strided, stride).is_none());
        let [x, y, bias] = strided;
        for (short, which) in [
            ([x - 1, y, bias], Operand::Activations),
            ([x, y - 1, bias], Operand::Outputs),
            ([x, y, M - 1], Operand::Bias),
            ([x, y, M + 1], Operand::Bias),
            ([x, y, 0], Operand::Bias),
        ] {
            let error = wrong(short, stride);
            let named = matches!(error, Some(GpuError::Length { operand, .. }) if operand == which);
            assert!(named, "{error:?}");
        }
        assert!(wrong([x, y, 0], |operands| operands.bias = None).is_none());
        let all = Lengths {
            x: 3 * K,
            y: 3 * M + 1,
            bias: None,
            all: true,
        };
        assert!(all.check(&operands(), M, K).is_err(), "one too many");
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
            assert!(matches!(error, Some(GpuError::Stride { .. })), "{error:?}");
        }
        for stride in [0, M - 1, 1 << 30, usize::MAX / 2 + 1, usize::MAX] {
            let error = wrong(dense, |operands| operands.y_stride = stride);
            assert!(matches!(error, Some(GpuError::Stride { .. })), "{error:?}");
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
        assert!(operands().check(M, K).is_ok());
        let bf16 = RawOperands {
            y: 0x2_0002,
            output: OutputType::Bf16,
            ..operands()
        };
        assert!(bf16.check(M, K).is_ok());
        for wrong in [
            RawOperands {
                x: 0x1_0001,
                ..operands()
            },
            RawOperands {
                y: 0x2_0002,
                ..operands()
            },
            RawOperands {
                bias: Some(0x3_0001),
                ..operands()
            },
            RawOperands {
                bias: Some(0),
                ..operands()
            },
        ] {
            assert!(wrong.check(M, K).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn outputs_apart_from_inputs() {
        let at = |x: u64, y: u64| RawOperands { x, y, ..operands() };
        let overlaps = |operands: RawOperands| {
            matches!(operands.check_overlap(M, K), Err(GpuError::Overlap { .. }))
        };
        let (x_bytes, y_bytes) = (3 * 2 * K as u64, 3 * 4 * M as u64);
        let from = 0x8000;
        assert!(!overlaps(at(from, from + x_bytes)) && overlaps(at(from, from + x_bytes - 4)));
        assert!(!overlaps(at(from, from - y_bytes)) && overlaps(at(from, from + 4 - y_bytes)));
        assert!(overlaps(at(from, from)));
        // A bias within the outputs.
        assert!(overlaps(at(0x1_0000, 0x3_0000 - y_bytes + 4)));
        // Rows of outputs in the gaps between those of activations, as parts of one tensor are.
        let stride = 2 * K + 2 * M;
        let parts = RawOperands {
            x_stride: stride,
            y_stride: stride / 2,
            ..at(from, from + 2 * K as u64)
        };
        assert!(!overlaps(parts));
        assert!(overlaps(RawOperands {
            y: parts.y - 4,
            ..parts
        }));
        assert!(overlaps(RawOperands {
            y_stride: stride / 2 - 1,
            ..parts
        }));
    }

    #[test]
    fn slices_of_tokens_start_where_their_rows_do() {
        let operands = RawOperands {
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
