//! What jobs tell, as frozen objects of Python.

use std::path::PathBuf;

use pyo3::prelude::*;
use zipserv::checkpoint::{self, DifferenceKind, Storage};

/// What a job did, or what an inspection found.
#[pyclass(frozen, get_all, module = "zipserv")]
pub struct Report {
    /// All tensors, file after file.
    tensors: Vec<Py<Tensor>>,
    /// Bytes of the original .safetensors files, headers included.
    original_bytes: u64,
    /// Bytes of the compressed .safetensors files, headers included.
    stored_bytes: u64,
    /// Stored bytes for each original byte.
    ratio: f64,
    /// Stored bits for each weight of the compressed BF16 tensors; None if there are none.
    bits_per_weight: Option<f64>,
    /// Other files of a folder, which are copied.
    other_files: usize,
    /// What the user should know.
    warnings: Vec<String>,
}

/// One tensor of a report.
#[pyclass(frozen, get_all, module = "zipserv")]
pub struct Tensor {
    /// The .safetensors file: its path in the folder, or as given.
    file: PathBuf,
    /// Its name in the original file.
    name: String,
    /// Its dtype in the original file, as safetensors spells it.
    dtype: String,
    /// Its shape in the original file.
    shape: Vec<u64>,
    /// Bytes in the original file.
    original_bytes: u64,
    /// Bytes in the compressed file.
    stored_bytes: u64,
    /// Stored bits for each element; None if there are none.
    bits_per_weight: Option<f64>,
    /// "matrix" for kernels, "planes", or "raw" as it was.
    storage: &'static str,
    /// What it holds if it is the matrix of two or more experts, else None.
    stack: Option<Py<Stack>>,
}

/// Matrices stored as one, such as those of a mixture's experts.
#[pyclass(frozen, get_all, module = "zipserv")]
pub struct Stack {
    /// How many there are.
    experts: usize,
    /// Rows of each.
    rows: usize,
    /// Whether each starts with a tile, as kernels want it.
    aligned: bool,
}

/// What a comparison found. True if all bytes are equal.
#[pyclass(frozen, get_all, module = "zipserv")]
pub struct Verdict {
    /// Whether all bytes are equal.
    equal: bool,
    /// Bytes of the original files.
    original_bytes: u64,
    /// The file of the first difference, if there is one.
    file: Option<PathBuf>,
    /// The tensor that differs, if that is it.
    tensor: Option<String>,
    /// The first difference in words, if there is one.
    difference: Option<String>,
}

impl Report {
    pub fn new(report: checkpoint::Report) -> Self {
        Python::attach(|py| {
            let tensors = report.files.iter().flat_map(|file| {
                let of_file = |tensor| Tensor::new(py, file.path.clone(), tensor);
                file.tensors.iter().map(of_file)
            });
            let tensors = tensors.map(|tensor| Py::new(py, tensor).expect("room for a report"));
            Self {
                tensors: tensors.collect(),
                original_bytes: report.original_bytes(),
                stored_bytes: report.stored_bytes(),
                ratio: report.ratio(),
                bits_per_weight: report.bits_per_weight(),
                other_files: report.other_files,
                warnings: report.warnings,
            }
        })
    }
}

#[pymethods]
impl Report {
    fn __repr__(&self) -> String {
        let bits = match self.bits_per_weight {
            Some(bits) => format!(", {bits:.3} bits a weight"),
            None if self.stored_bytes < self.original_bytes => String::new(),
            None => ", nothing compressed".into(),
        };
        format!(
            "<zipserv.Report: {} -> {} bytes ({:.1} %){bits}, {} tensors>",
            self.original_bytes,
            self.stored_bytes,
            100.0 * self.ratio,
            self.tensors.len()
        )
    }
}

impl Tensor {
    fn new(py: Python, file: PathBuf, tensor: &checkpoint::TensorReport) -> Self {
        let stack = tensor.stack.map(|stack| Stack {
            experts: stack.experts,
            rows: stack.rows,
            aligned: stack.is_aligned,
        });
        Self {
            file,
            name: tensor.name.clone(),
            dtype: tensor.dtype.clone(),
            shape: tensor.shape.clone(),
            original_bytes: tensor.original_bytes,
            stored_bytes: tensor.stored_bytes,
            bits_per_weight: tensor.bits_per_weight(),
            storage: match tensor.storage {
                Storage::Matrix => "matrix",
                Storage::Planes => "planes",
                Storage::Raw => "raw",
            },
            stack: stack.map(|stack| Py::new(py, stack).expect("room for a report")),
        }
    }
}

#[pymethods]
impl Tensor {
    fn __repr__(&self) -> String {
        format!(
            "<zipserv.Tensor {:?}: {} {:?}, {} -> {} bytes, {}>",
            self.name, self.dtype, self.shape, self.original_bytes, self.stored_bytes, self.storage
        )
    }
}

#[pymethods]
impl Stack {
    fn __repr__(&self) -> String {
        let unaligned = if self.aligned { "" } else { ", not aligned" };
        let Self { experts, rows, .. } = self;
        format!("<zipserv.Stack: {experts} of {rows} rows{unaligned}>")
    }
}

impl Verdict {
    pub fn new(verdict: checkpoint::Verdict) -> Self {
        let difference = verdict.difference.as_ref();
        Self {
            equal: difference.is_none(),
            original_bytes: verdict.bytes,
            file: difference.map(|difference| difference.file.clone()),
            tensor: difference.and_then(|difference| match &difference.kind {
                DifferenceKind::Tensor { name, .. } => Some(name.clone()),
                _ => None,
            }),
            difference: difference.map(ToString::to_string),
        }
    }
}

#[pymethods]
impl Verdict {
    fn __bool__(&self) -> bool {
        self.equal
    }

    fn __repr__(&self) -> String {
        match &self.difference {
            None => format!("<zipserv.Verdict: equal, {} bytes>", self.original_bytes),
            Some(difference) => format!("<zipserv.Verdict: different: {difference}>"),
        }
    }
}
