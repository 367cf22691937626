//! Single layers, for a benchmark that counts iterations, as criterion's `iter_custom` does.

use std::time::Duration;

use super::{
    Layer, Recording, data,
    operands::{Copies, Operands},
    stage::Stage,
};
use crate::cuda::{CudaError, Gpu, zipgemm_plan};

/// GPU time of a number of launches.
pub type Iterate<'a> = dyn Fn(u64) -> Duration + 'a;

/// Gives `each` a name and a way to time it, for `n` tokens on one layer: cuBLAS's own choice,
/// and the plan's kernel with and without programmatic dependent launch.
///
/// # Errors
/// As [`run`](super::run()).
///
/// # Panics
/// When a replay fails.
pub fn iterate_gemm(
    gpu: &Gpu,
    layer: Layer,
    n: usize,
    mut each: impl FnMut(&str, &Iterate),
) -> Result<(), CudaError> {
    let stage = Stage::new(gpu)?;
    let operands = Operands::new("", layer, 1)?;
    let plan = zipgemm_plan(gpu, &operands.compressed[0], n)?;
    let x = data::activations(n, layer.cols, 2);
    let x = Copies::of(&x, operands.copies())?;
    let y = Copies::unwritten(n * layer.rows, operands.copies())?;
    let cublas = stage.cublas_gemm(&operands, None, n, &x, &y)?;
    each("cublas", &iterate(&stage, &cublas));
    let plain = stage.zipgemm(&operands, plan.with_dependent(false), n, &x, &y)?;
    each("zipgemm", &iterate(&stage, &plain));
    if plan.is_dependent() {
        let dependent = stage.zipgemm(&operands, plan, n, &x, &y)?;
        each("zipgemm, dependent", &iterate(&stage, &dependent));
    }
    Ok(())
}

/// Gives `each` a name, the bytes that one launch reads and writes, and a way to time it, for one
/// layer: a copy of the dense weights, and their decompression.
///
/// # Errors
/// As [`run`](super::run()).
///
/// # Panics
/// When a replay fails.
pub fn iterate_decompress(
    gpu: &Gpu,
    layer: Layer,
    mut each: impl FnMut(&str, usize, &Iterate),
) -> Result<(), CudaError> {
    let stage = Stage::new(gpu)?;
    let operands = Operands::new("", layer, 1)?;
    let outputs = Copies::unwritten(operands.bits.len(), operands.copies())?;
    let (dense, compressed) = (operands.info.bf16_bytes(), operands.info.compressed_bytes);
    let copy = stage.copy(&operands, &outputs)?;
    each("copy", 2 * dense, &iterate(&stage, &copy));
    let decompress = stage.decompress(&operands, &outputs)?;
    each(
        "decompress",
        compressed + dense,
        &iterate(&stage, &decompress),
    );
    Ok(())
}

/// Replays as often as it takes, and scales the time to the iterations asked for.
fn iterate<'a>(stage: &'a Stage, recording: &'a Recording) -> impl Fn(u64) -> Duration + 'a {
    move |iterations| {
        let replays = iterations.div_ceil(recording.launches() as u64).max(1);
        let replay = |_| stage.timer().replay(recording).expect("launches run");
        let us: f64 = (0..replays).map(replay).sum();
        Duration::from_secs_f64(us / replays as f64 * iterations as f64 / 1e6)
    }
}
