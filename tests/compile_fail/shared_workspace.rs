//! A workspace that others may use meanwhile.
#![forbid(unsafe_code)]

use half::bf16;
use zipserv::gpu::{Buffer, DeviceMatrix, GpuError, Operands, Plan, Stream, Workspace};

fn shared(
    plan: &Plan,
    stream: &Stream,
    weights: &DeviceMatrix,
    x: &Buffer<bf16>,
    y: &mut Buffer<bf16>,
    workspace: &Workspace,
) -> Result<(), GpuError> {
    plan.run(stream, weights, Operands::new(x, y), workspace)
}

fn main() {}
