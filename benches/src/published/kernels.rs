//! The kernels, on matrices in the memory of a device.

use std::fmt;

use published_kernels::{
    KERNELS, PTX,
    args::{DecompressArgs, GemmArgs, Weights},
    block_grid,
    launch::{DECOMPRESS, GEMMS, Gemm},
};
use zipserv_gpu::{args::Output, launch::Gemm as Zipgemm};

use super::PublishedMatrix;
use zipserv::gpu::{Buffer, CustomKernels, Device, GpuError, Need, Operand, Stream};

/// Tokens, at most, of [`PublishedKernels::multiply`].
pub const PUBLISHED_MAX_TOKENS: usize = 64;

/// Bytes of partial sums for each SM: as many as are stored where K is split as far as it pays.
const PARTIAL_BYTES: usize = 128 << 10;

/// Activations of a row that are copied at a time.
const X_CHUNK: usize = 8;

/// A [`PublishedMatrix`] in the memory of a device.
pub struct PublishedDeviceMatrix {
    rows: u32,
    cols: u32,
    base: u8,
    bitmaps: Buffer<u8>,
    bytes: Buffer<u8>,
    outliers: Buffer<u8>,
    starts: Buffer<u8>,
    bands: Buffer<u8>,
}

impl PublishedDeviceMatrix {
    /// Copies `matrix` to `device`.
    ///
    /// # Errors
    /// [`GpuError::Driver`].
    pub fn upload(device: &Device, matrix: &PublishedMatrix) -> Result<Self, GpuError> {
        let upload = |bytes: &[u8]| Buffer::from_slice(device, bytes);
        Ok(Self {
            rows: matrix.rows() as u32,
            cols: matrix.cols() as u32,
            base: matrix.base(),
            bitmaps: upload(bytemuck::cast_slice(matrix.bitmaps()))?,
            bytes: upload(matrix.bytes())?,
            outliers: upload(bytemuck::cast_slice(matrix.outliers()))?,
            starts: upload(bytemuck::cast_slice(matrix.starts()))?,
            bands: upload(bytemuck::cast_slice(matrix.bands()))?,
        })
    }

