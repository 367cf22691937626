//! The table of `inspect`.

use comfy_table::{CellAlignment, Table, presets::NOTHING};
use indicatif::DecimalBytes;
use zipserv::checkpoint::{Report, shown};

use super::{
    console,
    groups::{Group, entries, group},
    layout::{GAP, elide, fit, wrap},
};

/// Rows that are shown unless all are wanted.
const ROWS: usize = 40;
/// Columns of a shape, where there are not enough for everything.
const SHAPE: usize = 20;

/// In the order of their importance: the last ones go where there is no room.
const COLUMNS: [&str; 11] = [
    "tensor",
    "n",
    "size",
    "stored",
    "shape",
    "dtype",
    "bits a weight",
    "entropy bound",
    "in window",
    "outliers",
    "experts",
];
/// Columns after the first that have their place before all of its text is in a line.
const NEEDED: usize = 4;
const SHAPE_COLUMN: usize = 4;
/// The last one, which is there if there is something in it.
const EXPERTS_COLUMN: usize = 10;
/// Columns of words; all others are of numbers.
const WORDS: [usize; 4] = [0, SHAPE_COLUMN, 5, EXPERTS_COLUMN];

/// What is in a report, in so many columns: its layers as a row each, and the totals.
pub fn table(report: &Report, width: Option<usize>) -> String {
    let groups = group(entries(report, None));
    format!(
        "{}\n\n{}",
        rows(&groups, false, width),
        totals(report, width)
    )
}

/// A row for each group, and how many there are beside those that are shown.
pub fn rows(groups: &[Group], all: bool, width: Option<usize>) -> String {
    let shown = if all {
        groups.len()
    } else {
        groups.len().min(ROWS)
    };
    let (groups, rest) = groups.split_at(shown);
    let mut cells: Vec<_> = groups.iter().map(row).collect();
    if width.is_some() {
        for row in &mut cells {
            row[SHAPE_COLUMN] = elide(&row[SHAPE_COLUMN], SHAPE);
        }
    }
    let has_experts = cells.iter().any(|row| !row[EXPERTS_COLUMN].is_empty());
    let columns = EXPERTS_COLUMN + usize::from(has_experts);
    let widths: Vec<_> = (0..columns)
        .map(|column| {
            let cells = cells
                .iter()
                .map(|row| ::console::measure_text_width(&row[column]));
            cells.fold(COLUMNS[column].len(), usize::max)
        })
        .collect();
    let (first, others) = fit(widths[0], NEEDED, &widths[1..], width);

    let mut table = Table::new();
    let columns = 1 + others;
    table.load_preset(NOTHING).set_header(&COLUMNS[..columns]);
    for mut row in cells {
        row[0] = wrap(&row[0], first);
        table.add_row(&row[..columns]);
    }
    for (index, column) in table.column_iter_mut().enumerate() {
        let gap = if index + 1 < columns { GAP } else { 0 };
        column.set_padding((0, gap as u16));
        if !WORDS.contains(&index) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    let mut text = table.trim_fmt();
    if !rest.is_empty() {
        let tensors: usize = rest.iter().map(|group| group.entries().len()).sum();
        let bytes = DecimalBytes(rest.iter().map(Group::original_bytes).sum());
        text += &format!("\n... and {tensors} more tensors, {bytes}; --all shows them");
    }
    text
}

/// Sizes and counts of all tensors, and which are not for the GPU.
pub fn totals(report: &Report, width: Option<usize>) -> String {
    let bound = match report.entropy_bits_per_weight() {
        Some(bits) => format!(" (entropy bound {bits:.3})"),
        None => String::new(),
    };
    let mut lines = console::others(report, width);
    lines.push(format!("{}{bound}", console::sizes(report)));
    lines.push(format!(
        "{} of {} tensors compressed, {} weights",
        report.compressed().count(),
        report.tensors().count(),
        report.exponents().total(),
    ));
    lines.join("\n")
}

fn row(group: &Group) -> [String; COLUMNS.len()] {
    let bits = |bits: f64| format!("{bits:.3}");
    let [bound, coverage, outliers] = match group.exponents() {
        Some(exponents) => [
            bits(exponents.entropy_bits_per_weight),
            format!("{:.2} %", 100.0 * exponents.coverage),
            exponents.outliers.to_string(),
        ],
        None => Default::default(),
    };
    [
        shown(group.name()).to_string(),
        group.entries().len().to_string(),
        DecimalBytes(group.original_bytes()).to_string(),
        format!("{:.1} %", 100.0 * group.ratio()),
        group.shape(),
        shown(group.dtype()).to_string(),
        group.bits_per_weight().map(bits).unwrap_or_default(),
        bound,
        coverage,
        outliers,
        group.experts(),
    ]
}
