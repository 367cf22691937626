use half::bf16;
use zipserv_gpu::args::{EncodeArgs, EncodeWindow};

use super::{
    buffer::{Buffer, View, check_len, same_context},
    device::Device,
    driver::{RawStream, check},
    error::{GpuError, Need, Operand},
    matrix::DeviceMatrix,
    operands::check_aligned,
    stream::{Stream, is_capturing, synchronize},
};
use crate::MatrixHeader;
use cudarc::driver::sys;

/// A dense matrix in the memory of a device, as other packages hold it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RawDense {
    /// Rows of BF16, aligned to 2 bytes; fastest if rows are aligned to 16.
    pub address: u64,
    /// Output features, M.
    pub rows: usize,
    /// Input features, K.
    pub cols: usize,
    /// Weights from the start of a row to that of the next, at least K.
    pub stride: usize,
}

/// A dense matrix whose compressed size is known, for [`Device::encode_raw`].
#[derive(Clone, Copy, Debug)]
pub struct Measured {
    dense: RawDense,
    header: MatrixHeader,
    scratch: u64,
}

impl Measured {
    /// Bytes that the compressed matrix takes, as stored.
    pub fn stored_bytes(&self) -> usize {
        self.header.stored_bytes()
    }
}

/// Counts of exponents, then what is found out.
const WINDOW_AT: usize = 256 * 8;

/// Bytes of device memory that encoding a matrix takes beside operand and result, aligned to 16. One piece serves
/// calls that follow one another in a stream.
pub const ENCODE_SCRATCH_BYTES: usize = WINDOW_AT + size_of::<EncodeWindow>();

impl DeviceMatrix {
    /// Compresses a dense matrix that is on the device, row after row, to just what
    /// [`encode`](crate::encode) makes of it on the host. No weight leaves the device. The matrix is there when the
    /// call returns.
    ///
    /// # Errors
    /// [`GpuError::Length`] for another number of weights; [`GpuError::Weights`] when they are too many for the
    /// format; [`GpuError::Context`] for another context's stream; [`GpuError::Driver`], also when memory is short or
    /// the stream is captured.
    pub fn encode<'a>(
        stream: &Stream,
        dense: impl Into<View<'a, bf16>>,
        rows: usize,
        cols: usize,
    ) -> Result<Self, GpuError> {
        let (dense, device) = (dense.into(), stream.device());
        let expected = rows.checked_mul(cols).map_or(Need::Overflow, Need::Exactly);
        check_len(Operand::Dense, expected, dense.len())?;
        same_context(device, dense.device(), Operand::Dense)?;
        let scratch = Buffer::<u8>::uninitialized(device, ENCODE_SCRATCH_BYTES)?;
        let raw = RawDense {
            address: dense.address(),
            rows,
            cols,
            stride: cols,
        };
        // SAFETY: lengths and context are right, and all of it lives until the stream has been waited for.
        unsafe {
            let measured = device.measure_raw(stream.raw(), &raw, scratch.address())?;
            let bytes = measured.stored_bytes() + Self::TAIL_BYTES;
            let memory = Buffer::uninitialized(device, bytes)?;
            device.encode_raw(stream.raw(), &measured, memory.address(), bytes)?;
            // A launch may read the matrix ahead of its stream.
            stream.synchronize()?;
            Self::from_device(rows, cols, memory)
        }
    }
}

impl Device {
    /// Finds out how many bytes a dense matrix takes when it is compressed. It waits for what was launched on the
    /// stream before, and for that.
    ///
    /// # Errors
    /// [`GpuError::Weights`] when the matrix is too large for the format; [`GpuError::Stride`], [`GpuError::Alignment`];
    /// [`GpuError::Captured`] when the stream is captured; [`GpuError::Load`] and [`GpuError::Driver`].
    ///
    /// # Safety
    /// `dense` is in memory of the device's context, which `stream` is of too, and is not written meanwhile. `scratch`
    /// has [`ENCODE_SCRATCH_BYTES`], which nothing else uses until the matrix is encoded.
    pub unsafe fn measure_raw(
        &self,
        stream: RawStream,
        dense: &RawDense,
        scratch: u64,
    ) -> Result<Measured, GpuError> {
        let &RawDense { rows, cols, .. } = dense;
        // Whether it can be.
        MatrixHeader::new(rows, cols, 0, 0).map_err(GpuError::Weights)?;
        check_dense(dense, scratch)?;
        // SAFETY: a live stream, says the caller.
        if unsafe { is_capturing(self, stream)? } {
            return Err(GpuError::Captured);
        }
        let args = arguments(dense, scratch, None);
        let mut window = EncodeWindow::default();
        let _current = self.enter()?;
        // SAFETY: the caller's promise; the copy has room, and is waited for.
        unsafe {
            check(
                "cuMemsetD8Async",
                sys::cuMemsetD8Async(scratch, 0, ENCODE_SCRATCH_BYTES, stream.cast()),
            )?;
            if rows * cols > 0 {
                let blocks = self.resident_blocks("encode_histogram")?;
                self.launch("encode_histogram", blocks, stream, false, args)?;
            }
            self.launch("encode_window", 1, stream, false, args)?;
            check(
                "cuMemcpyDtoHAsync",
                sys::cuMemcpyDtoHAsync_v2(
                    (&raw mut window).cast(),
                    scratch + WINDOW_AT as u64,
                    size_of::<EncodeWindow>(),
                    stream.cast(),
                ),
            )?;
        }
        synchronize(self, stream.cast())?;
        let header = MatrixHeader::new(rows, cols, window.base as u8, window.patches)
            .map_err(GpuError::Weights)?;
        Ok(Measured {
            dense: *dense,
            header,
            scratch,
        })
    }

