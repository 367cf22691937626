//! What a recording borrows cannot go before it.

use half::bf16;
use zipserv::gpu::{Buffer, DeviceMatrix, GpuError, Operands, Plan, Stream, Workspace};
use zipserv_bench::Timer;

fn borrowed(
    timer: &Timer,
    plan: &Plan,
    stream: &Stream,
    weights: &DeviceMatrix,
    x: Buffer<bf16>,
    y: &mut Buffer<bf16>,
    workspace: &mut Workspace,
) -> Result<(), GpuError> {
    let launch = || plan.run(stream, weights, Operands::new(&x, y), workspace);
    // SAFETY: all is there until the last replay, or so it says.
    let recording = unsafe { timer.record(1, launch)? };
    drop(x);
    timer.replay(&recording)?;
    Ok(())
}

fn main() {}
