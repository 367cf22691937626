//! The search for launches that are faster than the dispatch's own choice.

use rand::Rng;
use zipserv::gpu::{
    Device, GpuError, Plan, PlanOptions,
    tuning::{Candidates, TunedRow},
};

use super::{
    Config, Layer, Recording,
    check::Sums,
    data,
    operands::{Copies, Operands},
    stage::Stage,
};

/// Numbers of tokens that are tuned where none are named: those of decoding.
pub const TUNED_TOKENS: [usize; 5] = [1, 8, 16, 32, 64];

/// Replays of each candidate that choose those to compare.
const TRIALS: usize = 3;
/// Candidates that are compared with the dispatch's choice.
const FINALISTS: usize = 3;
/// How many times as fast as that a launch must be: less is noise.
const GAIN: f64 = 1.01;

/// What the tuner tells while it goes on.
pub enum Tried<'a> {
    /// A candidate whose outputs are wrong; it is not taken.
    Wrong(&'a str),
    /// The fastest launch for one shape and number of tokens.
    Row(TunedRow),
}

/// Shapes and numbers of tokens of a configuration, each once: rows and columns with the tokens.
///
/// # Errors
/// [`GpuError::Config`] when it names a model that there is not, or an empty layer.
pub fn problems(config: &Config) -> Result<Vec<(usize, usize, Vec<usize>)>, GpuError> {
    let mut tokens = config.tokens.clone();
    tokens.sort_unstable();
    tokens.dedup();
    let mut problems: Vec<(usize, usize, Vec<usize>)> = Vec::new();
    for (_, Layer { rows, cols, .. }) in config.layers()? {
        if !problems.iter().any(|&(m, k, _)| (m, k) == (rows, cols)) {
            problems.push((rows, cols, tokens.clone()));
        }
    }
    Ok(problems)
}

/// Looks for the fastest launch for each of the [`problems`], with programmatic dependent launch where the
/// device can, and gives them to `found` one by one, which may keep them. Of the configuration, only seed
/// and replays count.
///
/// All candidates' outputs are checked. A few replays of each choose some, which are replayed in
/// turn with the dispatch's choice; then the fastest of them is once more, by itself, and taken if
/// it is 1 % faster.
///
/// # Errors
/// [`GpuError`] when cuBLAS, which gives the reference, cannot be loaded, a call fails, or the
/// outputs of the dispatch's choice are wrong; what `found` fails with.
pub fn tune<E: From<GpuError>>(
    gpu: &Device,
    config: &Config,
    problems: &[(usize, usize, Vec<usize>)],
    found: &mut dyn FnMut(Tried) -> Result<(), E>,
) -> Result<(), E> {
    let seed = config.seed.unwrap_or_else(|| rand::rng().random());
    let tuner = Tuner {
        stage: &Stage::new(gpu)?,
        candidates: Candidates::of(gpu),
        seed,
        replays: config.replays,
    };
    for (index, (rows, cols, tokens)) in problems.iter().enumerate() {
        if tokens.is_empty() {
            continue;
        }
        let layer = Layer {
            name: "-",
            rows: *rows,
            cols: *cols,
        };
        let operands = Operands::new(
            tuner.stage.stream(),
            "-",
            layer,
            seed.wrapping_add(index as u64),
        )?;
        for &n in tokens {
            let row = tuner.fastest(&operands, n, &mut |wrong| found(Tried::Wrong(wrong)))?;
            found(Tried::Row(row))?;
        }
    }
    Ok(())
}

struct Tuner<'a> {
    stage: &'a Stage,
    candidates: Candidates,
    seed: u64,
    replays: usize,
}

impl Tuner<'_> {
    fn fastest<E: From<GpuError>>(
        &self,
        operands: &Operands,
        n: usize,
        wrong: &mut dyn FnMut(&str) -> Result<(), E>,
    ) -> Result<TunedRow, E> {
        let (m, k) = (operands.info.rows, operands.info.cols);
        let copies = operands.rotation(n).copies;
        let bits = data::activations(n, k, self.seed ^ (n * m) as u64);
        let x = Copies::of(self.stage.stream(), &bits, copies)?;
        let y = Copies::unwritten(self.stage.stream(), n * m, copies)?;
        let reference = self.stage.reference(operands, &x, &bits, n)?;

        let mut right: Vec<(Plan, Recording)> = Vec::new();
        for plan in self.plans(operands, n)? {
            let recording = self.stage.zipgemm(operands, plan, n, &x, &y)?;
            y.unwrite()?;
            self.timer().replay(&recording)?;
            let check = reference.check(y.downloads(), Sums::Fp32)?;
            if check.correct {
                right.push((plan, recording));
            } else if right.is_empty() {
                let what = format!("wrong outputs: {m} x {k}, {n} tokens, {plan}");
                return Err(GpuError::Config(what).into());
            } else {
                wrong(&format!("{m} x {k}, N={n}, {}", plan.launch()))?;
            }
        }
        let (plans, recordings): (Vec<_>, Vec<_>) = right.into_iter().unzip();
        let times = self.timer().medians(&recordings, TRIALS)?;

        let mut tried = plans.into_iter().zip(recordings).zip(times);
        let ((default, recording), _) = tried.next().expect("the dispatch's choice is the first");
        let mut others: Vec<_> = tried.collect();
        others.sort_by(|a, b| a.1.total_cmp(&b.1));
        others.truncate(FINALISTS);
        let (mut plans, mut recordings) = (vec![default], vec![recording]);
        for ((plan, recording), _) in others {
            plans.push(plan);
            recordings.push(recording);
        }
        let times = self.timer().medians(&recordings, self.replays)?;
        let others = (1..plans.len()).min_by(|&a, &b| times[a].total_cmp(&times[b]));
        // Not by the times that chose it, which luck has made shorter.
        let (winner, times) = match others {
            Some(best) => {
                recordings.swap(1, best);
                recordings.truncate(2);
                let times = self.timer().medians(&recordings, self.replays)?;
                (plans[best], times)
            }
            None => (default, vec![times[0], times[0]]),
        };
        let [before_us, us] = times[..] else {
            unreachable!("two were timed")
        };
        let is_faster = before_us >= GAIN * us;
        let (launch, after_us) = match is_faster {
            true => (winner.launch(), us),
            false => (default.launch(), before_us),
        };
        Ok(TunedRow {
            rows: m,
            cols: k,
            n,
            launch,
            default: default.launch(),
            before_us,
            after_us,
        })
    }

    fn timer(&self) -> &super::Timer {
        self.stage.timer()
    }

    /// The dispatch's choice, then all candidates that differ.
    fn plans(&self, operands: &Operands, n: usize) -> Result<Vec<Plan>, GpuError> {
        let weights = &operands.compressed[0];
        let mut plans = vec![Plan::new(weights, n, &PlanOptions::default())?];
        for launch in self.candidates.launches(weights.rows(), weights.cols(), n) {
            let plan = Plan::tuned(weights, n, &launch)?;
            if plans.iter().all(|known| known.launch() != plan.launch()) {
                plans.push(plan);
            }
        }
        Ok(plans)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_shape_and_number_of_tokens_is_tuned_once() {
        let config = Config {
            layers: ["100x64", "64x100", "100x64"]
                .map(|shape| shape.parse().unwrap())
                .to_vec(),
            tokens: vec![8, 1, 8],
            ..Config::default()
        };
        let problems = problems(&config).unwrap();
        assert_eq!(problems, [(100, 64, vec![1, 8]), (64, 100, vec![1, 8])]);
        let all = super::problems(&Config::default()).unwrap();
        assert_eq!(all.len(), 17);
    }
}
