//! Small matrices through the kernels, beside the original weights and sums in FP64.

use std::{error::Error, fmt, io};

use half::bf16;
use rand::{Rng, SeedableRng, rngs::SmallRng};
use rand_distr::StandardNormal;
use rayon::prelude::*;
use serde::Serialize;
use zipserv::{
    Matrix, encode,
    gpu::{Buffer, Device, Linear, Stream, Workspace},
};

/// Large enough that thread blocks share rows, ragged edges that no tensor copy reads, and many
/// outliers. All are so small that few kernels suit them: the driver may have to compile each.
const CASES: [(Kind, usize, usize); 4] = [
    (Kind::Gaussian, 512, 1024),
    (Kind::Gaussian, 97, 131),
    (Kind::Outliers, 200, 776),
    (Kind::AnyBits, 257, 1000),
];
const TOKENS: [usize; 6] = [1, 8, 16, 32, 64, 200];
/// What outputs hold before a kernel writes them: a NaN that no kernel leaves.
const UNWRITTEN: u16 = u16::MAX;

/// What a matrix is filled with.
#[derive(Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Kind {
    /// As trained layers have them.
    Gaussian,
    /// Exponents so far apart that any window misses most of them.
    Outliers,
    /// NaN and infinity too, so only decompressed.
    AnyBits,
}

/// One launch, and what is wrong with its outputs.
#[derive(Serialize)]
pub struct Check {
    kernel: &'static str,
    weights: Kind,
    rows: usize,
    cols: usize,
    tokens: Option<usize>,
    error: Option<String>,
}

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Runs all checks, and tells `each` of them.
pub fn run(device: &Device, mut each: impl FnMut(Check) -> io::Result<()>) -> Result<()> {
    // A fault leaves the device unusable: all that must work comes before the first launch.
    let mut lab = Lab::new(device)?;
    let cases = CASES.map(|(kind, rows, cols)| Case::new(device, kind, rows, cols));
    for case in cases.into_iter().collect::<Result<Vec<_>>>()? {
        each(case.check("decompress", None, lab.decompress(&case)))?;
        if case.kind == Kind::AnyBits {
            continue;
        }
        for n in TOKENS {
            each(case.check("zipgemm", Some(n), lab.multiply(&case, n)))?;
        }
    }
    Ok(())
}

/// A matrix on host and device.
struct Case {
    kind: Kind,
    bits: Vec<u16>,
    layer: Linear,
}

impl Case {
    fn new(device: &Device, kind: Kind, rows: usize, cols: usize) -> Result<Self> {
        let mut rng = SmallRng::seed_from_u64(1);
        let bits: Vec<u16> = (0..rows * cols).map(|_| kind.weight(&mut rng)).collect();
        let compressed = encode(&Matrix::from_bits(rows, cols, &bits)?)?;
        let layer = Linear::new(device, &compressed)?;
        Ok(Self { kind, bits, layer })
    }

    fn check(&self, kernel: &'static str, tokens: Option<usize>, result: Result<()>) -> Check {
        Check {
            kernel,
            weights: self.kind,
            rows: self.layer.weights().rows(),
            cols: self.layer.weights().cols(),
            tokens,
            error: result.err().map(|error| error.to_string()),
        }
    }
}

impl Kind {
    fn weight(self, rng: &mut SmallRng) -> u16 {
        match self {
            Self::Gaussian => gaussian(rng, 0.02),
            Self::Outliers => rng.random::<u16>() & 0x807F | (90 + 5 * rng.random_range(0..9)) << 7,
            Self::AnyBits => rng.random(),
        }
    }
}

fn gaussian(rng: &mut SmallRng, scale: f32) -> u16 {
    bf16::from_f32(scale * rng.sample::<f32, _>(StandardNormal)).to_bits()
}

/// Where kernels are launched.
struct Lab<'a> {
    device: &'a Device,
    workspace: Workspace,
    stream: Stream,
}

impl<'a> Lab<'a> {
    fn new(device: &'a Device) -> Result<Self> {
        Ok(Self {
            device,
            workspace: Workspace::new(device)?,
            stream: Stream::new(device)?,
        })
    }

