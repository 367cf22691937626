//! ZipServ's kernels as published, a baseline to measure beside this crate's own: raw calls only.

use std::fmt;

use cudarc::driver::sys::CUdeviceptr;
use cust::memory::DeviceBuffer;
use zipserv_gpu::{
    args::Output,
    published::{
        BLOCK_ROWS,
        args::{DecompressArgs, GemmArgs, Weights},
        block_grid,
        launch::{DECOMPRESS, GEMMS, Gemm},
    },
};

use super::{CudaError, Gpu, RawStream, Workspace, matrix::duplicate, settle};
use crate::PublishedMatrix;

/// Tokens, at most, of [`published_gemm_raw`].
pub const PUBLISHED_MAX_TOKENS: usize = 64;

/// Activations of a row that are copied at a time.
const X_CHUNK: usize = 8;

/// A [`PublishedMatrix`] in the memory of the current context's device.
pub struct PublishedDeviceMatrix {
    rows: u32,
    cols: u32,
    base: u8,
    bitmaps: DeviceBuffer<u8>,
    bytes: DeviceBuffer<u8>,
    outliers: DeviceBuffer<u8>,
    starts: DeviceBuffer<u8>,
    bands: DeviceBuffer<u8>,
}

impl PublishedDeviceMatrix {
    /// Copies `matrix` to the device of the current context.
    ///
    /// # Errors
    /// [`CudaError`] from the driver.
    pub fn upload(matrix: &PublishedMatrix) -> Result<Self, CudaError> {
        let this = Self {
            rows: matrix.rows() as u32,
            cols: matrix.cols() as u32,
            base: matrix.base(),
            bitmaps: DeviceBuffer::from_slice(bytemuck::cast_slice(matrix.bitmaps()))?,
            bytes: DeviceBuffer::from_slice(matrix.bytes())?,
            outliers: DeviceBuffer::from_slice(bytemuck::cast_slice(matrix.outliers()))?,
            starts: DeviceBuffer::from_slice(bytemuck::cast_slice(matrix.starts()))?,
            bands: DeviceBuffer::from_slice(bytemuck::cast_slice(matrix.bands()))?,
        };
        settle()?;
        Ok(this)
    }

    /// Another copy of the same matrix.
    ///
    /// # Errors
    /// [`CudaError`] from the driver.
    pub fn duplicate(&self) -> Result<Self, CudaError> {
        let this = Self {
            bitmaps: duplicate(&self.bitmaps)?,
            bytes: duplicate(&self.bytes)?,
            outliers: duplicate(&self.outliers)?,
            starts: duplicate(&self.starts)?,
            bands: duplicate(&self.bands)?,
            ..*self
        };
        settle()?;
        Ok(this)
    }

    /// Output features, M.
    pub fn rows(&self) -> usize {
        self.rows as usize
    }

    /// Input features, K.
    pub fn cols(&self) -> usize {
        self.cols as usize
    }

    /// Bytes that a kernel reads.
    pub fn device_bytes(&self) -> usize {
        let Self {
            bitmaps,
            bytes,
            outliers,
            starts,
            bands,
            ..
        } = self;
        let arrays = [bitmaps, bytes, outliers, starts, bands];
        arrays.into_iter().map(|array| array.len()).sum()
    }

    /// Block tiles: rows and columns of them.
    fn blocks(&self) -> (usize, usize) {
        block_grid(self.rows(), self.cols())
    }

    fn weights(&self) -> Weights {
        let at = |buffer: &DeviceBuffer<u8>| buffer.as_device_ptr().as_raw() as *const u8;
        Weights {
            bitmaps: at(&self.bitmaps),
            bytes: at(&self.bytes),
            outliers: at(&self.outliers),
            starts: at(&self.starts).cast(),
            bands: at(&self.bands).cast(),
            m: self.rows,
            k: self.cols,
            base: u32::from(self.base),
        }
    }
}

/// Restores `matrix` to dense row-major BF16 at `weights`, bit for bit.
///
/// # Errors
/// [`CudaError`] from the driver; [`CudaError::Argument`] when `weights` is not aligned to BF16.
///
/// # Safety
/// `weights` has room for `rows * cols` BF16 in memory of `gpu` when the kernel runs.
pub unsafe fn published_decompress_raw(
    gpu: &Gpu,
    stream: RawStream,
    matrix: &PublishedDeviceMatrix,
    weights: CUdeviceptr,
) -> Result<(), CudaError> {
    if !weights.is_multiple_of(2) {
        let wrong = "weights must be aligned to 2 bytes";
        return Err(CudaError::Argument(wrong.to_owned()));
    }
    let (block_rows, block_cols) = matrix.blocks();
    let blocks = block_rows * block_cols;
    if blocks == 0 {
        return Ok(());
    }
    let args = DecompressArgs {
        weights: matrix.weights(),
        output: weights as *mut u16,
    };
    // SAFETY: the caller's promise.
    unsafe { gpu.launch(DECOMPRESS.name, blocks as u32, stream, false, args) }
}

/// How [`published_gemm_raw`] launches its kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PublishedPlan {
    kernel: &'static str,
    shape: Gemm,
    row_blocks: u32,
    block_cols: u32,
    split: u32,
}

