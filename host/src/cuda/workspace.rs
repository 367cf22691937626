use cudarc::driver::sys::CUdeviceptr;
use cust::memory::{CopyDestination, DeviceBuffer};
use zipserv_gpu::launch::{GEMMS, Gemm, PREFILLS};

use super::{CudaError, Gpu, RawStream, settle};

/// Memory through which the thread blocks of [`zipgemm`](super::zipgemm) hand over partial sums,
/// and, if the caller adds some, to which plans that are [decoupled](super::Plan::is_decoupled)
/// decompress weights.
///
/// One serves any number of calls that follow one another in a stream; calls that may overlap
/// need one each.
pub struct Workspace {
    /// Sums of kernels for few tokens; [`Gemm::EMPTY`] where none are.
    pub(super) partials: DeviceBuffer<u32>,
    /// Sums of kernels for many tokens.
    pub(super) sums: DeviceBuffer<u32>,
    /// For each of their blocks, how many of its warps have left sums; 0 between calls.
    pub(super) flags: DeviceBuffer<u32>,
    pub(super) dense: Option<Dense>,
    owner: Option<Owner>,
}

/// Memory for dense weights.
pub(super) struct Dense {
    pub address: CUdeviceptr,
    pub bytes: usize,
    /// Freed with the workspace, unless it is the caller's.
    _memory: Option<DeviceBuffer<u8>>,
}

/// The stream of the first safe call, which all others must follow.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Owner(RawStream);

// SAFETY: the handle is only compared.
unsafe impl Send for Owner {}
// SAFETY: as above.
unsafe impl Sync for Owner {}

/// Thread blocks of one multiprocessor that there is room for, whatever the kernel.
const BLOCKS_PER_MULTIPROCESSOR: usize = 2;

/// Room for sums of the kernels of the published layout, which hand over as many as their split of K
/// makes, for each multiprocessor.
const PUBLISHED_BYTES: usize = 128 << 10;

impl Workspace {
    /// Room for every kernel and as many thread blocks as fit on `gpu`.
    ///
    /// # Errors
    /// [`CudaError`] from the driver.
    pub fn new(gpu: &Gpu) -> Result<Self, CudaError> {
        let multiprocessors = gpu.multiprocessors() as usize;
        let gemms = GEMMS.iter().filter(|(name, _)| gpu.has(name));
        let partials = gemms.map(|(_, shape)| {
            let blocks = shape.blocks.max(BLOCKS_PER_MULTIPROCESSOR);
            blocks * multiprocessors * shape.partial_bytes()
        });
        let prefills = PREFILLS.iter().filter(|(name, _)| gpu.has(name));
        let sums = prefills.map(|(_, shape)| multiprocessors * shape.partial_bytes());
        let partials = partials.max().unwrap_or(0);
        let partials = partials.max(multiprocessors * PUBLISHED_BYTES) / 4;
        let sums = sums.max().unwrap_or(0) / 4;
        let flags = if sums > 0 { multiprocessors } else { 0 };
        let workspace = Self {
            partials: DeviceBuffer::from_slice(&vec![Gemm::EMPTY; partials])?,
            sums: DeviceBuffer::zeroed(sums)?,
            flags: DeviceBuffer::zeroed(flags)?,
            dense: None,
            owner: None,
        };
        // All that must be there before a stream that does not wait for the default one.
        settle()?;
        Ok(workspace)
    }

    /// With memory for dense weights, which need not be initialized and are overwritten by every
    /// call of a decoupled plan. One buffer serves layers of all sizes: as many bytes as the
    /// largest [`dense_workspace_bytes`](super::DeviceMatrix::dense_workspace_bytes). It replaces
    /// what there was.
    #[must_use]
    pub fn with_dense(self, memory: DeviceBuffer<u8>) -> Self {
        let dense = (!memory.is_empty()).then(|| Dense {
            address: memory.as_device_ptr().as_raw(),
            bytes: memory.len(),
            _memory: Some(memory),
        });
        Self { dense, ..self }
    }

    /// [`with_dense`](Self::with_dense) on the caller's own pointer, as cudarc and candle hold
    /// them. Calls check that it is aligned to 256 bytes, as allocations are.
    ///
    /// # Safety
    /// So many bytes are there while a decoupled plan's call runs, and nothing else uses them at
    /// the same time.
    #[must_use]
    pub unsafe fn with_dense_raw(self, address: CUdeviceptr, bytes: usize) -> Self {
        let dense = Some(Dense {
            address,
            bytes,
            _memory: None,
        });
        Self { dense, ..self }
    }

    /// Bytes for dense weights; none unless the caller has added some.
    pub fn dense_bytes(&self) -> usize {
        self.dense.as_ref().map_or(0, |dense| dense.bytes)
    }

    /// Whether no sums are left in it, as between calls. It waits for nothing: synchronize the
    /// stream first.
    ///
    /// # Errors
    /// [`CudaError`] from the driver.
    pub fn is_empty(&self) -> Result<bool, CudaError> {
        let all = |buffer: &DeviceBuffer<u32>, empty: u32| -> Result<bool, CudaError> {
            let mut words = vec![0; buffer.len()];
            buffer.copy_to(&mut words)?;
            Ok(words.iter().all(|&word| word == empty))
        };
        Ok(all(&self.partials, Gemm::EMPTY)? && all(&self.flags, 0)?)
    }

    /// Room for the sums of kernels for few tokens, in bytes.
    pub(super) fn partial_bytes(&self) -> usize {
        4 * self.partials.len()
    }

    /// Room for those of kernels for many, in bytes.
    pub(super) fn sum_bytes(&self) -> usize {
        4 * self.sums.len()
    }

    /// Binds the workspace to the first stream that uses it: two streams would take each
    /// other's sums, or wait for them forever.
    pub(super) fn claim(&mut self, stream: RawStream) -> Result<(), CudaError> {
        if *self.owner.get_or_insert(Owner(stream)) == Owner(stream) {
            return Ok(());
        }
        Err(CudaError::Argument(
            "the workspace is used by another stream; each needs its own".to_owned(),
        ))
    }
}
