use std::path::PathBuf;

use zipserv_gpu::layout::TILE_ROWS;

use super::header::Tensor;
use crate::{Histogram, codec::Strips};

/// What a job did, or what an inspection found.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Report {
    /// The `.safetensors` files, one or as many as the folder has.
    pub files: Vec<FileReport>,
    /// Other files of a folder.
    pub other_files: usize,
    /// What a person should know: files of a folder that could not be marked as compressed, an output that is larger
    /// than its input.
    pub warnings: Vec<String>,
}

/// One `.safetensors` file.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct FileReport {
    /// The input: its path in the folder, or its path as given.
    pub path: PathBuf,
    /// Bytes of the original file.
    pub original_bytes: u64,
    /// Bytes of the compressed file.
    pub stored_bytes: u64,
    /// Its tensors, in the order of their data in the original file.
    pub tensors: Vec<TensorReport>,
}

/// One tensor.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct TensorReport {
    /// Its name in the original file.
    pub name: String,
    /// Its name in the compressed file.
    pub stored_name: String,
    /// Its dtype in the original file.
    pub dtype: String,
    /// Its shape in the original file.
    pub shape: Vec<u64>,
    /// Bytes in the original file.
    pub original_bytes: u64,
    /// Bytes in the compressed file.
    pub stored_bytes: u64,
    /// How it is stored.
    pub storage: Storage,
    /// The experts that it holds, if it is stored as a matrix and has two or more.
    pub stack: Option<Stack>,
    /// Why it is not for the layout of the GPU, if that is so.
    pub unsuited: Option<Reason>,
    /// The exponents of a BF16 tensor, unless it is too small to shrink. Neither restoring nor making an archive counts
    /// them.
    pub exponents: Option<Box<Histogram>>,
}

/// Matrices stored as one: those of a tensor of three or more dimensions, such as a mixture's experts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stack {
    /// Two or more.
    pub experts: usize,
    /// Rows of each, M.
    pub rows: usize,
    /// Whether each starts with a tile, as kernels want it.
    pub is_aligned: bool,
}

/// How a tensor is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Storage {
    /// As a compressed matrix, in the layout of the GPU.
    Matrix,
    /// As byte planes through an entropy coder.
    Planes,
    /// As it was: neither makes it smaller.
    Raw,
}

/// Why a tensor does not suit the layout of the GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// Its dtype is not BF16.
    Dtype,
    /// It has less than two dimensions.
    Dimensions,
    /// It has so few rows or columns that padding them to whole tiles takes more than compression saves.
    Padding,
    /// It has more rows, columns or tiles than the layout can count.
    Size,
    /// Too many of its exponents lie outside the window, as those of zeros do.
    Outliers,
}

impl Stack {
    /// That of a tensor whose matrix has such strips, if it is one.
    pub(crate) fn of(tensor: &Tensor, strips: Strips) -> Option<Self> {
        let (experts, rows) = tensor.stack_shape()?;
        (experts > 1).then_some(Self {
            experts,
            rows,
            is_aligned: strips.experts() > 1 || rows.is_multiple_of(TILE_ROWS),
        })
    }

    /// Whether there is padding between the experts.
    pub fn is_padded(&self) -> bool {
        self.is_aligned && !self.rows.is_multiple_of(TILE_ROWS)
    }
}

impl TensorReport {
    /// Elements of the tensor.
    pub fn elements(&self) -> u64 {
        self.shape.iter().product()
    }

    /// Stored bits for each element, or nothing when there are none.
    pub fn bits_per_weight(&self) -> Option<f64> {
        bits(self.stored_bytes, self.elements())
    }

    /// Bits for each element below which no code of single exponents can go.
    pub fn entropy_bits_per_weight(&self) -> Option<f64> {
        let exponents = self.exponents.as_ref()?;
        (exponents.total() > 0).then(|| exponents.entropy_bits())
    }
}

impl Report {
    /// All tensors.
    pub fn tensors(&self) -> impl Iterator<Item = &TensorReport> {
        self.files.iter().flat_map(|file| &file.tensors)
    }

    /// The tensors that are stored compressed, one way or the other.
    pub fn compressed(&self) -> impl Iterator<Item = &TensorReport> {
        self.tensors()
            .filter(|tensor| tensor.storage != Storage::Raw)
    }

    /// The BF16 tensors among them.
    fn weights(&self) -> impl Iterator<Item = &TensorReport> {
        self.compressed().filter(|tensor| tensor.dtype == "BF16")
    }

    /// Bytes of the original `.safetensors` files, headers included.
    pub fn original_bytes(&self) -> u64 {
        self.files.iter().map(|file| file.original_bytes).sum()
    }

    /// Bytes of the compressed `.safetensors` files, headers included.
    pub fn stored_bytes(&self) -> u64 {
        self.files.iter().map(|file| file.stored_bytes).sum()
    }

    /// Says so, if compression has made it larger.
    pub(crate) fn warn_if_larger(&mut self) {
        let (stored, original) = (self.stored_bytes(), self.original_bytes());
        if stored > original {
            let more = stored - original;
            self.warnings.push(format!(
                "the output is larger than the input, by {more} bytes"
            ));
        }
    }

    /// Stored bytes for each original byte.
    pub fn ratio(&self) -> f64 {
        self.stored_bytes() as f64 / self.original_bytes() as f64
    }

    /// Stored bits for each weight of the compressed BF16 tensors, if there are any.
    pub fn bits_per_weight(&self) -> Option<f64> {
        let stored = self.weights().map(|tensor| tensor.stored_bytes).sum();
        bits(stored, self.weights().map(TensorReport::elements).sum())
    }

    /// The exponents of the compressed tensors, taken together, as far as they were counted.
    pub fn exponents(&self) -> Histogram {
        let mut all = Histogram::empty();
        for exponents in self.weights().filter_map(|t| t.exponents.as_ref()) {
            all += exponents;
        }
        all
    }

    /// The entropy bounds of the compressed tensors, averaged over their weights, as far as they were counted.
    pub fn entropy_bits_per_weight(&self) -> Option<f64> {
        let counted = self.weights().filter_map(|tensor| {
            let each = tensor.entropy_bits_per_weight()?;
            Some((each, tensor.elements() as f64))
        });
        let (bits, weights) = counted.fold((0.0, 0.0), |(bits, weights), (each, elements)| {
            (bits + each * elements, weights + elements)
        });
        (weights > 0.0).then(|| bits / weights)
    }
}

fn bits(bytes: u64, elements: u64) -> Option<f64> {
    (elements > 0).then(|| 8.0 * bytes as f64 / elements as f64)
}
