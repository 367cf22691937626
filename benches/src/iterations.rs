//! Single layers, for a benchmark that counts iterations, as criterion's `iter_custom` does.

use std::time::Duration;

use zipserv::gpu::{Device, GpuError, Plan, PlanOptions};

use super::{
    Layer, Recording, data,
    operands::{Copies, Layout, Operands},
    stage::Stage,
};

/// GPU time of a number of launches.
pub type Iterate<'a> = dyn Fn(u64) -> Duration + 'a;

/// Gives `each` a name, a number of tokens, and a way to time it, for all of `tokens` on one layer:
/// cuBLAS's own choice, the same on weights that are decompressed for it each time, and the plan's
/// kernel with and without programmatic dependent launch.
///
/// # Errors
/// As [`run`](super::run()).
///
/// # Panics
/// When a replay fails.
pub fn iterate_gemm(
    gpu: &Device,
    layer: Layer,
    tokens: &[usize],
    mut each: impl FnMut(&str, usize, &Iterate),
) -> Result<(), GpuError> {
    let stage = Stage::new(gpu)?;
    let stream = stage.stream();
    let operands = Operands::new(stream, "", layer, 1)?;
    let dense = Copies::unwritten(stream, operands.bits.len(), 1)?;
    for &n in tokens {
        let plan = Plan::new(&operands.compressed[0], n, &PlanOptions::default())?;
        let copies = operands.rotation(n).copies;
        let x = Copies::of(stream, &data::activations(n, layer.cols, 2), copies)?;
        let y = Copies::unwritten(stream, n * layer.rows, copies)?;
        let cublas = stage.cublas_gemm(&operands, None, n, &x, &y)?;
        each("cublas", n, &iterate(&stage, &cublas));
        let decoupled = stage.decoupled(&operands, (Layout::Ours, &dense), None, n, &x, &y)?;
        each("decompress, cublas", n, &iterate(&stage, &decoupled));
        let plain = stage.zipgemm(&operands, plan.with_pdl(false), n, &x, &y)?;
        each("zipgemm", n, &iterate(&stage, &plain));
        if plan.is_pdl() {
            let pdl = stage.zipgemm(&operands, plan, n, &x, &y)?;
            each("zipgemm, pdl", n, &iterate(&stage, &pdl));
        }
    }
    Ok(())
}

/// Gives `each` a name, the bytes that one launch reads and writes, and a way to time it, for the
/// decompression of one layer.
///
/// # Errors
/// As [`run`](super::run()).
///
/// # Panics
/// When a replay fails.
pub fn iterate_decompress(
    gpu: &Device,
    layer: Layer,
    mut each: impl FnMut(&str, usize, &Iterate),
) -> Result<(), GpuError> {
    let stage = Stage::new(gpu)?;
    let stream = stage.stream();
    let operands = Operands::new(stream, "", layer, 1)?;
    let outputs = Copies::unwritten(stream, operands.bits.len(), operands.rotation(0).copies)?;
    let (dense, compressed) = (operands.info.bf16_bytes(), operands.info.compressed_bytes);
    let decompress = stage.decompress(&operands, Layout::Ours, &outputs)?;
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
