use half::bf16;
use zipserv_gpu::{args::GatherArgs, layout::TILE_COLS};

use super::{
    buffer::{View, ViewMut, check_len, same_context},
    driver::RawStream,
    error::{GpuError, Need, Operand},
    matrix::DeviceMatrix,
    operands::check_aligned,
    stream::Stream,
};

const KERNEL: &str = "gather";

impl DeviceMatrix {
    /// Restores the rows of these numbers to `rows`, one after another, bit for bit: what an embedding does. A number
    /// that is no row's gives a row of zeros.
    ///
    /// The call returns at once; the result is there when `stream` has come so far. It can be captured into a CUDA
    /// graph, once the kernel is loaded, which the first call does.
    ///
    /// # Errors
    /// [`GpuError::Length`] when `rows` has not K values for each number, [`GpuError::Context`] when something belongs
    /// to another device; [`GpuError::Load`] and [`GpuError::Driver`].
    pub fn gather<'a>(
        &self,
        stream: &Stream,
        numbers: impl Into<View<'a, i64>>,
        rows: impl Into<ViewMut<'a, bf16>>,
    ) -> Result<(), GpuError> {
        let (numbers, rows) = (numbers.into(), rows.into());
        let expected = match numbers.len().checked_mul(self.cols()) {
            Some(values) => Need::Exactly(values),
            None => Need::Overflow,
        };
        check_len(Operand::Outputs, expected, rows.as_view().len())?;
        same_context(self.device(), stream.device(), Operand::Stream)?;
        same_context(self.device(), numbers.device(), Operand::Data)?;
        same_context(self.device(), rows.device(), Operand::Outputs)?;
        let (from, to) = (numbers.address(), rows.as_view().address());
        // SAFETY: lengths and context are right; the output is borrowed alone, and memory that is freed waits for
        // kernels that use it.
        unsafe { self.gather_raw(stream.raw(), from, true, numbers.len(), to) }
    }

    /// [`gather`](Self::gather) on the caller's own pointers and stream, as PyTorch holds them. Numbers have 64 bits,
    /// or 32.
    ///
    /// # Errors
    /// [`GpuError::Alignment`] when `numbers` or `rows` are not aligned to their values; [`GpuError::Load`] and
    /// [`GpuError::Driver`].
    ///
    /// # Safety
    /// When the kernel runs, there are `count` numbers at `numbers`, and `rows` has room for as many rows of K BF16,
    /// in memory of the context of the matrix's device, which `stream` is of too. The matrix lives until then.
    pub unsafe fn gather_raw(
        &self,
        stream: RawStream,
        numbers: u64,
        is_64_bit: bool,
        count: usize,
        rows: u64,
    ) -> Result<(), GpuError> {
        let align = if is_64_bit { 8 } else { 4 };
        for (operand, address, align) in
            [(Operand::Data, numbers, align), (Operand::Outputs, rows, 2)]
        {
            check_aligned(operand, address, align)?;
        }
        let warps = count as u64 * self.cols().div_ceil(TILE_COLS) as u64;
        if warps == 0 {
            return Ok(());
        }
        let (dense, offsets, patches) = self.addresses();
        let args = GatherArgs {
            weights: rows as *mut u16,
            numbers: numbers as *const u8,
            dense,
            offsets,
            patches,
            count: count as u64,
            m: self.rows() as u32,
            k: self.cols() as u32,
            is_64_bit,
        };
        let device = self.device();
        let blocks = warps.div_ceil(device.threads(KERNEL)? as u64 / 32);
        let Ok(blocks) = i32::try_from(blocks) else {
            return Err(GpuError::Length {
                operand: Operand::Data,
                expected: Need::Overflow,
                got: count,
            });
        };
        // SAFETY: the caller's promise.
        unsafe { device.launch(KERNEL, blocks as u32, stream, false, args) }
    }
}
