//! Activations and outputs in the same memory.
#![forbid(unsafe_code)]

use half::bf16;
use zipserv::gpu::{Buffer, DeviceMatrix, GpuError, Operands, Plan, Stream, Workspace};

fn overlap(
    plan: &Plan,
    stream: &Stream,
    weights: &DeviceMatrix,
    x: &mut Buffer<bf16>,
    workspace: &mut Workspace,
) -> Result<(), GpuError> {
    let operands = Operands::new(x.slice(..8), x.slice_mut(4..));
    plan.run(stream, weights, operands, workspace)
}

fn main() {}
