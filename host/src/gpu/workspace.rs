use zipserv_gpu::launch::{GEMMS, GROUPED, Gemm, PREFILLS};

use super::{
    buffer::{Buffer, same_context},
    device::Device,
    error::{GpuError, Operand},
    stream::Stream,
};

/// Memory through which the thread blocks of a [plan](super::Plan)'s launch reduce partial sums,
/// and, if the caller adds some, to which plans that are [decoupled](super::Plan::is_decoupled)
/// decompress weights.
///
/// One serves any number of calls that follow one another in a stream; calls that may overlap
/// need one each.
#[derive(Debug)]
pub struct Workspace {
    /// Sums of kernels for few tokens; [`Gemm::EMPTY`] where none are.
    pub(super) partials: Buffer<u32>,
    /// Sums of kernels for many tokens.
    pub(super) sums: Buffer<u32>,
    /// For each of their blocks, how many of its warps have left sums; 0 between calls.
    pub(super) flags: Buffer<u32>,
    /// For dense weights.
    pub(super) dense: Option<Buffer<u8>>,
    /// For what safe calls on experts have between their launches: the last one is in use, those before may be in graphs.
    scratch: Vec<Buffer<u8>>,
    /// The stream of the first safe call, which all others must follow. It is kept, so that no other
    /// stream gets its handle.
    owner: Option<Stream>,
}

/// Thread blocks of one SM that there is room for, whatever the kernel.
const BLOCKS_PER_SM: usize = 2;

/// Bytes to which memory for dense weights is aligned, as allocations are.
pub(super) const DENSE_ALIGN: usize = 256;
/// Bytes that cuBLASLt may use beside the operands, as much as it is recommended for Hopper.
pub(super) const DENSE_SCRATCH: usize = 32 << 20;

/// How memory for dense weights is used: the weights, a bias, then cuBLASLt's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct DenseLayout {
    /// Where the bias is.
    pub bias: usize,
    /// Where cuBLASLt's memory is.
    pub scratch: usize,
    /// All of it.
    pub bytes: usize,
}

impl DenseLayout {
    pub fn new(m: usize, k: usize) -> Self {
        let bias = (2 * m * k).next_multiple_of(DENSE_ALIGN);
        let scratch = (bias + 4 * m).next_multiple_of(DENSE_ALIGN);
        Self {
            bias,
            scratch,
            bytes: scratch + DENSE_SCRATCH,
        }
    }
}

impl Workspace {
    /// Room for every kernel and as many thread blocks as fit on `device`.
    ///
    /// # Errors
    /// [`GpuError::Driver`].
    pub fn new(device: &Device) -> Result<Self, GpuError> {
        // A stream that is captured may be the first that wants one.
        let _relaxed = device.enter_relaxed()?;
        let sms = device.sms() as usize;
        let gemms = GEMMS.iter().chain(GROUPED);
        let gemms = gemms.filter(|(name, _)| device.has(name));
        let partials = gemms.map(|(_, shape)| {
            let blocks = shape.blocks.max(BLOCKS_PER_SM);
            blocks * sms * shape.partial_bytes()
        });
        let prefills = PREFILLS.iter().filter(|(name, _)| device.has(name));
        let sums = prefills.map(|(_, shape)| sms * shape.partial_bytes());
        let partials = partials.max().unwrap_or(0) / 4;
        let sums = sums.max().unwrap_or(0) / 4;
        let flags = if sums > 0 { sms } else { 0 };
        Ok(Self {
            partials: Buffer::from_slice(device, &vec![Gemm::EMPTY; partials])?,
            sums: Buffer::zeroed(device, sums)?,
            flags: Buffer::zeroed(device, flags)?,
            dense: None,
            scratch: Vec::new(),
            owner: None,
        })
    }