    /// Fails unless every bit is restored that the codec on the CPU was given.
    fn decompress(&self, case: &Case) -> Result<()> {
        let mut output = self.upload(&vec![UNWRITTEN; case.bits.len()])?;
        let weights = case.layer.weights();
        weights.decompress(&self.stream, &mut output)?;
        let restored = output.to_vec(&self.stream)?;
        let right = restored.iter().zip(&case.bits);
        all_right(weights.cols(), right.map(|(a, &b)| a.to_bits() == b))
    }

    /// Fails unless every output is as close as FP32 sums and BF16 outputs let it be.
    fn multiply(&mut self, case: &Case, n: usize) -> Result<()> {
        let (m, k) = (case.layer.weights().rows(), case.layer.weights().cols());
        let mut rng = SmallRng::seed_from_u64(n as u64);
        let x: Vec<u16> = (0..n * k).map(|_| gaussian(&mut rng, 1.0)).collect();
        let input = self.upload(&x)?;
        let mut output = self.upload(&vec![UNWRITTEN; n * m])?;
        let (stream, workspace) = (&self.stream, &mut self.workspace);
        case.layer
            .forward(stream, &input, n, &mut output, workspace)?;
        let y = output.to_vec(&self.stream)?;
        let near = |(&y, (exact, magnitude)): (&bf16, (f64, f64))| {
            let deviation = (y.to_f64() - exact).abs();
            deviation <= exact.abs() / 200.0 + magnitude * 2e-6
        };
        all_right(m, y.iter().zip(product(&x, &case.bits, k)).map(near))
    }

    fn upload(&self, bits: &[u16]) -> Result<Buffer<bf16>> {
        let values: Vec<bf16> = bits.iter().map(|&bits| bf16::from_bits(bits)).collect();
        Ok(Buffer::from_slice(self.device, &values)?)
    }
}

/// Y = X W^T in FP64: each sum, and the sum of its terms' magnitudes.
fn product(x: &[u16], w: &[u16], k: usize) -> Vec<(f64, f64)> {
    let values =
        |bits: &[u16]| -> Vec<f64> { bits.iter().map(|&b| bf16::from_bits(b).to_f64()).collect() };
    let (x, w) = (values(x), values(w));
    let sum = |x: &[f64], w: &[f64]| {
        let terms = x.iter().zip(w).map(|(x, w)| x * w);
        terms.fold((0.0, 0.0), |(sum, all), term| {
            (sum + term, all + term.abs())
        })
    };
    x.par_chunks(k)
        .flat_map_iter(|x| w.chunks(k).map(move |w| sum(x, w)))
        .collect()
}

/// Fails with the place of the first value that is wrong, of rows of `cols`.
fn all_right(cols: usize, right: impl Iterator<Item = bool>) -> Result<()> {
    let wrong: Vec<usize> = right
        .enumerate()
        .filter_map(|(at, right)| (!right).then_some(at))
        .collect();
    match wrong.first() {
        None => Ok(()),
        Some(first) => {
            let (count, row, col) = (wrong.len(), first / cols, first % cols);
            Err(format!("wrong values: {count}, the first at [{row}, {col}]").into())
        }
    }
}

impl Check {
    /// Whether nothing is wrong.
    pub fn passed(&self) -> bool {
        self.error.is_none()
    }
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let verdict = if self.passed() { "pass" } else { "FAIL" };
        let Self {
            kernel,
            weights,
            rows,
            cols,
            ..
        } = self;
        write!(
            f,
            "{verdict}  {kernel:10}  {weights:8}  {rows:4} x {cols:<4}"
        )?;
        if let Some(n) = self.tokens {
            write!(f, "  N={n}")?;
        }
        match &self.error {
            Some(error) => write!(f, "  {error}"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.pad(match self {
            Self::Gaussian => "gaussian",
            Self::Outliers => "outliers",
            Self::AnyBits => "any bits",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_and_says_where_it_is_wrong() {
        let bits = |values: &[f32]| -> Vec<u16> {
            let bits = values.iter().map(|&value| bf16::from_f32(value).to_bits());
            bits.collect()
        };
        let (x, w) = (bits(&[1.0, 2.0]), bits(&[3.0, -4.0, 1.0, 0.5]));
        assert_eq!(product(&x, &w, 2), [(-5.0, 11.0), (2.0, 2.0)]);
        assert!(all_right(2, [true; 4].into_iter()).is_ok());
        let error = all_right(2, [true, true, true, false].into_iter()).unwrap_err();
        assert_eq!(error.to_string(), "wrong values: 1, the first at [1, 1]");
    }
}
