//! Outputs that are borrowed to be read.
#![forbid(unsafe_code)]

use half::bf16;
use zipserv::gpu::{Buffer, DeviceMatrix, GpuError, Operands, Plan, Stream, Workspace};

fn shared(
    plan: &Plan,
    stream: &Stream,
    weights: &DeviceMatrix,
    x: &Buffer<bf16>,
    workspace: &mut Workspace,
) -> Result<(), GpuError> {
    let y = x.slice_mut(..);
    plan.run(stream, weights, Operands::new(x, y), workspace)
}

fn main() {}
