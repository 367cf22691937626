use cudarc::driver::sys::CUdeviceptr;
use cust::{
    context::CurrentContext,
    memory::{CopyDestination, DeviceBuffer, DeviceSlice},
};

use super::{Layer, Problem, check::equal, data};
use crate::{
    Matrix, PublishedMatrix,
    cuda::{CudaError, DeviceMatrix, PublishedDeviceMatrix},
    encode,
    results::LayerInfo,
};

/// Bytes that are touched, at least, before a launch comes back to the operands of an earlier
/// one: four times the L2 cache of an H100.
const COLD_BYTES: usize = 200_000_000;
/// Copies at most; a matrix under 3 MB may stay in the cache.
const MOST_COPIES: usize = 64;
/// Bytes of BF16 weights that a recording covers, at least: about a millisecond, which makes the
/// microseconds before its first launch small.
const RECORDING_BYTES: usize = 2_500_000_000;
/// Floating-point operations that take an H100 about as long as a byte from memory.
const OPERATIONS_PER_BYTE: usize = 200;
/// Launches of a recording at most.
const MOST_LAUNCHES: usize = 256;

/// How the launches of a recording take turns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rotation {
    /// Copies of all operands.
    pub copies: usize,
    /// Launches: a multiple of the copies.
    pub launches: usize,
}

impl Rotation {
    /// For a layer times `n` tokens, of which there are none where only weights are moved.
    fn new(layer: &LayerInfo, n: usize) -> Self {
        let (rows, cols) = (layer.rows, layer.cols);
        let touched = layer.compressed_bytes + 2 * n * (rows + cols);
        let copies = COLD_BYTES.div_ceil(touched.max(1)) + 1;
        let copies = copies.clamp(2, MOST_COPIES);
        let operations = 2 * n * rows * cols;
        let work = layer.bf16_bytes().max(operations / OPERATIONS_PER_BYTE);
        let rounds = RECORDING_BYTES.div_ceil(work.max(1) * copies);
        let rounds = rounds.min(MOST_LAUNCHES.div_ceil(copies));
        Self {
            copies,
            launches: copies * rounds,
        }
    }
}

/// How compressed weights lie in memory.
#[derive(Clone, Copy)]
pub enum Layout {
    /// Ours.
    Ours,
    /// ZipServ's as published.
    Published,
}

