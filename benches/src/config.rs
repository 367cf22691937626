use std::{str::FromStr, time::Duration};

use zipserv::gpu::{GpuError, Tuning};

use super::{Layer, MODELS, layers};

/// Numbers of tokens that are measured where none are named: decoding one token of a few
/// sequences, to reading whole prompts.
pub const TOKENS: [usize; 12] = [1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192];

/// What a run of the harness measures.
#[derive(Clone, Debug)]
pub struct Config {
    /// Models by name, see [`MODELS`]; all of them when no layer is named either.
    pub models: Vec<String>,
    /// Other layers.
    pub layers: Vec<Shape>,
    /// Numbers of tokens; none to leave multiplication out.
    pub tokens: Vec<usize>,
    /// Kernels to try beside the plan's, by name.
    pub kernels: Vec<String>,
    /// Try all kernels of the device that suit the number of tokens, and other splits of their
    /// work.
    pub all_kernels: bool,
    /// Takes plans from this table where it has any; those of the dispatch are then measured too.
    pub tuning: Option<Tuning>,
    /// Numbers of thread blocks to try beside a kernel's own.
    pub blocks: Vec<u32>,
    /// Whether to measure decompression followed by cuBLAS also for so few tokens that memory sets
    /// the pace, see [`MEMORY_BOUND`](super::results::MEMORY_BOUND). For more it always is.
    pub decoupled: bool,
    /// Whether to measure ZipServ's kernels as published too, which takes room for the weights in
    /// their layout.
    pub published: bool,
    /// Whether to measure the batch-invariant plan too, and to compare the bits of each token's
    /// outputs over all numbers of tokens.
    pub invariant: bool,
    /// Whether to measure `decompress`.
    pub decompress: bool,
    /// Replays that a median is of.
    pub replays: usize,
    /// If set, each launch of a multiplication is replayed alone for so long, and the median is of
    /// the replays in the second half of that: the clock then follows the power of this launch, not
    /// of all that are compared. Of cuBLAS its own choice is replayed and the most promising of
    /// cuBLASLt's.
    pub sustained: Option<Duration>,
    /// Choices of cuBLASLt to try.
    pub algorithms: usize,
    /// What random data are made from; without it, each run makes its own.
    pub seed: Option<u64>,
    /// The commit that was built, for the report.
    pub commit: Option<String>,
}

/// Rows and columns of a layer, written as in `4096x14336`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Output features, M.
    pub rows: usize,
    /// Input features, K.
    pub cols: usize,
}

impl FromStr for Shape {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (rows, cols) = text.split_once('x').ok_or("not ROWSxCOLS")?;
        let number = |text: &str| match text.parse() {
            Ok(0) | Err(_) => Err("not a positive number"),
            Ok(number) => Ok(number),
        };
        Ok(Self {
            rows: number(rows)?,
            cols: number(cols)?,
        })
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            models: Vec::new(),
            layers: Vec::new(),
            tokens: TOKENS.to_vec(),
            kernels: Vec::new(),
            all_kernels: false,
            tuning: None,
            blocks: Vec::new(),
            decoupled: false,
            published: false,
            invariant: false,
            decompress: true,
            replays: 15,
            sustained: None,
            algorithms: 12,
            seed: None,
            commit: None,
        }
    }
}

impl Config {
    /// Less exact, and several times as fast: for work on the kernels.
    #[must_use]
    pub fn quick(self) -> Self {
        Self {
            replays: 5,
            algorithms: 4,
            ..self
        }
    }

    /// The layers asked for, with the name of their model.
    pub(super) fn layers(&self) -> Result<Vec<(&'static str, Layer)>, GpuError> {
        let known = |name: &&String| MODELS.iter().any(|model| model.name == name.as_str());
        if let Some(name) = self.models.iter().find(|name| !known(name)) {
            let names: Vec<_> = MODELS.iter().map(|model| model.name).collect();
            return Err(GpuError::Config(format!(
                "no model {name}; there are {}",
                names.join(", ")
            )));
        }
        if self.layers.iter().any(|shape| shape.rows * shape.cols == 0) {
            let wrong = "a layer has at least one row and one column";
            return Err(GpuError::Config(wrong.to_owned()));
        }
        let mut all = Vec::new();
        if !self.models.is_empty() || self.layers.is_empty() {
            all.extend(layers(&self.models));
        }
        all.extend(self.layers.iter().map(|&Shape { rows, cols }| {
            let name = "asked for";
            ("-", Layer { name, rows, cols })
        }));
        Ok(all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes() {
        let shape = Shape {
            rows: 4096,
            cols: 14336,
        };
        assert_eq!("4096x14336".parse(), Ok(shape));
        for wrong in ["4096", "x4096", "0x4096", "4096x-1", "4096xx"] {
            assert!(wrong.parse::<Shape>().is_err(), "{wrong}");
        }
    }
}