    /// Another copy of the same matrix.
    ///
    /// # Errors
    /// [`GpuError::Driver`].
    pub fn duplicate(&self, stream: &Stream) -> Result<Self, GpuError> {
        let duplicate = |buffer: &Buffer<u8>| {
            let mut copy = Buffer::uninitialized(buffer.device(), buffer.len())?;
            copy.copy_from(stream, buffer)?;
            Ok::<_, GpuError>(copy)
        };
        let this = Self {
            bitmaps: duplicate(&self.bitmaps)?,
            bytes: duplicate(&self.bytes)?,
            outliers: duplicate(&self.outliers)?,
            starts: duplicate(&self.starts)?,
            bands: duplicate(&self.bands)?,
            ..*self
        };
        stream.synchronize()?;
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
        let at = |buffer: &Buffer<u8>| buffer.address() as *const u8;
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

/// The kernels for a device, and the memory through which their thread blocks add up partial sums:
/// for calls that follow one another in a stream.
pub struct PublishedKernels {
    kernels: CustomKernels,
    /// [`Zipgemm::EMPTY`] where there are none.
    partials: Buffer<u32>,
}

impl PublishedKernels {
    /// Each is loaded when it is first wanted.
    ///
    /// # Errors
    /// [`GpuError::Driver`].
    pub fn new(device: &Device) -> Result<Self, GpuError> {
        let words = device.sms() as usize * PARTIAL_BYTES / 4;
        Ok(Self {
            kernels: CustomKernels::new(device, PTX, KERNELS),
            partials: Buffer::from_slice(device, &vec![Zipgemm::EMPTY; words])?,
        })
    }

    /// Whether no sums are left, after what was launched on `stream`, as between calls.
    ///
    /// # Errors
    /// [`GpuError::Driver`].
    pub fn is_empty(&self, stream: &Stream) -> Result<bool, GpuError> {
        let partials = self.partials.to_vec(stream)?;
        Ok(partials.iter().all(|&word| word == Zipgemm::EMPTY))
    }

    /// Restores `matrix` to dense row-major BF16 at `weights`, bit for bit.
    ///
    /// # Errors
    /// [`GpuError::Driver`]; [`GpuError::Alignment`] when `weights` is not aligned to BF16.
    ///
    /// # Safety
    /// `weights` has room for `rows * cols` BF16 in memory of the device when the kernel runs. The
    /// matrix is the device's.
    pub unsafe fn decompress(
        &self,
        stream: &Stream,
        matrix: &PublishedDeviceMatrix,
        weights: u64,
    ) -> Result<(), GpuError> {
        aligned(Operand::Outputs, weights, 2)?;
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
        unsafe {
            self.kernels
                .launch(stream, DECOMPRESS.name, blocks as u32, args)
        }
    }

    /// Y[N, M] = X[N, K] W[M, K]^T, `n` rows of BF16 activations at `x` into as many of BF16 at `y`.
    ///
    /// # Errors
    /// [`GpuError`] when the plan does not fit, K is no multiple of 8, or a pointer is not aligned: `x` to
    /// 16 bytes, `y` to 2.
    ///
    /// # Safety
    /// When the kernel runs, `x` holds its rows and `y` has room for its own, in memory of the device; they
    /// do not overlap; all is the device's, and all calls follow one another in one stream.
    pub unsafe fn multiply(
        &self,
        stream: &Stream,
        plan: &PublishedPlan,
        weights: &PublishedDeviceMatrix,
        x: u64,
        n: usize,
        y: u64,
    ) -> Result<(), GpuError> {
        let (row_blocks, block_cols) = weights.blocks();
        if n == 0 || n > plan.shape.tokens() {
            let most = plan.shape.tokens();
            return Err(GpuError::Tokens { tokens: n, most });
        }
        if (row_blocks, block_cols) != (plan.row_blocks as usize, plan.block_cols as usize) {
            let blocks = |rows, cols| format!("{rows} x {cols}");
            let expected = blocks(plan.row_blocks as usize, plan.block_cols as usize);
            let got = blocks(row_blocks, block_cols);
            return Err(GpuError::PlanMismatch {
                what: "blocks of weights,",
                expected,
                got,
            });
        }
        let (needed, got) = (plan.partial_bytes(), 4 * self.partials.len());
        if needed > got {
            let what = "bytes for partial sums";
            return Err(GpuError::WorkspaceTooSmall { what, needed, got });
        }
        if !PublishedPlan::takes_cols(weights.cols()) {
            return Err(GpuError::Length {
                operand: Operand::Activations,
                expected: Need::MultipleOf(X_CHUNK),
                got: weights.cols(),
            });
        }
        aligned(Operand::Activations, x, 16)?;
        aligned(Operand::Outputs, y, 2)?;
        let most = u32::MAX as usize / 2;
        if weights.rows() > most {
            return Err(GpuError::Stride {
                operand: Operand::Outputs,
                stride: weights.rows(),
                least: weights.rows(),
                most,
            });
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
            partials: self.partials.address() as *mut f32,
            n: n as u32,
            split: plan.split,
        };
        // SAFETY: the caller's promise; the plan is for these weights.
        unsafe {
            self.kernels
                .launch(stream, plan.kernel, plan.blocks(), args)
        }
    }
}

/// How [`PublishedKernels::multiply`] launches its kernel.
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
    /// [`GpuError::Tokens`] when there is no kernel for so many, [`GpuError::EmptyWeights`] when one
    /// dimension of the weights is 0, and what loading the kernel fails with.
    pub fn new(
        kernels: &PublishedKernels,
        weights: &PublishedDeviceMatrix,
        n: usize,
    ) -> Result<Self, GpuError> {
        let fits = GEMMS.iter().find(|(_, shape)| n <= shape.tokens());
        let Some(&(kernel, shape)) = fits.filter(|_| n > 0) else {
            return Err(GpuError::Tokens {
                tokens: n,
                most: PUBLISHED_MAX_TOKENS,
            });
        };
        let (row_blocks, block_cols) = weights.blocks();
        if row_blocks * block_cols == 0 {
            let (rows, cols) = (weights.rows(), weights.cols());
            return Err(GpuError::EmptyWeights { rows, cols });
        }
        let (row_blocks, block_cols) = (row_blocks as u32, block_cols as u32);
        let plan = Self {
            kernel,
            shape,
            row_blocks,
            block_cols,
            split: 1,
        };
        Ok(plan.with_split(kernels.kernels.resident_blocks(kernel)? / row_blocks))
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

fn aligned(operand: Operand, address: u64, align: usize) -> Result<(), GpuError> {
    match address.is_multiple_of(align as u64) {
        true => Ok(()),
        false => Err(GpuError::Alignment {
            operand,
            align,
            address,
            pitch: 0,
        }),
    }
}
