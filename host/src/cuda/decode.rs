use std::fmt;

use zipserv_gpu::{
    args::GemmArgs,
    launch::{GEMMS, Gemm},
    layout::TILE_COLS,
};

use super::{CudaError, DeviceMatrix, Family, GemmOperands, Gpu, RawStream, Workspace};

/// Launches of a kernel for few tokens, as many as it takes for all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DecodePlan {
    pub kernel: &'static str,
    shape: Gemm,
    /// Thread blocks.
    pub blocks: u32,
    columns: usize,
    slices: usize,
}

/// Tokens of one launch at most.
pub fn tokens(shape: &Gemm) -> usize {
    8 * shape.n_tiles
}

/// Tile columns of all row blocks, which the kernel deals out to thread blocks.
pub fn columns(shape: &Gemm, rows: usize, cols: usize) -> usize {
    rows.div_ceil(shape.rows()) * cols.div_ceil(TILE_COLS)
}

impl DecodePlan {
    /// The launches of a named kernel: as many thread blocks as the device holds at a time, each
    /// with an equal share of the tile columns (stream-K).
    ///
    /// # Errors
    /// [`CudaError::Argument`] when the device has no such kernel.
    pub fn with_kernel(
        gpu: &Gpu,
        weights: &DeviceMatrix,
        n: usize,
        kernel: &str,
    ) -> Result<Self, CudaError> {
        let (kernel, shape) = gpu.find(GEMMS, kernel)?;
        let columns = columns(&shape, weights.rows(), weights.cols());
        let blocks = columns.min(gpu.resident_blocks(kernel)? as usize);
        Ok(Self {
            kernel,
            shape,
            blocks: blocks.max(1) as u32,
            columns,
            slices: n.div_ceil(tokens(&shape)),
        })
    }

    /// The same on another number of thread blocks, at least one and at most as many as there
    /// are tile columns.
    #[must_use]
    pub fn with_blocks(self, blocks: u32) -> Self {
        let most = u32::try_from(self.columns).unwrap_or(u32::MAX);
        Self {
            blocks: blocks.min(most).max(1),
            ..self
        }
    }
}

impl fmt::Display for DecodePlan {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Self {
            shape,
            blocks,
            columns,
            slices,
            ..
        } = self;
        let (tokens, rows) = (tokens(shape), shape.rows());
        if *slices > 1 {
            write!(f, "{slices} slices of ")?;
        }
        write!(
            f,
            "up to {tokens} tokens; {columns} tile columns of {rows} rows over {blocks} blocks"
        )
    }
}

/// [`zipgemm_raw`](super::zipgemm_raw) by slices of the tokens, one launch after another; neither
/// dimension of the weights is 0.
///
/// # Errors
/// [`CudaError::Argument`] when the plan does not fit; [`CudaError`] from the driver.
///
/// # Safety
/// As [`zipgemm_raw`](super::zipgemm_raw).
pub unsafe fn zipgemm_decode_raw(
    gpu: &Gpu,
    stream: RawStream,
    plan: &DecodePlan,
    dependent: bool,
    weights: &DeviceMatrix,
    operands: &GemmOperands,
    workspace: &Workspace,
) -> Result<(), CudaError> {
    let &DecodePlan { shape, blocks, .. } = plan;
    let n = operands.n;
    let columns = columns(&shape, weights.rows(), weights.cols());
    let wrong = if n.div_ceil(tokens(&shape)) != plan.slices {
        Some(format!("the plan is for another problem than {n} tokens"))
    } else if blocks as usize > columns {
        Some(format!(
            "the plan is for a larger matrix: {columns} tile columns here"
        ))
    } else if blocks as usize * shape.partial_bytes() > workspace.partial_bytes() {
        Some(format!("{blocks} blocks do not fit the workspace"))
    } else if dependent && gpu.family() != Family::Hopper {
        Some("the portable kernels cannot be launched dependently".to_owned())
    } else {
        None
    };
    if let Some(wrong) = wrong {
        return Err(CudaError::Argument(wrong));
    }
    for first in (0..n).step_by(tokens(&shape)) {
        let (dense, offsets, patches) = weights.addresses();
        let slice = operands.slice(first, tokens(&shape));
        let args = GemmArgs {
            output: slice.output(),
            x: slice.x as *const u16,
            dense,
            offsets,
            patches,
            partials: workspace.partials.as_device_ptr().as_raw() as *mut f32,
            m: weights.rows,
            n: slice.n as u32,
            k: weights.cols,
            x_stride: operands.x_stride as u32,
            base: u32::from(weights.base),
        };
        // SAFETY: the caller's promise; a plan names a kernel that takes these arguments.
        unsafe { gpu.launch(plan.kernel, blocks, stream, dependent, args)? };
    }
    Ok(())
}
