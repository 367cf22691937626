//! How the time grows from one number of tokens to the next: a token more should never cost much.

use std::collections::BTreeSet;

use rand::Rng;
use zipserv::gpu::{Device, GpuError, Plan, PlanOptions, Tuning};

use super::{
    Config, Layer, MODELS, Progress, data,
    operands::{Copies, Operands},
    platform,
    results::{Point, StepRow, Steps},
    stage::Stage,
};

/// Tokens at most.
const MOST: usize = 1024;
/// Replays that a median is of, where nobody says otherwise: a step is large or not.
const REPLAYS: usize = 3;

/// A small, a wide and a deep layer, for runs that name none.
const LAYERS: [&str; 3] = ["o", "gate+up", "down"];

/// Times the plan's kernel on 1 to 1,024 tokens of each layer of `config`, or of three layers if it
/// names none: every number up to 72, those on both sides of where the plan changes, and others at
/// distances that grow. Of the configuration, only layers, seed and commit count. Outputs are not
/// looked at; that is for [`run`](super::run()) and the tests.
///
/// # Errors
/// As [`run`](super::run()), but for cuBLAS, which is not needed.
pub fn steps(
    gpu: &Device,
    config: &Config,
    progress: &mut dyn FnMut(Progress),
) -> Result<Steps, GpuError> {
    let named = !config.models.is_empty() || !config.layers.is_empty();
    let layers: Vec<(&str, Layer)> = match named {
        true => config.layers()?,
        false => MODELS[0]
            .layers
            .iter()
            .filter(|layer| LAYERS.contains(&layer.name))
            .map(|&layer| (MODELS[0].name, layer))
            .collect(),
    };
    let seed = config.seed.unwrap_or_else(|| rand::rng().random());
    let stage = Stage::new(gpu)?;
    let mut steps = Steps {
        device: gpu.name().to_owned(),
        driver: platform::driver()?,
        kernels: gpu.family().to_string(),
        ptx_crc32: Some(Tuning::key(gpu)?.ptx_crc32),
        date: platform::date(),
        commit: config.commit.clone(),
        seed,
        replays: REPLAYS,
        layers: Vec::new(),
    };
    progress(Progress::Layers(layers.len()));
    for (index, (model, layer)) in layers.into_iter().enumerate() {
        let operands = Operands::new(
            stage.stream(),
            model,
            layer,
            seed.wrapping_add(index as u64),
        )?;
        let points = points(&stage, &operands, seed)?;
        let layer = operands.info;
        let row = StepRow { layer, points };
        progress(Progress::Row(&row));
        steps.layers.push(row);
    }
    Ok(steps)
}

/// Times one layer, on the same operands for all numbers of tokens.
fn points(stage: &Stage, operands: &Operands, seed: u64) -> Result<Vec<Point>, GpuError> {
    let (m, k) = (operands.info.rows, operands.info.cols);
    let weights = &operands.compressed[0];
    let plans = (1..=MOST)
        .map(|n| Plan::new(weights, n, &PlanOptions::default()))
        .collect::<Result<Vec<_>, _>>()?;
    // The most copies that any number of tokens wants.
    let copies = operands.rotation(0).copies;
    let x = Copies::of(stage.stream(), &data::activations(MOST, k, seed), copies)?;
    let y = Copies::unwritten(stage.stream(), MOST * m, copies)?;
    let time = |n: usize| {
        let plan = plans[n - 1];
        let recording = stage.zipgemm(operands, plan, n, &x, &y)?;
        Ok(Point {
            n,
            kernel: plan.kernel().to_owned(),
            us: stage.timer().medians(&[recording], REPLAYS)?[0],
        })
    };
    let changes = |n: usize| plans[n - 1] != plans[n];
    tokens(changes).into_iter().map(time).collect()
}

/// Numbers of tokens to time; `changes` says whether one more than `n` has another plan.
fn tokens(changes: impl Fn(usize) -> bool) -> BTreeSet<usize> {
    let mut tokens: BTreeSet<usize> = (1..=72).collect();
    tokens.extend((72..=256).step_by(8));
    tokens.extend((256..=512).step_by(16));
    tokens.extend((512..=MOST).step_by(32));
    let both_sides = |n| [n, n + 1];
    tokens.extend((1..MOST).filter(|&n| changes(n)).flat_map(both_sides));
    tokens
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_change_has_a_point_on_both_sides() {
        let tokens = tokens(|n| n.is_multiple_of(192));
        assert!((1..=72).all(|n| tokens.contains(&n)));
        for n in (192..MOST).step_by(192) {
            assert!(tokens.contains(&n) && tokens.contains(&(n + 1)), "{n}");
        }
        assert_eq!(tokens.last(), Some(&MOST));
        assert!((100..200).contains(&tokens.len()), "{}", tokens.len());
        let longest = tokens.iter().zip(tokens.iter().skip(1)).map(|(a, b)| b - a);
        assert_eq!(longest.max(), Some(32));
    }

    #[test]
    fn the_layers_for_runs_that_name_none_are_there() {
        let names = MODELS[0].layers.iter().map(|layer| layer.name);
        assert_eq!(names.filter(|name| LAYERS.contains(name)).count(), 3);
    }
}