impl PublishedPlan {
    /// The smallest kernel for `n` tokens, and as many parts of K as fill the device once.
    ///
    /// # Errors
    /// [`CudaError::Argument`] when there is no kernel for so many tokens, or one dimension of the
    /// weights is 0.
    pub fn new(gpu: &Gpu, weights: &PublishedDeviceMatrix, n: usize) -> Result<Self, CudaError> {
        let fits = GEMMS.iter().find(|(_, shape)| n <= shape.tokens());
        let Some(&(kernel, shape)) = fits.filter(|_| n > 0) else {
            return Err(CudaError::Argument(format!(
                "the published kernels take 1 to {PUBLISHED_MAX_TOKENS} tokens, not {n}"
            )));
        };
        let (row_blocks, block_cols) = weights.blocks();
        if row_blocks * block_cols == 0 {
            let wrong = "the published kernels take no empty weights";
            return Err(CudaError::Argument(wrong.to_owned()));
        }
        let (row_blocks, block_cols) = (row_blocks as u32, block_cols as u32);
        let plan = Self {
            kernel,
            shape,
            row_blocks,
            block_cols,
            split: 1,
        };
        Ok(plan.with_split(gpu.resident_blocks(kernel)? / row_blocks))
    }

    /// The same with another number of parts of K, from one to as many as there are block tiles, as
    /// long as the product of both numbers has 32 bits.
    #[must_use]
    pub fn with_split(self, split: u32) -> Self {
        let most = self.block_cols.min(u32::MAX / self.block_cols);
        Self {
            split: split.clamp(1, most),
            ..self
        }
    }

    /// Whether there is a kernel for weights of so many input features.
    pub fn takes_cols(cols: usize) -> bool {
        cols > 0 && cols.is_multiple_of(X_CHUNK)
    }

    /// Name of the kernel.
    pub fn kernel(&self) -> &'static str {
        self.kernel
    }

    /// Parts of K.
    pub fn split(&self) -> u32 {
        self.split
    }

    /// Thread blocks.
    pub fn blocks(&self) -> u32 {
        self.row_blocks * self.split
    }

    /// Bytes of a workspace that it takes.
    fn partial_bytes(&self) -> usize {
        self.row_blocks as usize * (self.split - 1) as usize * self.shape.partial_bytes()
    }
}

impl fmt::Display for PublishedPlan {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Self { kernel, split, .. } = self;
        write!(f, "{kernel} x {}, {split} parts of K", self.blocks())
    }
}

/// Y[N, M] = X[N, K] W[M, K]^T, `n` rows of BF16 activations at `x` into as many of BF16 at `y`.
///
/// # Errors
/// [`CudaError::Argument`] when the plan does not fit, K is no multiple of 8, or a pointer is not
/// aligned: `x` to 16 bytes, `y` to 2. [`CudaError`] from the driver.
///
/// # Safety
/// When the kernel runs, `x` holds its rows and `y` has room for its own, in memory of `gpu`; they
/// do not overlap; no other kernel uses `workspace` at the same time.
#[expect(clippy::too_many_arguments, reason = "all of them are needed once")]
pub unsafe fn published_gemm_raw(
    gpu: &Gpu,
    stream: RawStream,
    plan: &PublishedPlan,
    weights: &PublishedDeviceMatrix,
    x: CUdeviceptr,
    n: usize,
    y: CUdeviceptr,
    workspace: &Workspace,
) -> Result<(), CudaError> {
    let (row_blocks, block_cols) = weights.blocks();
    let is_same = (row_blocks, block_cols) == (plan.row_blocks as usize, plan.block_cols as usize);
    let wrong = if n == 0 || n > plan.shape.tokens() || !is_same {
        Some(format!("the plan is for another problem than {n} tokens"))
    } else if plan.partial_bytes() > workspace.partial_bytes() {
        let (split, rows) = (plan.split, row_blocks * BLOCK_ROWS);
        Some(format!(
            "{split} parts of {rows} rows do not fit the workspace"
        ))
    } else if !PublishedPlan::takes_cols(weights.cols()) || !x.is_multiple_of(16) {
        Some("rows of activations must be aligned to 16 bytes".to_owned())
    } else if !y.is_multiple_of(2) {
        Some("outputs must be aligned to 2 bytes".to_owned())
    } else if weights.rows > u32::MAX / 2 {
        Some("rows of outputs are more than 4 GiB apart".to_owned())
    } else {
        None
    };
    if let Some(wrong) = wrong {
        return Err(CudaError::Argument(wrong));
    }
    let args = GemmArgs {
        weights: weights.weights(),
        output: Output {
            y: y as *mut u8,
            bias: std::ptr::null(),
            pitch: 2 * weights.rows,
            is_f32: false,
            accumulate: false,
        },
        x: x as *const u16,
        partials: workspace.partials.as_device_ptr().as_raw() as *mut f32,
        n: n as u32,
        split: plan.split,
    };
    // SAFETY: the caller's promise; the plan is for these weights.
    unsafe { gpu.launch(plan.kernel, plan.blocks(), stream, false, args) }
}
