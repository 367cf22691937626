//! A recording that goes on without a promise that its operands stay.
#![forbid(unsafe_code)]

use half::bf16;
use zipserv::gpu::{Buffer, DeviceMatrix, GpuError, Operands, Plan, Stream, Workspace};
use zipserv_bench::{Recording, Timer};

fn owned(
    timer: &Timer,
    plan: Plan,
    stream: Stream,
    weights: DeviceMatrix,
    x: Buffer<bf16>,
    mut y: Buffer<bf16>,
    mut workspace: Workspace,
) -> Result<Recording<'static>, GpuError> {
    timer.record(1, move || {
        plan.run(&stream, &weights, Operands::new(&x, &mut y), &mut workspace)
    })
}

fn main() {}
