//! The batch-invariant way: the bits of a token's outputs do not depend on the other tokens of the
//! call.
//!
//! Tokens go through the kernels for many in groups, none larger than an output tile. Each group is
//! one block of tokens then, so that the decomposition of output tiles, and with it the order in which the
//! products of an output are added up, follows from the weights' size and the device alone. The
//! kernels differ in the N of their `wgmma` and otherwise add up alike; that N makes no difference to
//! a sum is no promise of the PTX ISA, so `tests/gpu` and `zipserv-bench gemm --invariant` compare bits.

use std::fmt;

use zipserv_gpu::launch::{PREFILLS, Prefill};

use super::wgmma::{self, WgmmaPlan, run_wgmma};
use crate::gpu::{
    driver::RawStream,
    error::{GpuError, Operand},
    matrix::DeviceMatrix,
    operands::RawOperands,
    workspace::Workspace,
};

/// A launch for each group of tokens, of any number of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InvariantPlan {
    m: usize,
    k: usize,
    /// The launch of every group, but for the kernel.
    pub launch: WgmmaPlan,
}

/// Tokens of a group at most.
const GROUP: usize = 256;

/// The kernel for a group of `n` tokens: of those whose tile takes them all, the one with the
/// smallest.
fn kernel(n: usize) -> (&'static str, Prefill) {
    let fits = |(_, shape): &&(_, Prefill)| n <= shape.tokens;
    let kernels = PREFILLS.iter().filter(fits);
    let smallest = kernels.min_by_key(|(_, shape)| shape.tokens);
    *smallest.expect("a kernel takes a whole group")
}

impl InvariantPlan {
    /// Decomposes the weights, once for all groups.
    ///
    /// # Errors
    /// [`GpuError::NoKernel`] when the device lacks one of the kernels, and what loading the first
    /// fails with.
    pub fn new(weights: &DeviceMatrix) -> Result<Self, GpuError> {
        let device = weights.device();
        if PREFILLS.iter().any(|(name, _)| !device.has(name)) {
            return Err(device.no_kernel("batch_invariant"));
        }
        let (m, k) = (weights.rows(), weights.cols());
        let launch = launch((m, k), 1, device.sms() as usize);
        Ok(Self { m, k, launch })
    }
}

/// The launch for weights of `m` x `k` and a group of `n` tokens: another kernel, but the same decomposition
/// whatever `n`, as a test says.
fn launch(size: (usize, usize), n: usize, sms: usize) -> WgmmaPlan {
    let launch = WgmmaPlan::new(kernel(n), size, n, sms);
    launch.expect("no more tiles than rows, which have 32 bits")
}

impl fmt::Display for InvariantPlan {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let launch = &self.launch;
        write!(f, "any tokens, in groups of up to {GROUP}: {launch}")
    }
}

/// [`Plan::run_raw`](super::Plan::run_raw) by groups of the tokens, one launch after another; neither
/// dimension of the weights is 0.
///
/// # Errors
/// [`GpuError::PlanMismatch`] when the plan does not fit, [`GpuError::Alignment`] when rows of
/// activations are not aligned; [`GpuError::Load`] and [`GpuError::Driver`].
///
/// # Safety
/// As [`Plan::run_raw`](super::Plan::run_raw).
pub unsafe fn run_invariant(
    stream: RawStream,
    plan: &InvariantPlan,
    pdl: bool,
    weights: &DeviceMatrix,
    operands: &RawOperands,
    workspace: &Workspace,
) -> Result<(), GpuError> {
    let &InvariantPlan { m, k, launch } = plan;
    let (rows, cols) = (weights.rows(), weights.cols());
    if (rows, cols) != (m, k) {
        let size = |rows, cols| format!("{rows} x {cols}");
        return Err(GpuError::mismatch(
            "weights of",
            size(m, k),
            size(rows, cols),
        ));
    }
    if !wgmma::can_read(operands.x, operands.x_stride) {
        return Err(GpuError::Alignment {
            operand: Operand::Activations,
            align: 16,
            address: operands.x,
            pitch: 2 * operands.x_stride,
        });
    }
    for first in (0..operands.n).step_by(GROUP) {
        let group = operands.slice(first, GROUP);
        let (kernel, shape) = kernel(group.n);
        let plan = WgmmaPlan {
            kernel,
            shape,
            ..launch
        };
        // SAFETY: the caller's promise, for a part of the tokens; launches follow one another.
        unsafe { run_wgmma(stream, &plan, pdl, weights, &group, false, workspace)? };
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use zipserv_gpu::{
        layout::TILE_COLS,
        sched::schedule::{OutputTiles, Schedule},
    };

    use super::*;

    #[test]
    fn the_smallest_tile_takes_a_group() {
        let tokens = [1, 16, 17, 64, 65, 128, 129, 145, 192, 193, GROUP];
        let tokens = tokens.map(|n| kernel(n).1.tokens);
        assert_eq!(tokens, [16, 16, 32, 64, 128, 128, 144, 176, 192, 224, 256]);
    }

    /// The parts into which clusters cut the sums of each row group along K, as its kernel finds them
    /// for a group of `n` tokens. The first clusters' are added, in this order, to the last one's.
    fn parts(launch: &WgmmaPlan, (m, k): (u32, u32), n: u32) -> Vec<Vec<(u32, u32)>> {
        let WgmmaPlan {
            shape, clusters, ..
        } = *launch;
        let decomposition = launch.decomposition(k as usize);
        let rows = (Prefill::ROWS * shape.cluster) as u32;
        let tiles = OutputTiles::new(m, n, rows, shape.tokens as u32);
        let k_tiles = k.div_ceil(TILE_COLS as u32);
        let mut parts = vec![Vec::new(); m.div_ceil(rows) as usize];
        for cluster in 0..clusters {
            let mut schedule = Schedule::new(tiles, k_tiles, decomposition, clusters, cluster);
            while let Some(work_tile) = schedule.next() {
                let place = tiles.place(work_tile.tile);
                assert_eq!(place.token_block, 0);
                parts[place.row_group as usize].push((work_tile.from, work_tile.to));
            }
        }
        parts
    }

    #[test]
    fn the_order_of_sums_depends_on_weights_and_device_alone() {
        let sizes = [
            (1, 1),
            (133, 264),
            (301, 1032),
            (4096, 4096),
            (5120, 13824),
            (28672, 4096),
            (57344, 8192),
            (8192, 28672),
        ];
        for (m, k) in sizes {
            for sms in [2, 78, 114, 132] {
                let of = |n: u32| {
                    let launch = launch((m as usize, k as usize), n as usize, sms);
                    let decomposition = (launch.clusters, launch.tiles, launch.shared_tiles);
                    (decomposition, parts(&launch, (m, k), n))
                };
                let one = of(1);
                for parts in &one.1 {
                    let ends = parts.iter().map(|part| part.1);
                    let starts = parts.iter().map(|part| part.0);
                    let all = ends.eq(starts.skip(1).chain([k.div_ceil(TILE_COLS as u32)]));
                    assert!(parts[0].0 == 0 && all, "{m} x {k}: {parts:?}");
                }
                for n in 2..=GROUP as u32 {
                    assert!(of(n) == one, "{m} x {k}, {n} tokens");
                }
            }
        }
    }
}
