//! Which tensors are stored in the layout of the GPU, and what is known of the others.

use std::collections::HashSet;

use super::{header::Tensor, report::Reason};
use crate::{Element, Histogram, MatrixHeader, codec::Strips};

/// The share of weights outside the window up to which a matrix is for the GPU: one in so many. Trained weights have
/// one in fifty. More, as pruned weights have, take time on the GPU and less room as planes.
const OUTLIERS: u64 = 8;

/// Up to how much padding the experts of a stack are aligned: one row for so many rows of weights.
const PADDING: usize = 8;

/// The strips of a tensor that suits the layout of the GPU and has these exponents: each expert of a stack gets its own
/// where that takes little room.
pub(crate) fn strips(tensor: &Tensor, exponents: &Histogram) -> Option<Strips> {
    let (rows, cols) = tensor.matrix_shape()?;
    Some(aligned(tensor, cols, exponents).unwrap_or_else(|| Strips::of_matrix(rows)))
}

fn aligned(tensor: &Tensor, cols: usize, exponents: &Histogram) -> Option<Strips> {
    let (experts, rows) = tensor.stack_shape()?;
    let strips = Strips::aligned(experts, rows)?;
    let padding = strips.stride() - rows;
    if experts < 2 || padding == 0 || padding > rows / PADDING {
        return None;
    }
    let outliers = exponents.window().outliers;
    let header = MatrixHeader::new(strips.matrix_rows(), cols, 0, outliers).ok()?;
    ((header.stored_bytes() as u64) < tensor.bytes()).then_some(strips)
}

/// The strips of the matrix of so many rows that a tensor is stored as. Nothing if it is no such tensor's.
pub(crate) fn strips_of(tensor: &Tensor, matrix_rows: usize) -> Option<Strips> {
    let (rows, _) = tensor.matrix_shape()?;
    let aligned = tensor
        .stack_shape()
        .and_then(|(experts, rows)| Strips::aligned(experts, rows));
    [Some(Strips::of_matrix(rows)), aligned]
        .into_iter()
        .flatten()
        .find(|strips| strips.matrix_rows() == matrix_rows)
}

/// Why a tensor does not suit the layout of the GPU, if that is so; without its exponents, as far as its shape tells.
pub(crate) fn unsuited(tensor: &Tensor, exponents: Option<&Histogram>) -> Option<Reason> {
    if tensor.dtype != "BF16" {
        return Some(Reason::Dtype);
    }
    if tensor.shape.len() < 2 {
        return Some(Reason::Dimensions);
    }
    let outliers = exponents.map_or(0, |exponents| exponents.window().outliers);
    let stored = |outliers| {
        let (rows, cols) = tensor.matrix_shape()?;
        let header = MatrixHeader::new(rows, cols, 0, outliers).ok()?;
        Some(header.stored_bytes() as u64)
    };
    match (stored(0), stored(outliers)) {
        (None, _) => Some(Reason::Size),
        (Some(bytes), _) if bytes >= tensor.bytes() => Some(Reason::Padding),
        (_, Some(bytes)) if bytes < tensor.bytes() && outliers <= tensor.bytes() / 2 / OUTLIERS => {
            None
        }
        _ => Some(Reason::Outliers),
    }
}

/// How the elements of a tensor may be cut into planes.
pub(crate) fn elements(tensor: &Tensor) -> Vec<Element> {
    let bytes = tensor.dtype_bits().map_or(0, |bits| bits as usize / 8);
    let element = match tensor.dtype.as_str() {
        "BF16" | "F16" | "F32" | "F64" => Element::float(bytes),
        // Two of them.
        "C64" => Element::float(4),
        _ => Element::integer(bytes),
    };
    match tensor.dtype_bits() {
        Some(_) => element.into_iter().collect(),
        // A dtype that this build has never heard of.
        None => [2, 4, 8].into_iter().filter_map(Element::integer).collect(),
    }
}

/// What is added to the names of compressed tensors: no name becomes one that there is.
pub(crate) fn suffix<'a>(tensors: impl IntoIterator<Item = &'a Tensor>) -> String {
    let tensors = tensors.into_iter();
    let names: HashSet<_> = tensors.map(|tensor| tensor.name.as_str()).collect();
    let taken = |suffix: &str| {
        names
            .iter()
            .any(|name| name.strip_suffix(suffix).is_some_and(|n| names.contains(n)))
    };
    let numbered = (2..).map(|n| format!(".zipserv{n}"));
    std::iter::once(".zipserv".into())
        .chain(numbered)
        .find(|suffix| !taken(suffix))
        .expect("names are finite")
}
