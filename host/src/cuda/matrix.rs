use cust::memory::{CopyDestination, DeviceBuffer};

use super::{CudaError, decoupled::Layout, settle};
use crate::CompressedMatrix;

/// A compressed matrix in the memory of the current context's device.
pub struct DeviceMatrix {
    pub(super) rows: u32,
    pub(super) cols: u32,
    pub(super) base: u8,
    pub(super) dense: DeviceBuffer<u8>,
    pub(super) offsets: DeviceBuffer<u8>,
    pub(super) patches: DeviceBuffer<u8>,
}

/// Bytes behind the offsets that a kernel may read: one stage's worth.
const OFFSETS_PADDING: usize = 64;

impl DeviceMatrix {
    /// Copies `matrix` to the device of the current context.
    ///
    /// # Errors
    /// [`CudaError`] from the driver.
    pub fn upload(matrix: &CompressedMatrix) -> Result<Self, CudaError> {
        let this = Self {
            rows: matrix.rows() as u32,
            cols: matrix.cols() as u32,
            base: matrix.base(),
            dense: DeviceBuffer::from_slice(matrix.dense())?,
            // Kernels copy offsets in whole groups, past the last one's end.
            offsets: DeviceBuffer::from_slice(
                &[matrix.patch_offsets(), &[0; OFFSETS_PADDING]].concat(),
            )?,
            patches: DeviceBuffer::from_slice(matrix.patches())?,
        };
        // A copy from pageable memory may still be on its way, and a stream that does not wait
        // for the default one would not wait for it.
        settle()?;
        Ok(this)
    }

    /// Another copy of the same matrix.
    ///
    /// # Errors
    /// [`CudaError`] from the driver.
    pub fn duplicate(&self) -> Result<Self, CudaError> {
        let this = Self {
            dense: duplicate(&self.dense)?,
            offsets: duplicate(&self.offsets)?,
            patches: duplicate(&self.patches)?,
            ..*self
        };
        settle()?;
        Ok(this)
    }

    /// The device addresses of its dense part, patch offsets and patches, for a kernel of one's own:
    /// what [`CompressedMatrix::dense`], [`CompressedMatrix::patch_offsets`] and
    /// [`CompressedMatrix::patches`] hold. They are valid as long as the matrix lives.
    pub fn addresses(&self) -> (*const u8, *const u32, *const u16) {
        let address = |buffer: &DeviceBuffer<u8>| buffer.as_device_ptr().as_raw() as usize;
        (
            address(&self.dense) as *const u8,
            address(&self.offsets) as *const u32,
            address(&self.patches) as *const u16,
        )
    }

    /// Output features, M.
    pub fn rows(&self) -> usize {
        self.rows as usize
    }

    /// Input features, K.
    pub fn cols(&self) -> usize {
        self.cols as usize
    }

    /// Bytes that a [workspace](super::Workspace::with_dense) needs for plans of this matrix that
    /// are decoupled: for the dense weights, a bias in FP32, and 32 MiB for cuBLASLt.
    pub fn dense_workspace_bytes(&self) -> usize {
        Layout::new(self.rows(), self.cols()).bytes
    }

    /// The lowest exponent of the window, biased.
    pub fn base(&self) -> u8 {
        self.base
    }

    /// Bytes that a kernel reads.
    pub fn device_bytes(&self) -> usize {
        self.dense.len() + self.offsets.len() + self.patches.len() - OFFSETS_PADDING
    }
}

pub(super) fn duplicate(buffer: &DeviceBuffer<u8>) -> Result<DeviceBuffer<u8>, CudaError> {
    // SAFETY: written whole before anything reads it.
    let mut copy = unsafe { DeviceBuffer::uninitialized(buffer.len())? };
    copy.copy_from(&**buffer)?;
    Ok(copy)
}
