//! The JSON that all subcommands share.

use std::{path::Path, time::Duration};

use serde::Serialize;
use zipserv::checkpoint::{Report, Storage};

use super::{
    console::{bytes_per_second, reason},
    groups::{Entry, entries},
};

/// A report.
#[derive(Serialize)]
pub struct ReportJson<'a> {
    tensors: Vec<TensorJson<'a>>,
    total: Total,
    other_files: usize,
    warnings: &'a [String],
}

#[derive(Serialize)]
struct TensorJson<'a> {
    file: &'a Path,
    name: &'a str,
    dtype: &'a str,
    shape: &'a [u64],
    original_bytes: u64,
    stored_bytes: u64,
    bits_per_weight: Option<f64>,
    /// Null when its exponents were not counted.
    entropy_bits_per_weight: Option<f64>,
    compressed: bool,
    storage: &'static str,
    /// Null unless it is the matrix of two or more experts.
    stack: Option<StackJson>,
    /// Why it is not in the layout of the GPU, or is as it was.
    reason: Option<String>,
    window: Option<WindowJson>,
}

#[derive(Serialize)]
struct StackJson {
    experts: usize,
    /// Of each.
    rows: usize,
    /// Whether each starts with a tile.
    aligned: bool,
}

#[derive(Serialize)]
struct WindowJson {
    /// The lowest exponent, biased.
    base: u8,
    outliers: u64,
    /// Share of the weights in the window.
    coverage: f64,
}

#[derive(Serialize)]
struct Total {
    original_bytes: u64,
    stored_bytes: u64,
    ratio: f64,
    /// Of the weights of compressed BF16 tensors, as is the next.
    bits_per_weight: Option<f64>,
    entropy_bits_per_weight: Option<f64>,
}

impl<'a> ReportJson<'a> {
    pub fn new(report: &'a Report) -> Self {
        Self::of(report, entries(report, None))
    }

    /// With some of the tensors, and totals of all.
    pub fn of(report: &'a Report, tensors: impl IntoIterator<Item = Entry<'a>>) -> Self {
        Self {
            tensors: tensors.into_iter().map(TensorJson::new).collect(),
            total: Total {
                original_bytes: report.original_bytes(),
                stored_bytes: report.stored_bytes(),
                ratio: report.ratio(),
                bits_per_weight: report.bits_per_weight(),
                entropy_bits_per_weight: report.entropy_bits_per_weight(),
            },
            other_files: report.other_files,
            warnings: &report.warnings,
        }
    }
}

impl<'a> TensorJson<'a> {
    fn new(Entry { file, tensor }: Entry<'a>) -> Self {
        let exponents = tensor.exponents.as_ref();
        let exponents = exponents.filter(|_| tensor.storage == Storage::Matrix);
        Self {
            file,
            name: &tensor.name,
            dtype: &tensor.dtype,
            shape: &tensor.shape,
            original_bytes: tensor.original_bytes,
            stored_bytes: tensor.stored_bytes,
            bits_per_weight: tensor.bits_per_weight(),
            entropy_bits_per_weight: tensor.entropy_bits_per_weight(),
            compressed: tensor.storage != Storage::Raw,
            storage: match tensor.storage {
                Storage::Matrix => "matrix",
                Storage::Planes => "planes",
                Storage::Raw => "raw",
            },
            stack: tensor.stack.map(|stack| StackJson {
                experts: stack.experts,
                rows: stack.rows,
                aligned: stack.is_aligned,
            }),
            reason: reason(tensor),
            window: exponents.map(|exponents| {
                let window = exponents.window();
                WindowJson {
                    base: window.base,
                    outliers: window.outliers,
                    coverage: exponents.coverage(),
                }
            }),
        }
    }
}

/// How long a job took.
#[derive(Serialize)]
pub struct Speed {
    seconds: f64,
    /// Bytes of original files.
    bytes_per_second: f64,
}

impl Speed {
    pub fn new(bytes: u64, time: Duration) -> Self {
        Self {
            seconds: time.as_secs_f64(),
            bytes_per_second: bytes_per_second(bytes, time),
        }
    }
}

/// What `compress` and `decompress` did.
#[derive(Serialize)]
pub struct Job<'a> {
    input: &'a Path,
    output: &'a Path,
    #[serde(flatten)]
    report: ReportJson<'a>,
    #[serde(flatten)]
    speed: Speed,
}

impl<'a> Job<'a> {
    pub fn new(input: &'a Path, output: &'a Path, report: &'a Report, time: Duration) -> Self {
        Self {
            input,
            output,
            report: ReportJson::new(report),
            speed: Speed::new(report.original_bytes(), time),
        }
    }
}