/// A layer's weights on the device, dense and compressed, as often as it takes to find none of
/// them in the cache.
pub struct Operands {
    pub info: LayerInfo,
    /// The weights' bits on the host.
    pub bits: Vec<u16>,
    pub dense: Vec<DeviceBuffer<u16>>,
    pub compressed: Vec<DeviceMatrix>,
    /// The same in ZipServ's layout as published, if it is [added](Self::add_published).
    pub published: Vec<PublishedDeviceMatrix>,
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
        // Never more of them than without tokens.
        let copies = Rotation::new(&info, 0).copies;
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
            published: Vec::new(),
        })
    }

    /// The layouts that the weights are there in, ours first.
    pub fn layouts(&self) -> impl Iterator<Item = Layout> {
        let published = (!self.published.is_empty()).then_some(Layout::Published);
        [Layout::Ours].into_iter().chain(published)
    }

    /// Adds as many copies in the published layout as there are in ours.
    pub fn add_published(&mut self) -> Result<(), CudaError> {
        let matrix = Matrix::from_bits(self.info.rows, self.info.cols, &self.bits);
        let first = matrix
            .and_then(|matrix| PublishedMatrix::encode(&matrix))
            .map_err(|error| CudaError::Argument(error.to_string()))?;
        self.published = vec![PublishedDeviceMatrix::upload(&first)?];
        for _ in 1..self.compressed.len() {
            self.published.push(self.published[0].duplicate()?);
        }
        Ok(())
    }

    /// The multiplication by `n` tokens, as our kernels do it.
    pub fn problem(&self, n: usize) -> Problem {
        Problem {
            m: self.info.rows,
            n,
            k: self.info.cols,
            f32_out: false,
        }
    }

    /// How launches for `n` tokens take turns, or those that only move weights, for 0 of them.
    pub fn rotation(&self, n: usize) -> Rotation {
        Rotation::new(&self.info, n)
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

impl Copies {
    /// Copies of `values`.
    pub fn of(values: &[u16], copies: usize) -> Result<Self, CudaError> {
        let all = Self::unwritten(values.len(), copies)?;
        all.copy(0).copy_from(values)?;
        for copy in 1..copies {
            all.copy(copy).copy_from(&all.copy(0))?;
        }
        CurrentContext::synchronize()?;
        Ok(all)
    }

    /// Room for `len` values in each copy, of bits that no kernel leaves: a NaN.
    pub fn unwritten(len: usize, copies: usize) -> Result<Self, CudaError> {
        let stride = len.next_multiple_of(ALIGN);
        let all = Self {
            // SAFETY: set at once.
            memory: unsafe { DeviceBuffer::uninitialized(stride * copies)? },
            len,
            stride,
        };
        all.unwrite()?;
        Ok(all)
    }

    /// Sets everything to those bits again. No kernel uses it.
    pub fn unwrite(&self) -> Result<(), CudaError> {
        self.memory.index(..).set_16(u16::MAX)?;
        Ok(CurrentContext::synchronize()?)
    }

    /// Address of a copy.
    pub fn at(&self, copy: usize) -> CUdeviceptr {
        self.memory.as_device_ptr().as_raw() + (2 * copy * self.stride) as CUdeviceptr
    }

    fn copy(&self, copy: usize) -> DeviceSlice<u16> {
        let start = copy * self.stride;
        self.memory.index(start..start + self.len)
    }

    /// Whether each copy holds `values`. No kernel writes them any more.
    pub fn all_are(&self, values: &[u16]) -> Result<bool, CudaError> {
        for copy in self.downloads() {
            if !equal(&copy?, values) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The values of each copy, brought to the host's memory when it is their turn: all of them
    /// may be too many. No kernel writes them any more.
    pub fn downloads(&self) -> impl Iterator<Item = Result<Vec<u16>, CudaError>> {
        (0..self.memory.len() / self.stride).map(|copy| {
            let mut values = vec![0; self.len];
            self.copy(copy).copy_to(&mut values)?;
            Ok(values)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::{TOKENS, layers};

    fn info(layer: Layer) -> LayerInfo {
        let Layer { name, rows, cols } = layer;
        LayerInfo {
            model: String::new(),
            name: name.to_owned(),
            rows,
            cols,
            compressed_bytes: rows * cols * 11 / 8,
        }
    }

    #[test]
    fn rotation_is_cold_and_long_enough() {
        for (model, layer) in layers(&[]) {
            let info = info(layer);
            let weights = Rotation::new(&info, 0).copies;
            for n in TOKENS {
                let Rotation { copies, launches } = Rotation::new(&info, n);
                let what = format!("{model} {} {n}: {copies} copies, {launches}", layer.name);
                assert!((2..=weights).contains(&copies), "{what}");
                assert!(launches > 0 && launches.is_multiple_of(copies), "{what}");
                let touched = info.compressed_bytes + 2 * n * (layer.rows + layer.cols);
                assert!((copies - 1) * touched >= 200_000_000, "{what}");
                let operations = 2 * n * layer.rows * layer.cols;
                let work = info.bf16_bytes().max(operations / 200);
                assert!(launches * work >= 2_500_000_000, "{what}");
            }
        }
    }

    /// At 3 TB/s and 600 TFLOP/s, in a whole run: cuBLAS's choices on trial, then four of them,
    /// four with decompression before, and both ways to launch ours.
    #[test]
    fn many_tokens_take_minutes_only() {
        let us = |n: usize, replays: usize, algorithms: usize| -> f64 {
            let replays = 10 * (replays + 2) + 5 * algorithms;
            let layer = |(_, layer): (&str, Layer)| {
                let bytes = 2 * layer.rows * layer.cols;
                let us = (bytes as f64 / 3e6).max((bytes * n) as f64 / 600e6);
                us * Rotation::new(&info(layer), n).launches as f64
            };
            layers(&[]).map(layer).sum::<f64>() * replays as f64
        };
        let many = || TOKENS.into_iter().filter(|&n| n > 64);
        assert!(many().map(|n| us(n, 15, 12)).sum::<f64>() < 120e6);
        assert!(many().map(|n| us(n, 5, 4)).sum::<f64>() < 50e6);
    }

    #[test]
    fn a_small_matrix_has_no_more_launches_than_may_be() {
        let layer = Layer {
            name: "small",
            rows: 1,
            cols: 1,
        };
        let Rotation { copies, launches } = Rotation::new(&info(layer), 1);
        assert_eq!((copies, launches), (MOST_COPIES, MOST_LAUNCHES));
    }
}
