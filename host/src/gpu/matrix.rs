use zipserv_gpu::args::TensorMap;

use super::{
    buffer::{Buffer, check_len, same_context, write},
    device::Device,
    error::{GpuError, Need, Operand},
    family::Family,
    tensor_map::dense_tiles,
    workspace::DenseLayout,
};
use crate::{CompressedMatrix, MatrixHeader};

/// A compressed matrix in the memory of a device: one allocation of just what is
/// [stored](CompressedMatrix::as_bytes), and [`TAIL_BYTES`](Self::TAIL_BYTES) more.
///
/// It keeps the device alive. Of what it holds the host knows the shape alone: all else kernels read from the stored
/// form itself.
pub struct DeviceMatrix {
    /// As far as it follows from the shape.
    header: MatrixHeader,
    memory: Buffer<u8>,
    /// How bulk copies find the dense part, on Hopper; none of empty weights.
    dense_map: Option<TensorMap>,
}

impl DeviceMatrix {
    /// Bytes behind the stored ones that must be readable: kernels copy patch offsets in whole
    /// groups, past the last one's end. What they hold makes no difference.
    pub const TAIL_BYTES: usize = 64;

    /// Bytes to which the memory must be aligned, for bulk copies; allocations are.
    pub const ALIGN: usize = 16;

    /// Copies `matrix` to `device`, and waits for that.
    ///
    /// # Errors
    /// [`GpuError::Changed`] when the bytes of `matrix` are those of a file that is being written to;
    /// [`GpuError::Driver`].
    pub fn upload(device: &Device, matrix: &CompressedMatrix) -> Result<Self, GpuError> {
        let header = *matrix.header();
        let memory = Buffer::uninitialized(device, header.stored_bytes() + Self::TAIL_BYTES)?;
        // Kernels follow offsets without a check, so those that are copied must be those that are
        // checked, even if another process writes to a file that is mapped.
        let offsets = matrix.patch_offsets().to_vec();
        header
            .check_offsets(&offsets)
            .map_err(|error| match error {
                crate::Error::PatchOffset { tile, .. } => GpuError::Changed { tile },
                error => GpuError::Weights(error),
            })?;
        let bytes = matrix.as_bytes();
        let at = |offset: usize| memory.address() + offset as u64;
        let (from, to) = (header.patch_offsets().start, header.patch_offsets().end);
        // SAFETY: the parts follow one another in as much memory.
        unsafe {
            write(device, at(0), &bytes[..from])?;
            write(device, at(from), &offsets)?;
            write(device, at(to), &bytes[to..])?;
            write(device, at(bytes.len()), &[0u8; Self::TAIL_BYTES])?;
        }
        Self::new(header, memory)
    }

    /// A matrix that is on the device already, as other packages keep it, in memory that may be longer: where weights
    /// are to be replaced by others of the same shape, it has spare room.
    ///
    /// # Errors
    /// [`GpuError::Weights`] when there can be no such matrix; [`GpuError::Length`] when `memory` has no room for its
    /// header, dense part, patch offsets and [`TAIL_BYTES`](Self::TAIL_BYTES); [`GpuError::Alignment`] when it is not
    /// aligned to [`ALIGN`](Self::ALIGN).
    ///
    /// # Safety
    /// When kernels run, `memory` starts with the [bytes](CompressedMatrix::as_bytes) of a compressed matrix of this
    /// shape that was checked, as [`CompressedMatrix::from_bytes`](CompressedMatrix::from_bytes) does, or encoded, and
    /// has [`TAIL_BYTES`](Self::TAIL_BYTES) behind them: kernels follow patch offsets without a check. It may be
    /// another matrix for another launch. Launches may read it before kernels ahead of them in the stream have
    /// finished (programmatic dependent launch), so whoever wrote it must have been waited for, or the next launch
    /// be [plain](super::Plan::with_pdl).
    pub unsafe fn from_device(
        rows: usize,
        cols: usize,
        memory: Buffer<u8>,
    ) -> Result<Self, GpuError> {
        let header = MatrixHeader::new(rows, cols, 0, 0).map_err(GpuError::Weights)?;
        let needed = Need::AtLeast(header.stored_bytes() + Self::TAIL_BYTES);
        check_len(Operand::Weights, needed, memory.len())?;
        Self::new(header, memory)
    }

    fn new(header: MatrixHeader, memory: Buffer<u8>) -> Result<Self, GpuError> {
        if !memory.address().is_multiple_of(Self::ALIGN as u64) {
            return Err(GpuError::Alignment {
                operand: Operand::Weights,
                align: Self::ALIGN,
                address: memory.address(),
                pitch: 0,
            });
        }
        let is_empty = header.rows() == 0 || header.cols() == 0;
        let dense_map = if !is_empty && memory.device().family() == Family::Hopper {
            let _current = memory.device().enter()?;
            let dense = memory.address() + header.dense().start as u64;
            Some(dense_tiles(&header, dense)?)
        } else {
            None
        };
        Ok(Self {
            header,
            memory,
            dense_map,
        })
    }

    /// Another copy of the same matrix.
    ///
    /// # Errors
    /// [`GpuError::Driver`].
    pub fn duplicate(&self, stream: &super::Stream) -> Result<Self, GpuError> {
        let mut memory = Buffer::uninitialized(self.device(), self.memory.len())?;
        memory.copy_from(stream, &self.memory)?;
        // A launch may read the copy ahead of its stream.
        stream.synchronize()?;
        Self::new(self.header, memory)
    }

    /// The device addresses of its dense part, patch offsets and patches, for a kernel of one's own:
    /// what [`CompressedMatrix::dense`], [`CompressedMatrix::patch_offsets`] and
    /// [`CompressedMatrix::patches`] hold. The header lies right before the dense part. They are valid as long as the
    /// matrix lives.
    pub fn addresses(&self) -> (*const u8, *const u32, *const u16) {
        let at = |offset: usize| self.memory.address() as usize + offset;
        (
            at(self.header.dense().start) as *const u8,
            at(self.header.patch_offsets().start) as *const u32,
            at(self.header.patches().start) as *const u16,
        )
    }

    /// The device.
    pub fn device(&self) -> &Device {
        self.memory.device()
    }

    /// Output features, M.
    pub fn rows(&self) -> usize {
        self.header.rows()
    }

    /// Input features, K.
    pub fn cols(&self) -> usize {
        self.header.cols()
    }

    /// Bytes that a [workspace](super::Workspace::with_dense) needs for plans of this matrix that
    /// are decoupled: for the dense weights, a bias in FP32, and 32 MiB for cuBLASLt.
    pub fn dense_workspace_bytes(&self) -> usize {
        DenseLayout::new(self.rows(), self.cols()).bytes
    }

    /// Bytes that a kernel reads, or has room to read.
    pub fn device_bytes(&self) -> usize {
        self.memory.len() - Self::TAIL_BYTES - self.header.dense().start
    }

    /// How bulk copies find the dense part.
    pub(super) fn dense_map(&self) -> TensorMap {
        self.dense_map
            .expect("kernels for Hopper are launched on Hopper, for weights that are not empty")
    }

    /// Addresses of the memory that it takes.
    pub(super) fn memory(&self) -> std::ops::Range<u64> {
        self.memory.address()..self.memory.address() + self.memory.len() as u64
    }

    /// An error unless `device` can use it.
    pub(super) fn check_context(&self, device: &Device) -> Result<(), GpuError> {
        same_context(self.device(), device, Operand::Weights)
    }
}
