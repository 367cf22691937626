//! How long prompts and steps take, for `zipserv run --bench`.

use std::time::Instant;

use serde::Serialize;

use crate::{
    Chunk, Error, Executor, Logits, Result, Sampling, SequenceId,
    gpu::{GpuExecutor, Stage},
};

/// What is to be measured.
#[derive(Clone, Debug)]
pub struct Points {
    /// Sequences at a time.
    pub batches: Vec<usize>,
    /// Tokens that sequences have before they go on.
    pub contexts: Vec<usize>,
    /// Steps of a run.
    pub steps: usize,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// Whether each stage of a step is timed by itself, too; on one device.
    pub stages: bool,
}

/// Times of a batch at a context.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// Sequences.
    pub batch: usize,
    /// Tokens of each before the first step.
    pub context: usize,
    /// Milliseconds of all prompts together, from tokens to the last ones' logits.
    pub prefill_ms: f64,
    /// Milliseconds of a step, the median of several runs of steps.
    pub step_ms: f64,
    /// Stages of a step by themselves, in their order.
    pub stages: Vec<StageTime>,
}

/// A stage of a step by itself, in all layers.
#[derive(Clone, Debug, Serialize)]
pub struct StageTime {
    /// Which.
    pub stage: Stage,
    /// Milliseconds a step. With others around, some of it is hidden.
    pub ms: f64,
    /// Terabytes a second of weights, keys and values, where it is known what is read.
    pub tb_per_s: Option<f64>,
}

/// Runs of steps of which the median counts.
const RUNS: usize = 5;

/// Measures, and leaves out what there is no room for.
///
/// # Errors
/// Those of the executor.
pub fn run(
    executor: &mut GpuExecutor,
    points: &Points,
    mut each: impl FnMut(&Row),
) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for &context in &points.contexts {
        for &batch in &points.batches {
            let room = context + (RUNS + 1) * points.steps.max(1) + 1;
            match executor.set_room(batch, room) {
                Err(Error::Memory { .. }) => continue,
                other => other?,
            }
            if executor.context() == room && executor.room() == batch {
                let row = point(executor, batch, context, points)?;
                each(&row);
                rows.push(row);
            }
        }
    }
    Ok(rows)
}

fn point(executor: &mut GpuExecutor, batch: usize, context: usize, points: &Points) -> Result<Row> {
    let vocabulary = executor.vocabulary() as u32;
    // Any tokens will do, but not the same everywhere.
    let token = |sequence: usize, at: usize| (97 * at + 31 * sequence) as u32 % vocabulary;
    let texts: Vec<Vec<u32>> = (0..batch)
        .map(|sequence| (0..context).map(|at| token(sequence, at)).collect())
        .collect();
    let prompts = |executor: &mut GpuExecutor| -> Result<(Vec<SequenceId>, f64)> {
        let sequences = (0..batch).map(|_| executor.start());
        let sequences = sequences.collect::<Result<Vec<_>>>()?;
        let chunks = sequences.iter().zip(&texts);
        let chunks: Vec<_> = chunks
            .map(|(&sequence, tokens)| Chunk { sequence, tokens })
            .collect();
        let start = Instant::now();
        executor.forward(&chunks, Logits::Last)?;
        Ok((sequences, 1e3 * start.elapsed().as_secs_f64()))
    };
    // Kernels are loaded and plans are made the first time.
    let (warm, _) = prompts(executor)?;
    warm.into_iter().for_each(|sequence| executor.end(sequence));
    let (sequences, prefill_ms) = prompts(executor)?;

    let steps = points.steps.max(1);
    let sampling = vec![points.sampling; batch];
    let mut next: Vec<u32> = (0..batch)
        .map(|sequence| token(sequence, context))
        .collect();
    let mut times = Vec::new();
    for _ in 0..=RUNS {
        let start = Instant::now();
        let chosen = executor.choose(&sequences, &next, &sampling, steps)?;
        times.push(1e3 * start.elapsed().as_secs_f64() / steps as f64);
        next = chosen.last().cloned().unwrap_or(next);
    }
    // The first records.
    let mut times = times.split_off(1);
    times.sort_by(f64::total_cmp);
    let stages = match points.stages {
        true => executor.time_stages(&sequences, &sampling)?,
        false => Vec::new(),
    };
    let stage = |(stage, seconds, bytes): (Stage, f64, Option<u64>)| StageTime {
        stage,
        ms: 1e3 * seconds,
        tb_per_s: bytes.map(|bytes| bytes as f64 / seconds / 1e12),
    };
    sequences
        .into_iter()
        .for_each(|sequence| executor.end(sequence));
    Ok(Row {
        batch,
        context,
        prefill_ms,
        step_ms: times[times.len() / 2],
        stages: stages.into_iter().map(stage).collect(),
    })
}
