use std::fmt;

use zipserv_gpu::{
    args::GemmArgs,
    launch::{GEMMS, Gemm},
    layout::TILE_COLS,
};

use crate::gpu::{
    driver::RawStream, error::GpuError, family::Family, matrix::DeviceMatrix,
    operands::RawOperands, workspace::Workspace,
};

/// Launches of a kernel for few tokens, as many as it takes for all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MmaPlan {
    pub kernel: &'static str,
    shape: Gemm,
    /// Thread blocks.
    pub blocks: u32,
    k_tiles: usize,
    slices: usize,
}

/// Tokens of one launch at most.
pub fn tokens(shape: &Gemm) -> usize {
    8 * shape.n_tiles
}

/// k-tiles of all row blocks, which the kernel decomposes among thread blocks.
pub fn k_tiles(shape: &Gemm, rows: usize, cols: usize) -> usize {
    rows.div_ceil(shape.rows()) * cols.div_ceil(TILE_COLS)
}

/// How many thread blocks have whole row blocks each, so that no partial sums are stored, if that is
/// possible with nine tenths of `most`. With `warps_m` of 1, 128 instead of 132 blocks took 8.7
/// instead of 9.3 us for one token and 4096 x 4096 (an H100, console figures).
fn whole_row_blocks(row_blocks: usize, most: usize) -> Option<usize> {
    let enough = (9 * most).div_ceil(10);
    (enough..=most)
        .rev()
        .find(|&blocks| blocks > 0 && row_blocks.is_multiple_of(blocks))
}

impl MmaPlan {
    /// The launches of a named kernel: as many thread blocks as the device holds at a time, or
    /// somewhat fewer, each with an equal run of the k-tiles (stream-K).
    ///
    /// # Errors
    /// [`GpuError::NoKernel`] when the device has no such kernel, and what loading it fails with.
    pub fn with_kernel(weights: &DeviceMatrix, n: usize, kernel: &str) -> Result<Self, GpuError> {
        let device = weights.device();
        let (kernel, shape) = device.find(GEMMS, kernel)?;
        let k_tiles = k_tiles(&shape, weights.rows(), weights.cols());
        let row_blocks = weights.rows().div_ceil(shape.rows());
        let most = k_tiles.min(device.resident_blocks(kernel)? as usize);
        let blocks = match shape.warps_m {
            1 => whole_row_blocks(row_blocks, most).unwrap_or(most),
            _ => most,
        };
        Ok(Self {
            kernel,
            shape,
            blocks: blocks.max(1) as u32,
            k_tiles,
            slices: n.div_ceil(tokens(&shape)),
        })
    }

    /// The same on another number of thread blocks, at least one and at most as many as there
    /// are k-tiles.
    #[must_use]
    pub fn with_blocks(self, blocks: u32) -> Self {
        let most = u32::try_from(self.k_tiles).unwrap_or(u32::MAX);
        Self {
            blocks: blocks.min(most).max(1),
            ..self
        }
    }
}

impl fmt::Display for MmaPlan {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Self {
            shape,
            blocks,
            k_tiles,
            slices,
            ..
        } = self;
        let (tokens, rows) = (tokens(shape), shape.rows());
        if *slices > 1 {
            write!(f, "{slices} slices of ")?;
        }
        write!(
            f,
            "up to {tokens} tokens; {k_tiles} k-tiles of {rows} rows over {blocks} blocks"
        )
    }
}

/// [`Plan::run_raw`](super::Plan::run_raw) by slices of the tokens, one launch after another; neither
/// dimension of the weights is 0. With `is_gated`, outputs are silu(first half) x (second half) of the features, halves
/// are whole strips, and row blocks have strips of both.
///
/// # Errors
/// [`GpuError::PlanMismatch`] and [`GpuError::WorkspaceTooSmall`] when the plan does not fit;
/// [`GpuError::Driver`].
///
/// # Safety
/// As [`Plan::run_raw`](super::Plan::run_raw).
pub unsafe fn run_mma(
    stream: RawStream,
    plan: &MmaPlan,
    pdl: bool,
    weights: &DeviceMatrix,
    operands: &RawOperands,
    is_gated: bool,
    workspace: &Workspace,
) -> Result<(), GpuError> {
    let &MmaPlan { shape, blocks, .. } = plan;
    let (device, n) = (weights.device(), operands.n);
    let slices = n.div_ceil(tokens(&shape));
    if slices != plan.slices {
        return Err(GpuError::mismatch(
            "slices of tokens, as many as",
            plan.slices,
            slices,
        ));
    }
    let k_tiles = k_tiles(&shape, weights.rows(), weights.cols());
    if k_tiles != plan.k_tiles {
        return Err(GpuError::mismatch(
            "k-tiles, as many as",
            plan.k_tiles,
            k_tiles,
        ));
    }
    let bytes = blocks as usize * shape.partial_bytes();
    Workspace::check_room("bytes for partial sums", bytes, workspace.partial_bytes())?;
    let (dense, offsets, patches) = weights.addresses();
    for first in (0..n).step_by(tokens(&shape)) {
        let slice = operands.slice(first, tokens(&shape));
        let args = GemmArgs {
            output: slice.output(),
            x: slice.x as *const u16,
            dense,
            offsets,
            patches,
            partials: workspace.partials.address() as *mut f32,
            m: weights.rows() as u32,
            n: slice.n as u32,
            k: weights.cols() as u32,
            x_stride: operands.x_stride as u32,
            is_gated,
        };
        // The portable kernels know of no kernel before them.
        let pdl = pdl && device.family() == Family::Hopper;
        // SAFETY: the caller's promise; a plan names a kernel that takes these arguments.
        unsafe { device.launch(plan.kernel, blocks, stream, pdl, args)? };
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::whole_row_blocks;

    #[test]
    fn blocks_with_whole_row_blocks() {
        // 4096, 12288, 15360, 8192 features on an H100; 5120 and 6144 would leave too many idle.
        let blocks = [128, 384, 480, 256, 160, 192].map(|rows| whole_row_blocks(rows, 132));
        let expected = [Some(128), Some(128), Some(120), Some(128), None, None];
        assert_eq!(blocks, expected);
        assert_eq!(whole_row_blocks(1, 1), Some(1));
        assert_eq!(whole_row_blocks(1, 132), None);
        assert_eq!(whole_row_blocks(0, 0), None);
    }
}