    /// With memory for dense weights, which need not be initialized and are overwritten by every
    /// call of a decoupled plan. One buffer serves layers of all sizes: as many bytes as the
    /// largest [`dense_workspace_bytes`](super::DeviceMatrix::dense_workspace_bytes), aligned to 256
    /// bytes, as allocations are. It replaces what there was.
    #[must_use]
    pub fn with_dense(self, memory: Buffer<u8>) -> Self {
        let dense = (!memory.is_empty()).then_some(memory);
        Self { dense, ..self }
    }

    /// The device.
    pub fn device(&self) -> &Device {
        self.partials.device()
    }

    /// Bytes for dense weights; none unless the caller has added some.
    pub fn dense_bytes(&self) -> usize {
        self.dense.as_ref().map_or(0, Buffer::len)
    }

    /// Whether no sums are left in it, after what was launched on `stream`, as between calls.
    ///
    /// # Errors
    /// [`GpuError::Driver`].
    pub fn is_empty(&self, stream: &Stream) -> Result<bool, GpuError> {
        let all = |buffer: &Buffer<u32>, empty: u32| -> Result<bool, GpuError> {
            Ok(buffer.to_vec(stream)?.iter().all(|&word| word == empty))
        };
        Ok(all(&self.partials, Gemm::EMPTY)? && all(&self.flags, 0)?)
    }

    /// The address of at least so many bytes for one call, aligned to 256; it is made when it is first wanted.
    pub(super) fn scratch(&mut self, bytes: usize) -> Result<u64, GpuError> {
        if self.scratch.last().is_none_or(|last| last.len() < bytes) {
            // All those before have as many together at most.
            let bytes = bytes.checked_next_power_of_two().unwrap_or(bytes);
            let memory = Buffer::uninitialized(self.device(), bytes)?;
            self.scratch.push(memory);
        }
        Ok(self.scratch.last().map_or(0, Buffer::address))
    }

    /// Room for the sums of kernels for few tokens, in bytes.
    pub(super) fn partial_bytes(&self) -> usize {
        4 * self.partials.len()
    }

    /// Room for those of kernels for many, in bytes.
    pub(super) fn sum_bytes(&self) -> usize {
        4 * self.sums.len()
    }

    /// Addresses of its memory.
    pub(super) fn memory(&self) -> impl Iterator<Item = std::ops::Range<u64>> {
        let words = [&self.partials, &self.sums, &self.flags];
        let words = words.map(|buffer| (buffer.address(), 4 * buffer.len()));
        let bytes = self.dense.iter().chain(&self.scratch);
        let bytes = bytes.map(|buffer| (buffer.address(), buffer.len()));
        let all = words.into_iter().chain(bytes);
        all.map(|(address, bytes)| address..address + bytes as u64)
    }

    /// Binds the workspace to the first stream that uses it: two streams would take each
    /// other's sums, or wait for them forever.
    pub(super) fn claim(&mut self, stream: &Stream) -> Result<(), GpuError> {
        same_context(self.device(), stream.device(), Operand::Workspace)?;
        match self.owner.get_or_insert_with(|| stream.clone()).is(stream) {
            true => Ok(()),
            false => Err(GpuError::WorkspaceInUse),
        }
    }

    /// An error where there is not as much as is needed.
    pub(super) fn check_room(
        what: &'static str,
        needed: usize,
        got: usize,
    ) -> Result<(), GpuError> {
        match needed <= got {
            true => Ok(()),
            false => Err(GpuError::WorkspaceTooSmall { what, needed, got }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_the_workspace_do_not_overlap() {
        for (m, k) in [(1, 1), (133, 267), (4096, 4096), (57344, 8192)] {
            let DenseLayout {
                bias,
                scratch,
                bytes,
            } = DenseLayout::new(m, k);
            assert!(bias >= 2 * m * k && scratch >= bias + 4 * m);
            assert_eq!(bytes, scratch + DENSE_SCRATCH);
            assert!(bias.is_multiple_of(DENSE_ALIGN) && scratch.is_multiple_of(DENSE_ALIGN));
        }
    }
}
