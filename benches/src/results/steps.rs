use std::fmt;

use serde::{Deserialize, Serialize};

use super::LayerInfo;

/// What a run of the harness found that looks for jumps from one number of tokens to the next.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Steps {
    /// The device.
    pub device: String,
    /// The driver's version, and the CUDA version that it knows.
    pub driver: String,
    /// Which build of the kernels ran.
    pub kernels: String,
    /// CRC-32 of their PTX, but for its comments; none in a file made before it was told.
    pub ptx_crc32: Option<u32>,
    /// When, UTC.
    pub date: String,
    /// The commit that was built, if the caller said.
    pub commit: Option<String>,
    /// What the random data were made from.
    pub seed: u64,
    /// Replays that a median is of.
    pub replays: usize,
    /// The layers.
    pub layers: Vec<StepRow>,
}

/// One layer times growing numbers of tokens.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StepRow {
    /// The layer.
    pub layer: LayerInfo,
    /// In the order of tokens.
    pub points: Vec<Point>,
}

/// The plan's kernel on so many tokens.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Point {
    /// Tokens.
    pub n: usize,
    /// The kernel's name.
    pub kernel: String,
    /// Microseconds.
    pub us: f64,
}

/// From one point to the next.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Step {
    /// Tokens of the one.
    pub from: usize,
    /// Tokens of the next.
    pub to: usize,
    /// How many times as long that takes.
    pub ratio: f64,
}

impl StepRow {
    /// The largest jump, where there is more than one point.
    pub fn worst(&self) -> Option<Step> {
        let steps = self.points.windows(2).map(|pair| Step {
            from: pair[0].n,
            to: pair[1].n,
            ratio: pair[1].us / pair[0].us,
        });
        steps.max_by(|a, b| a.ratio.total_cmp(&b.ratio))
    }
}

impl fmt::Display for StepRow {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}  {} points", self.layer, self.points.len())?;
        let Some(Step { from, to, ratio }) = self.worst() else {
            return Ok(());
        };
        write!(f, ", largest step {ratio:.3}x, from {from} to {to} tokens")?;
        let at = |n| self.points.iter().find(|point| point.n == n);
        if let (Some(from), Some(to)) = (at(from), at(to)) {
            let (Point { kernel: a, .. }, Point { kernel: b, .. }) = (from, to);
            write!(f, " ({a} {:.1} us, {b} {:.1} us)", from.us, to.us)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_step_is_found() {
        let layer = LayerInfo {
            model: "a model".to_owned(),
            name: "a layer".to_owned(),
            rows: 1,
            cols: 1,
            compressed_bytes: 1,
        };
        let point = |(n, us)| Point {
            n,
            kernel: format!("k{n}"),
            us,
        };
        let row = |points: &[(usize, f64)]| {
            let layer = layer.clone();
            let points = points.iter().copied().map(point).collect();
            StepRow { layer, points }
        };
        // Faster, then 1.5 times as long, then a longer step by less.
        let steps = row(&[(1, 4.0), (2, 2.0), (3, 3.0), (8, 4.0)]);
        let worst = Step {
            from: 2,
            to: 3,
            ratio: 1.5,
        };
        assert_eq!(steps.worst(), Some(worst));
        let text = steps.to_string();
        assert!(
            text.ends_with("1.500x, from 2 to 3 tokens (k2 2.0 us, k3 3.0 us)"),
            "{text}"
        );
        assert_eq!(row(&[(1, 4.0)]).worst(), None);
        assert_eq!(row(&[]).worst(), None);
    }
}
