//! Kernels of two PTX files in one run: two runs differ by more than what work on kernels gains.

use std::fmt;

use rand::Rng;
use serde::{Deserialize, Serialize};
use zipserv::gpu::{Device, GpuError, Plan, PlanOptions, Tuning};

use super::{
    Config, Progress,
    check::Sums,
    data,
    operands::{Copies, Operands},
    platform,
    results::LayerInfo,
    stage::Stage,
};

/// What a run found that compares two builds of the kernels, A and B.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Comparison {
    /// The device.
    pub device: String,
    /// The driver's version, and the CUDA version that it knows.
    pub driver: String,
    /// CRC-32 of the PTX of both, but for comments.
    pub ptx_crc32: [u32; 2],
    /// When, UTC.
    pub date: String,
    /// The commit that was built, if the caller said.
    pub commit: Option<String>,
    /// What the random data were made from.
    pub seed: u64,
    /// Multiplications.
    pub comparisons: Vec<ComparisonRow>,
}

/// One layer times some tokens.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ComparisonRow {
    /// The layer.
    pub layer: LayerInfo,
    /// Tokens.
    pub n: usize,
    /// What both plans say of themselves.
    pub plans: [String; 2],
    /// Microseconds of both in each round.
    pub us: [Vec<f64>; 2],
    /// Whether every output of the timed launches is as close as BF16 lets it be.
    pub correct: [bool; 2],
}

/// The quartiles of something, the second of which is the median.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Quartiles(pub [f64; 3]);

impl Quartiles {
    /// Of at least one value.
    fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        Self([1, 2, 3].map(|quarter| values[(values.len() - 1) * quarter / 4]))
    }
}

impl ComparisonRow {
    /// How many times as fast B is as A, over the rounds.
    pub fn gain(&self) -> Quartiles {
        let [a, b] = &self.us;
        Quartiles::of(a.iter().zip(b).map(|(a, b)| a / b).collect())
    }
}

impl fmt::Display for ComparisonRow {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Quartiles([low, median, high]) = self.gain();
        let [a, b] = self.us.each_ref().map(|us| Quartiles::of(us.clone()).0[1]);
        write!(
            f,
            "{}  N={:<4}  A {a:8.2} us  B {b:8.2} us  B is {median:.4}x as fast ({low:.4} to {high:.4})",
            self.layer, self.n
        )?;
        for (name, correct) in ["A", "B"].into_iter().zip(self.correct) {
            if !correct {
                write!(f, "  {name} is WRONG")?;
            }
        }
        Ok(())
    }
}

/// Measures the plans of both `devices`, which are one device opened with two PTX files, in turn: each
/// round replays both, in an order of its own. Of the configuration, layers, tokens, replays, seed and
/// commit count.
///
/// # Errors
/// As [`run`](super::run()).
pub fn compare(
    devices: [&Device; 2],
    config: &Config,
    progress: &mut dyn FnMut(Progress),
) -> Result<Comparison, GpuError> {
    let layers = config.layers()?;
    let seed = config.seed.unwrap_or_else(|| rand::rng().random());
    let stages = [Stage::new(devices[0])?, Stage::new(devices[1])?];
    let mut comparison = Comparison {
        device: devices[0].name().to_owned(),
        driver: platform::driver()?,
        ptx_crc32: [
            Tuning::key(devices[0])?.ptx_crc32,
            Tuning::key(devices[1])?.ptx_crc32,
        ],
        date: platform::date(),
        commit: config.commit.clone(),
        seed,
        comparisons: Vec::new(),
    };
    progress(Progress::Layers(layers.len() * config.tokens.len()));
    for (index, (model, layer)) in layers.into_iter().enumerate() {
        let seed = seed.wrapping_add(index as u64);
        let operands = |stage: &Stage| Operands::new(stage.stream(), model, layer, seed);
        let operands = [operands(&stages[0])?, operands(&stages[1])?];
        for &n in &config.tokens {
            let row = row(&stages, &operands, n, config.replays, seed)?;
            progress(Progress::Row(&row));
            comparison.comparisons.push(row);
        }
    }
    Ok(comparison)
}

fn row(
    stages: &[Stage; 2],
    operands: &[Operands; 2],
    n: usize,
    replays: usize,
    seed: u64,
) -> Result<ComparisonRow, GpuError> {
    let info = &operands[0].info;
    let bits = data::activations(n, info.cols, seed ^ info.rows as u64);
    // Everything of one side, for its device takes no other's.
    let side = |at: usize| {
        let (stream, copies) = (stages[at].stream(), operands[at].rotation(n).copies);
        let plan = Plan::new(&operands[at].compressed[0], n, &PlanOptions::default())?;
        let x = Copies::of(stream, &bits, copies)?;
        let y = Copies::unwritten(stream, n * info.rows, copies)?;
        Ok::<_, GpuError>((plan, x, y))
    };
    let sides = [side(0)?, side(1)?];
    let reference = stages[0].reference(&operands[0], &sides[0].1, &bits, n)?;
    let record = |at: usize| {
        let (plan, x, y) = &sides[at];
        stages[at].zipgemm(&operands[at], *plan, n, x, y)
    };
    let recordings = [record(0)?, record(1)?];
    // Both have the device's one context, and a recording is timed on the stream it was made on.
    let rounds = stages[0].timer().rounds(&recordings, replays)?;
    let [a, b] = rounds.try_into().expect("two were timed");
    let check = |at: usize| {
        let outputs = sides[at].2.downloads();
        Ok::<_, GpuError>(reference.check(outputs, Sums::Fp32)?.correct)
    };
    Ok(ComparisonRow {
        layer: info.clone(),
        n,
        plans: [sides[0].0.to_string(), sides[1].0.to_string()],
        us: [a, b],
        correct: [check(0)?, check(1)?],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_spread_is_that_of_rounds() {
        let row = |us| ComparisonRow {
            layer: LayerInfo {
                model: "a model".to_owned(),
                name: "a layer".to_owned(),
                rows: 1,
                cols: 1,
                compressed_bytes: 1,
            },
            n: 8,
            plans: ["a", "b"].map(str::to_owned),
            us,
            correct: [true, false],
        };
        // A slow round is slow for both.
        let a = vec![2.0, 4.0, 20.0, 2.2, 2.4];
        let b = vec![1.0, 4.0, 10.0, 2.0, 2.0];
        let row = row([a, b]);
        let Quartiles(quartiles) = row.gain();
        for (is, expected) in quartiles.into_iter().zip([1.1, 1.2, 2.0]) {
            assert!((is - expected).abs() < 1e-12, "{quartiles:?}");
        }
        let text = row.to_string();
        assert!(
            text.contains("B is 1.2000x as fast (1.1000 to 2.0000)"),
            "{text}"
        );
        assert!(text.ends_with("B is WRONG"), "{text}");
    }
}
