use std::{path::Path, process::ExitCode};

use zipserv_engine::{
    bench::{Points, Row, run},
    gpu::{GpuExecutor, GpuOptions},
};

use crate::{Format, Outcome, console};

/// Steps of a run of which the median counts.
const STEPS: usize = 64;
/// Sequences at a time.
const BATCHES: [usize; 3] = [1, 8, 32];
/// Tokens that sequences have before they go on.
const CONTEXTS: [usize; 3] = [512, 4096, 32768];

/// Measures batches of 1, 8 and 32 sequences that have 512, 4,096 and 32,768 tokens, of both no more than is said, as far
/// as there is room.
pub fn bench(
    model: &Path,
    options: &GpuOptions,
    (sequences, context): (usize, Option<usize>),
    format: &Format,
) -> Outcome {
    let mut executor = GpuExecutor::open(model, options)?;
    let upto = |all: [usize; 3], most: usize| all.into_iter().filter(|&n| n <= most).collect();
    let points = Points {
        batches: upto(BATCHES, sequences),
        contexts: upto(CONTEXTS, context.unwrap_or(usize::MAX)),
        steps: STEPS,
        stages: options.devices.len() == 1,
    };
    let rows = run(&mut executor, &points, show)?;
    if rows.is_empty() {
        return Err(
            "there is no room for any of the batches and contexts that are measured".into(),
        );
    }
    if format.json {
        console::print_json(&rows)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn show(row: &Row) {
    let Row {
        batch,
        context,
        prefill_ms,
        step_ms,
        stages,
    } = row;
    let speed = 1e3 * *batch as f64 / step_ms;
    console::note(format_args!(
        "batch {batch}, {context} tokens: prompts {prefill_ms:.1} ms, a step {step_ms:.3} ms, {speed:.0} tokens a second"
    ));
    for time in stages {
        let name = format!("{:?}", time.stage);
        let speed = time
            .tb_per_s
            .map_or(String::new(), |speed| format!("{speed:6.2} TB/s"));
        console::note(format_args!("  {name:12} {:8.3} ms {speed}", time.ms));
    }
}
