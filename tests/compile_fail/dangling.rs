//! Outputs whose memory is gone, and perhaps somebody else's.
#![forbid(unsafe_code)]

use half::bf16;
use zipserv::gpu::{Buffer, Device, DeviceMatrix, GpuError, Operands, Plan, Stream, Workspace};

fn dangling(
    device: &Device,
    plan: &Plan,
    stream: &Stream,
    weights: &DeviceMatrix,
    x: &Buffer<bf16>,
    workspace: &mut Workspace,
) -> Result<Buffer<u32>, GpuError> {
    let mut y = Buffer::<bf16>::zeroed(device, weights.rows())?;
    let alias = y.slice_mut(..);
    drop(y);
    let other = Buffer::zeroed(device, weights.rows() / 2)?;
    plan.run(stream, weights, Operands::new(x, alias), workspace)?;
    Ok(other)
}

fn main() {}
