use cudarc::driver::sys::CUdeviceptr;
use cust::{
    context::CurrentContext,
    memory::{CopyDestination, DeviceBuffer},
};
use rayon::prelude::*;

use super::{Layer, data, report::LayerInfo};
use crate::{
    Matrix,
    cuda::{CudaError, DeviceMatrix},
    encode,
};

/// Bytes that are touched, at least, before a launch comes back to the operands of an earlier
/// one: four times the L2 cache of an H100.
const COLD_BYTES: usize = 200_000_000;
/// Copies at most; a matrix under 3 MB may stay in the cache.
const MOST_COPIES: usize = 64;
/// Bytes of BF16 weights that a recording covers, at least: about a millisecond, which makes the
/// microseconds before its first launch small.
const RECORDING_BYTES: usize = 2_500_000_000;
/// Launches of a recording at most.
const MOST_LAUNCHES: usize = 256;

/// A layer's weights on the device, dense and compressed, as often as it takes to find none of
/// them in the cache.
pub struct Operands {
    pub info: LayerInfo,
    /// The weights' bits on the host.
    pub bits: Vec<u16>,
    pub dense: Vec<DeviceBuffer<u16>>,
    pub compressed: Vec<DeviceMatrix>,
    /// Launches of a recording: a multiple of the copies.
    pub launches: usize,
}

impl Operands {
    pub fn new(model: &str, layer: Layer, seed: u64) -> Result<Self, CudaError> {
        let Layer { name, rows, cols } = layer;
        let bits = data::weights(rows, cols, seed);
        let matrix = Matrix::from_bits(rows, cols, &bits);
        let compressed = matrix
            .and_then(|matrix| encode(&matrix))
            .map_err(|error| CudaError::Argument(error.to_string()))?;
        let compressed = DeviceMatrix::upload(&compressed)?;
        let info = LayerInfo {
            model: model.to_owned(),
            name: name.to_owned(),
            rows,
            cols,
            compressed_bytes: compressed.device_bytes(),
        };
        let copies = COLD_BYTES.div_ceil(info.compressed_bytes.max(1)) + 1;
        let copies = copies.clamp(2, MOST_COPIES);
        let rounds = RECORDING_BYTES.div_ceil(info.bf16_bytes().max(1) * copies);
        let rounds = rounds.min(MOST_LAUNCHES.div_ceil(copies));
        let mut dense = vec![DeviceBuffer::from_slice(&bits)?];
        let mut compressed = vec![compressed];
        for _ in 1..copies {
            // SAFETY: written whole before anything reads it.
            let mut copy = unsafe { DeviceBuffer::uninitialized(bits.len())? };
            copy.copy_from(&*dense[0])?;
            dense.push(copy);
            compressed.push(compressed[0].duplicate()?);
        }
        CurrentContext::synchronize()?;
        Ok(Self {
            info,
            bits,
            dense,
            compressed,
            launches: copies * rounds,
        })
    }

    pub fn copies(&self) -> usize {
        self.dense.len()
    }
}

/// Equal buffers of BF16 in one allocation.
pub struct Copies {
    memory: DeviceBuffer<u16>,
    len: usize,
    stride: usize,
}

/// Values between the starts of copies: a multiple of 256 bytes, as allocations are.
const ALIGN: usize = 128;
/// Values that a thread compares at a time.
const PIECE: usize = 1 << 16;

impl Copies {
    /// Copies of `values`.
    pub fn of(values: &[u16], copies: usize) -> Result<Self, CudaError> {
        let stride = values.len().next_multiple_of(ALIGN);
        let mut all = vec![0; stride * copies];
        for copy in all.chunks_mut(stride) {
            copy[..values.len()].copy_from_slice(values);
        }
        let memory = DeviceBuffer::from_slice(&all)?;
        CurrentContext::synchronize()?;
        let len = values.len();
        Ok(Self {
            memory,
            len,
            stride,
        })
    }

    /// Room for `len` values in each copy, of bits that no kernel leaves: a NaN.
    pub fn unwritten(len: usize, copies: usize) -> Result<Self, CudaError> {
        let stride = len.next_multiple_of(ALIGN);
        // SAFETY: set at once.
        let mut memory = unsafe { DeviceBuffer::<u16>::uninitialized(stride * copies)? };
        memory.set_16(u16::MAX)?;
        CurrentContext::synchronize()?;
        Ok(Self {
            memory,
            len,
            stride,
        })
    }

    /// Address of a copy.
    pub fn at(&self, copy: usize) -> CUdeviceptr {
        self.memory.as_device_ptr().as_raw() + (2 * copy * self.stride) as CUdeviceptr
    }

    /// Whether each copy holds `values`. No kernel writes them any more.
    pub fn all_are(&self, values: &[u16]) -> Result<bool, CudaError> {
        let mut copy = vec![0; self.len];
        for start in (0..self.memory.len()).step_by(self.stride) {
            self.memory
                .index(start..start + self.len)
                .copy_to(&mut copy)?;
            let pieces = copy.par_chunks(PIECE).zip(values.par_chunks(PIECE));
            let same = values.len() == self.len && pieces.all(|(a, b)| a == b);
            if !same {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The values of all copies, in the host's memory. No kernel writes them any more.
    pub fn download(&self) -> Result<Vec<Vec<u16>>, CudaError> {
        let mut all = vec![0; self.memory.len()];
        self.memory.copy_to(&mut all)?;
        let copies = all.chunks(self.stride);
        Ok(copies.map(|copy| copy[..self.len].to_vec()).collect())
    }
}
