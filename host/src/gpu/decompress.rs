use half::bf16;
use zipserv_gpu::{args::DecompressArgs, layout::tile_grid};

use super::{
    buffer::{ViewMut, check_len, same_context},
    driver::RawStream,
    error::{GpuError, Need, Operand},
    matrix::DeviceMatrix,
    stream::Stream,
};

const KERNEL: &str = "decompress";

impl DeviceMatrix {
    /// Restores the matrix to dense row-major BF16 in `weights`, bit for bit.
    ///
    /// The call returns at once; the result is there when `stream` has come so far. It can be
    /// captured into a CUDA graph, once the kernel is loaded, which the first call does.
    ///
    /// # Errors
    /// [`GpuError::Length`] when `weights` has not M x K values, [`GpuError::Context`] when something
    /// belongs to another device; [`GpuError::Load`] and [`GpuError::Driver`].
    pub fn decompress<'a>(
        &self,
        stream: &Stream,
        weights: impl Into<ViewMut<'a, bf16>>,
    ) -> Result<(), GpuError> {
        let weights = weights.into();
        let expected = Need::Exactly(self.rows() * self.cols());
        check_len(Operand::Outputs, expected, weights.as_view().len())?;
        same_context(self.device(), stream.device(), Operand::Stream)?;
        same_context(self.device(), weights.device(), Operand::Outputs)?;
        let address = weights.as_view().address();
        // SAFETY: length and context are right; the output is borrowed alone, and memory that is
        // freed waits for kernels that use it.
        unsafe { self.decompress_raw(stream.raw(), address) }
    }

    /// [`decompress`](Self::decompress) on the caller's own pointer and stream, as cudarc, candle and
    /// PyTorch hold them.
    ///
    /// # Errors
    /// [`GpuError::Alignment`] when `weights` is not aligned to BF16; [`GpuError::Load`] and
    /// [`GpuError::Driver`].
    ///
    /// # Safety
    /// `weights` has room for M x K BF16 in memory of the matrix's device when the kernel runs, and
    /// `stream` is of its context. The matrix lives until then.
    pub unsafe fn decompress_raw(&self, stream: RawStream, weights: u64) -> Result<(), GpuError> {
        if !weights.is_multiple_of(2) {
            return Err(GpuError::Alignment {
                operand: Operand::Outputs,
                align: 2,
                address: weights,
                pitch: 0,
            });
        }
        let (tile_rows, tile_cols) = tile_grid(self.rows(), self.cols());
        let tiles = tile_rows * tile_cols;
        if tiles == 0 {
            return Ok(());
        }
        let (dense, offsets, patches) = self.addresses();
        let args = DecompressArgs {
            weights: weights as *mut u16,
            dense,
            offsets,
            patches,
            m: self.rows() as u32,
            k: self.cols() as u32,
        };
        let device = self.device();
        // One warp a tile.
        let blocks = tiles.div_ceil(device.threads(KERNEL)? / 32) as u32;
        // SAFETY: the caller's promise.
        unsafe { device.launch(KERNEL, blocks, stream, false, args) }
    }
}
