//! The table of `inspect`.

use comfy_table::{CellAlignment, Table, presets::UTF8_BORDERS_ONLY};
use zipserv::checkpoint::{Report, Storage, TensorReport, shown};

use super::console::{self, reason};

/// A row for each tensor, and the totals below.
pub fn table(report: &Report) -> String {
    let mut table = Table::new();
    table.load_preset(UTF8_BORDERS_ONLY).set_header([
        "tensor",
        "shape",
        "bits a weight",
        "entropy bound",
        "in window",
        "outliers",
        "passed through",
    ]);
    table.add_rows(report.tensors().map(row));
    for column in table.column_iter_mut().skip(2).take(4) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    let exponents = report.exponents();
    let bound = match report.entropy_bits_per_weight() {
        Some(bits) => format!(" (entropy bound {bits:.3})"),
        None => String::new(),
    };
    let count = report.compressed().count();
    format!(
        "{table}\n{}{bound}\n{count} of {} tensors compressed, {} weights",
        console::sizes(report),
        report.tensors().count(),
        exponents.total(),
    )
}

fn row(tensor: &TensorReport) -> [String; 7] {
    let shape: Vec<_> = tensor.shape.iter().map(u64::to_string).collect();
    let bits = |bits: Option<f64>| bits.map_or(String::new(), |bits| format!("{bits:.3}"));
    let exponents = tensor
        .exponents
        .as_ref()
        .filter(|_| tensor.storage == Storage::Compressed);
    let [bound, coverage, outliers] = match exponents {
        Some(exponents) => [
            bits(tensor.entropy_bits_per_weight()),
            format!("{:.2} %", 100.0 * exponents.coverage()),
            exponents.window().outliers.to_string(),
        ],
        None => Default::default(),
    };
    [
        shown(&tensor.name).to_string(),
        shape.join(" x "),
        bits(tensor.bits_per_weight()),
        bound,
        coverage,
        outliers,
        reason(tensor).unwrap_or_default(),
    ]
}
