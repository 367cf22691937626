use cudarc::driver::sys;

use zipserv::{
    Matrix, encode,
    gpu::{Buffer, DeviceMatrix, GpuError, Stream, View},
};

use super::{
    Layer,
    check::equal,
    cublas::Problem,
    data,
    driver::check,
    published::{PublishedDeviceMatrix, PublishedMatrix},
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
    pub dense: Vec<Buffer<u16>>,
    pub compressed: Vec<DeviceMatrix>,
    /// The same in ZipServ's layout as published, if it is [added](Self::add_published).
    pub published: Vec<PublishedDeviceMatrix>,
}

impl Operands {
    pub fn new(stream: &Stream, model: &str, layer: Layer, seed: u64) -> Result<Self, GpuError> {
        let Layer { name, rows, cols } = layer;
        let bits = data::weights(rows, cols, seed);
        let matrix = Matrix::from_bits(rows, cols, &bits);
        let compressed = matrix
            .and_then(|matrix| encode(&matrix))
            .map_err(|error| GpuError::Config(error.to_string()))?;
        let device = stream.device();
        let compressed = DeviceMatrix::upload(device, &compressed)?;
        let info = LayerInfo {
            model: model.to_owned(),
            name: name.to_owned(),
            rows,
            cols,
            compressed_bytes: compressed.device_bytes(),
        };
        // Never more of them than without tokens.
        let copies = Rotation::new(&info, 0).copies;
        let mut dense = vec![Buffer::from_slice(device, &bits)?];
        let mut compressed = vec![compressed];
        for _ in 1..copies {
            let mut copy = Buffer::uninitialized(device, bits.len())?;
            copy.copy_from(stream, &dense[0])?;
            dense.push(copy);
            compressed.push(compressed[0].duplicate(stream)?);
        }
        stream.synchronize()?;
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
    pub fn add_published(&mut self, stream: &Stream) -> Result<(), GpuError> {
        let matrix = Matrix::from_bits(self.info.rows, self.info.cols, &self.bits);
        let first = matrix
            .and_then(|matrix| PublishedMatrix::encode(&matrix))
            .map_err(|error| GpuError::Config(error.to_string()))?;
        self.published = vec![PublishedDeviceMatrix::upload(stream.device(), &first)?];
        for _ in 1..self.compressed.len() {
            self.published.push(self.published[0].duplicate(stream)?);
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
    memory: Buffer<u16>,
    stream: Stream,
    len: usize,
    stride: usize,
}

/// Values between the starts of copies: a multiple of 256 bytes, as allocations are.
const ALIGN: usize = 128;

impl Copies {
    /// Copies of `values`.
    pub fn of(stream: &Stream, values: &[u16], copies: usize) -> Result<Self, GpuError> {
        let stride = values.len().next_multiple_of(ALIGN);
        let mut all = vec![u16::MAX; stride * copies];
        for copy in all.chunks_mut(stride.max(1)) {
            copy[..values.len()].copy_from_slice(values);
        }
        Ok(Self {
            memory: Buffer::from_slice(stream.device(), &all)?,
            stream: stream.clone(),
            len: values.len(),
            stride,
        })
    }

    /// Room for `len` values in each copy, of bits that no kernel leaves: a NaN.
    pub fn unwritten(stream: &Stream, len: usize, copies: usize) -> Result<Self, GpuError> {
        let stride = len.next_multiple_of(ALIGN);
        let all = Self {
            memory: Buffer::uninitialized(stream.device(), stride * copies)?,
            stream: stream.clone(),
            len,
            stride,
        };
        all.unwrite()?;
        Ok(all)
    }

    /// Sets everything to those bits again, after what was launched.
    pub fn unwrite(&self) -> Result<(), GpuError> {
        let _current = self.stream.device().enter()?;
        let (at, len) = (self.memory.address(), self.memory.len());
        // SAFETY: the length is right.
        check("cuMemsetD16Async", unsafe {
            sys::cuMemsetD16Async(at, u16::MAX, len, self.stream.raw().cast())
        })?;
        self.stream.synchronize()
    }

    /// Address of a copy.
    pub fn at(&self, copy: usize) -> u64 {
        self.copy(copy).address()
    }

    fn copy(&self, copy: usize) -> View<'_, u16> {
        let start = copy * self.stride;
        self.memory.slice(start..start + self.len)
    }

    /// Whether each copy holds `values`, after what was launched.
    pub fn all_are(&self, values: &[u16]) -> Result<bool, GpuError> {
        for copy in self.downloads() {
            if !equal(&copy?, values) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The values of each copy, brought to the host's memory when it is their turn: all of them
    /// may be too many.
    pub fn downloads(&self) -> impl Iterator<Item = Result<Vec<u16>, GpuError>> {
        let copies = 0..self.memory.len() / self.stride.max(1);
        copies.map(|copy| self.copy(copy).to_vec(&self.stream))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{TOKENS, layers};

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