    /// Compresses a matrix that was [measured](Self::measure_raw) to the first of `capacity` bytes at `out`, and makes
    /// zeros of the rest. Once for each measurement, which its checksum starts from.
    ///
    /// The call returns at once. None of its kernels lets the next one start early, so a product that is launched
    /// [plainly](super::Plan::with_pdl) next in the stream finds the new weights; a dependent launch need not.
    ///
    /// # Errors
    /// [`GpuError::Length`] when the capacity is less than the stored bytes and
    /// [`DeviceMatrix::TAIL_BYTES`]: then nothing is written; [`GpuError::Alignment`]; [`GpuError::Load`] and
    /// [`GpuError::Driver`].
    ///
    /// # Safety
    /// As [`measure_raw`](Self::measure_raw), of the same stream, with the matrix and scratch as it left them. `out` has
    /// `capacity` bytes in memory of the same context, which overlap neither.
    pub unsafe fn encode_raw(
        &self,
        stream: RawStream,
        measured: &Measured,
        out: u64,
        capacity: usize,
    ) -> Result<(), GpuError> {
        let Measured {
            dense,
            header,
            scratch,
        } = measured;
        let needed = header.stored_bytes() + DeviceMatrix::TAIL_BYTES;
        check_len(Operand::Weights, Need::AtLeast(needed), capacity)?;
        check_aligned(Operand::Weights, out, DeviceMatrix::ALIGN)?;
        let args = arguments(dense, *scratch, Some((header, out)));
        let zero = |from: usize, to: usize| match to - from {
            0 => Ok(()),
            // SAFETY: within the capacity.
            bytes => check("cuMemsetD8Async", unsafe {
                sys::cuMemsetD8Async(out + from as u64, 0, bytes, stream.cast())
            }),
        };
        let _current = self.enter()?;
        // The last offset, and the padding behind it; the padding behind the patches, and what is left.
        let (tiles, patches) = (header.tiles(), header.patches().start);
        zero(header.patch_offsets().start + 4 * tiles, patches)?;
        zero(patches + 2 * header.outliers(), capacity)?;
        // SAFETY: the caller's promise.
        unsafe {
            if tiles > 0 {
                let warps = |kernel: &str| -> Result<u32, GpuError> {
                    Ok(tiles.div_ceil(self.threads(kernel)? / 32) as u32)
                };
                let launch =
                    |kernel: &str, blocks: u32| self.launch(kernel, blocks, stream, false, args);
                launch("encode_counts", warps("encode_counts")?)?;
                launch("encode_offsets", 1)?;
                launch("encode_tiles", warps("encode_tiles")?)?;
            }
            let blocks = self.resident_blocks("encode_checksum")?;
            self.launch("encode_checksum", blocks, stream, false, args)?;
            self.launch("encode_header", 1, stream, false, args)
        }
    }
}

/// Arguments of all the kernels; of the first two without a result.
fn arguments(dense: &RawDense, scratch: u64, result: Option<(&MatrixHeader, u64)>) -> EncodeArgs {
    let at = |section: fn(&MatrixHeader) -> usize| match result {
        Some((header, out)) => out + section(header) as u64,
        None => 0,
    };
    EncodeArgs {
        weights: dense.address as *const u16,
        stride: dense.stride as u64,
        rows: dense.rows as u64,
        cols: dense.cols as u64,
        counts: scratch as *mut u64,
        window: (scratch + WINDOW_AT as u64) as *mut EncodeWindow,
        dense: at(|header| header.dense().start) as *mut u8,
        offsets: at(|header| header.patch_offsets().start) as *mut u32,
        patches: at(|header| header.patches().start) as *mut u16,
        tiles: result.map_or(0, |(header, _)| header.tiles() as u64),
        payload_bytes: result.map_or(0, |(header, _)| {
            (header.stored_bytes() - header.dense().start) as u64
        }),
    }
}

fn check_dense(dense: &RawDense, scratch: u64) -> Result<(), GpuError> {
    let &RawDense {
        address,
        rows,
        cols,
        stride,
    } = dense;
    check_aligned(Operand::Dense, address, 2)?;
    check_aligned(Operand::Workspace, scratch, 16)?;
    let most = isize::MAX as usize / 2 / rows.max(1);
    if rows > 1 && !(cols..=most).contains(&stride) {
        return Err(GpuError::Stride {
            operand: Operand::Dense,
            stride,
            least: cols,
            most,
        });
    }
    Ok(())
}
