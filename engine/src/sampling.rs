//! From logits to a token, as [`zipserv_engine_kernels::sampling`] says what comes: an executor that samples by itself
//! chooses the same token.

use std::path::Path;

use rand_chacha::{
    ChaCha12Rng,
    rand_core::{RngCore, SeedableRng},
};
use serde::Deserialize;
use zipserv_engine_kernels::sampling::{Settings, drawn, enough, fraction, scale, weight};

use crate::{Error, Result, files};

/// How tokens are chosen: temperature, then top-k, then top-p, as in transformers and vLLM.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// Logits are divided by it. 0 takes the most probable token, of equals that of the lowest number.
    pub temperature: f64,
    /// Only the so many most probable tokens, and what is as probable as the last of them.
    pub top_k: Option<usize>,
    /// Only the most probable tokens that together reach this probability, and what is as probable as the last of them;
    /// above 0, at most 1.
    pub top_p: f64,
    /// The same seed gives the same tokens.
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_k: None,
            top_p: 1.0,
            seed: 0,
        }
    }
}

/// What `generation_config.json` says of sampling. Defaults are those of transformers.
#[derive(Deserialize)]
struct Generation {
    #[serde(default)]
    do_sample: bool,
    temperature: Option<f64>,
    top_k: Option<usize>,
    top_p: Option<f64>,
}

impl Sampling {
    /// What `generation_config.json` of a folder recommends. Without a recommendation the most probable token is taken.
    ///
    /// # Errors
    /// If the file cannot be understood, or recommends what means nothing.
    pub fn open(folder: impl AsRef<Path>) -> Result<Self> {
        let path = folder.as_ref().join("generation_config.json");
        if !path.exists() {
            return Ok(Self::default());
        }
        let generation: Generation = files::parse(&path, &files::read(&path)?)?;
        if !generation.do_sample {
            return Ok(Self::default());
        }
        let sampling = Self {
            temperature: generation.temperature.unwrap_or(1.0),
            // 0 is none there.
            top_k: Some(generation.top_k.unwrap_or(50)).filter(|&k| k > 0),
            top_p: generation.top_p.unwrap_or(1.0),
            seed: 0,
        };
        sampling
            .check()
            .map_err(|error| files::wrong(&path, error))?;
        Ok(sampling)
    }

    /// Refuses settings that mean nothing.
    ///
    /// # Errors
    /// [`Error::Request`] names the setting.
    pub fn check(&self) -> Result<()> {
        let Self {
            temperature,
            top_k,
            top_p,
            ..
        } = self;
        if !(temperature.is_finite() && *temperature >= 0.0) {
            return Err(Error::Request(format!(
                "a temperature of {temperature} is none: 0 or more"
            )));
        }
        if *top_k == Some(0) {
            return Err(Error::Request("top-k of 0 leaves no token".into()));
        }
        if !(*top_p > 0.0 && *top_p <= 1.0) {
            return Err(Error::Request(format!(
                "top-p of {top_p} is no probability above 0"
            )));
        }
        Ok(())
    }

    /// What kernels take, for logits of a vocabulary. The settings are those that [`check`](Self::check) lets pass.
    pub fn settings(&self, vocabulary: usize) -> Settings {
        let top_k = self.top_k.filter(|&k| k < vocabulary);
        Settings {
            scale: match self.temperature {
                0.0 => 0.0,
                temperature => scale(temperature),
            },
            top_k: top_k.map_or(0, |k| u32::try_from(k).unwrap_or(0)),
            top_p: match self.top_p < 1.0 {
                true => fraction(self.top_p),
                false => 0,
            },
        }
    }

    /// The random number of the token at `position`: 64 bits behind the point.
    pub fn random(&self, position: usize) -> u64 {
        let mut generator = ChaCha12Rng::seed_from_u64(self.seed);
        // Words have 32 bits.
        generator.set_word_pos(2 * position as u128);
        generator.next_u64()
    }

    /// Chooses the token at `position` of a sequence. The same logits give the same token, whatever was sampled before
    /// or beside it: the random number is that of seed and position.
    ///
    /// # Errors
    /// If logits are NaN or infinite, or the settings mean nothing.
    pub fn sample(&self, logits: &[f32], position: usize) -> Result<u32> {
        self.check()?;
        let (best, largest) = greatest(logits)?;
        let settings = self.settings(logits.len());
        if settings.is_greedy() {
            return Ok(best);
        }
        let mut least = f32::NEG_INFINITY;
        if settings.top_k > 0 {
            let (mut logits, last) = (logits.to_vec(), settings.top_k as usize - 1);
            least = *logits.select_nth_unstable_by(last, |a, b| b.total_cmp(a)).1;
        }
        let weight = |logit| weight(logit, largest, settings.scale);
        let kept = |least: f32| {
            let tokens = (0..).zip(logits.iter().copied());
            tokens.filter(move |&(_, logit)| logit >= least)
        };
        let sum = |least| kept(least).map(|(_, logit)| weight(logit)).sum();
        if settings.top_p > 0 {
            let enough = enough(settings.top_p, sum(least));
            let mut sorted: Vec<_> = kept(least).map(|(_, logit)| logit).collect();
            sorted.sort_unstable_by(|a, b| b.total_cmp(a));
            let mut reached = 0;
            let last = sorted.into_iter().find(|&logit| {
                reached += weight(logit);
                reached >= enough
            });
            least = last.unwrap_or(least);
        }
        let goal = drawn(self.random(position), sum(least));
        let mut reached = 0;
        let mut tokens = kept(least);
        let token = tokens.find(|&(_, logit)| {
            reached += weight(logit);
            reached >= goal
        });
        Ok(token.map_or(best, |(token, _)| token))
    }
}

/// The first of the greatest logits.
fn greatest(logits: &[f32]) -> Result<(u32, f32)> {
    let mut best = (0, f32::NEG_INFINITY);
    for (id, &logit) in (0..).zip(logits) {
        if logit.is_nan() {
            return Err(Error::Request(format!("the logit of token {id} is NaN")));
        }
        if logit > best.1 {
            best = (id, logit);
        }
    }
    match best.1.is_finite() {
        true => Ok(best),
        false => Err(Error::Request(format!("the greatest logit is {}", best.1))),
    }
}

/// The `count` most probable tokens, the first of equals first.
pub(crate) fn most_probable(logits: &[f32], count: usize) -> Vec<u32> {
    let mut ids: Vec<u32> = (0..).take(logits.len()).collect();
    let order = |&a: &u32, &b: &u32| {
        let [x, y] = [a, b].map(|id| logits[id as usize]);
        y.total_cmp(&x).then(a.cmp(&b))
    };
    let count = count.min(ids.len());
    if count < ids.len() {
        ids.select_nth_unstable_by(count, order);
        ids.truncate(count);
    }
    ids.sort_by(order);
    ids
}
