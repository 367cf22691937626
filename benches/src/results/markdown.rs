//! The tables of `results`, which `report` and `zipserv tune` show too.

use std::fmt;

use serde::Serialize;
use zipserv::gpu::tuning::{TunedRow, TuningMean, TuningTable};

use super::{
    GemmRow, InvariantMean, LayerInfo, MEMORY_BOUND, Mean, Measured, Peer, Peers, PublishedMean,
    StepRow, Steps,
};

/// Lines of cells below a header.
#[derive(Serialize)]
pub struct Table {
    /// The first line.
    pub header: Vec<String>,
    /// The others.
    pub lines: Vec<Vec<String>>,
}

/// A table and what it is of.
pub struct Titled {
    /// What it is of.
    pub title: String,
    /// The table.
    pub table: Table,
}

const WITHOUT_PDL: &str = "without programmatic dependent launch";
/// Tokens for which the first table says what bounds the speedup, and how near it is.
const LIMIT_AT: usize = 8;

/// Speedups, then, where there are many tokens, TFLOP/s.
pub fn tables(measured: &Measured) -> String {
    let device = measured.device();
    let speedups = speedups(measured);
    let how = measured.how();
    let mut text = format!("ZipGEMM{how}, x cuBLAS, on {device}:\n\n{speedups}");
    if let Some(many) = measured.with_many_tokens() {
        text += &format!("\n\n{}", tflops(&many));
    }
    if let Some(dispatch) = dispatch(measured) {
        text += &format!("\n\n{dispatch}");
    }
    if let Some(measured) = measured.with_invariant() {
        text += &format!("\n\n{}", invariant(&measured));
    }
    if let Some(measured) = measured.with_published() {
        text += &format!("\n\n{}", published(&measured));
    }
    text
}

/// How far the plan is from the better of both ways, where that was measured.
pub fn dispatch(measured: &Measured) -> Option<String> {
    let (row, regret) = measured.worst_dispatch()?;
    let (layer, n) = (name(&row.layer), row.n);
    Some(format!(
        "With memory for dense weights, the plan takes {regret:.3} times as long as the better of \
         both ways at worst ({layer}, N={n})."
    ))
}

/// What tuning lifts the geometric mean by: times, and so speedups over anything else.
pub fn tuning(table: &TuningTable) -> Titled {
    let header = [
        "tokens",
        "shapes",
        "other launches",
        "geometric mean before, us",
        "tuned, us",
        "lift",
    ];
    let line = |mean: TuningMean| {
        vec![
            mean.n.to_string(),
            mean.shapes.to_string(),
            mean.changed.to_string(),
            format!("{:.2}", mean.before_us),
            format!("{:.2}", mean.after_us),
            format!("{:.3}x", mean.gain()),
        ]
    };
    Titled {
        title: format!("Tuned launches on {}", table.key().device),
        table: Table::new(header, table.means().into_iter().map(line)),
    }
}

/// The launches that tuning changes, each in the row of its shape and number of tokens.
pub fn changed_launches(table: &TuningTable) -> Table {
    let header = [
        "shape (M x K)",
        "tokens",
        "before",
        "us",
        "tuned",
        "us",
        "lift",
    ];
    let line = |row: &TunedRow| {
        vec![
            format!("{} x {}", row.rows, row.cols),
            row.n.to_string(),
            row.default.to_string(),
            format!("{:.2}", row.before_us),
            row.launch.to_string(),
            format!("{:.2}", row.after_us),
            format!("{:.3}x", row.gain()),
        ]
    };
    let changed = table.rows().iter().filter(|row| row.is_changed());
    Table::new(header, changed.map(line))
}

/// The largest step of each layer from one number of tokens to the next that was measured.
pub fn steps(steps: &Steps) -> Titled {
    let header = ["layer (M x K)", "points", "largest step", "from N", "to N"];
    let line = |row: &StepRow| {
        let mut cells = vec![name(&row.layer), row.points.len().to_string()];
        if let Some(step) = row.worst() {
            cells.push(format!("{:.3}x", step.ratio));
            cells.extend([step.from, step.to].map(|n| n.to_string()));
        }
        cells
    };
    Titled {
        title: format!("Largest step in time on {}", steps.device),
        table: Table::new(header, steps.layers.iter().map(line)),
    }
}

/// Decompression beside other codecs.
pub fn peers(peers: &Peers) -> Titled {
    let header = ["codec", "weights", "stored", "us", "GB/s of BF16"];
    let line = |peer: &Peer| {
        let [rows, cols] = peer.shape;
        vec![
            peer.peer.clone(),
            format!("{rows} x {cols}"),
            format!("{:.2} %", 100.0 * peer.stored()),
            format!("{:.2}", peer.us),
            format!("{:.0}", peer.gbs()),
        ]
    };
    Titled {
        title: format!("Decompression beside other codecs on {}", peers.device),
        table: Table::new(header, peers.rows.iter().map(line)),
    }
}

fn speedups(measured: &Measured) -> Table {
    let tokens = measured.tokens();
    let with_limit = tokens.contains(&LIMIT_AT);
    let mut header = header(&tokens);
    if with_limit {
        header.push(format!("limit at N={LIMIT_AT}"));
        header.push(format!("of the read ceiling at N={LIMIT_AT}"));
    }
    let of_layer = |layer: &LayerInfo| {
        let row = |n| measured.row(layer, n);
        let mut cells = vec![name(layer)];
        let speedup = |row: &GemmRow| speedup(row.speedup(row.kernels[0].best_us()));
        cells.extend(tokens.iter().map(|&n| cell(row(n).map(speedup))));
        if with_limit {
            let row = row(LIMIT_AT);
            let of_read = |row: &GemmRow| 100.0 * row.of_read(row.kernels[0].best_us());
            cells.push(cell(row.map(|row| self::speedup(row.limit()))));
            cells.push(cell(row.map(|row| format!("{:.0} %", of_read(row)))));
        }
        cells
    };
    let mut lines: Vec<_> = measured.layers().into_iter().map(of_layer).collect();

    let means = measured.means(None);
    let mut of_all = |name: &str, bold: bool, value: &dyn Fn(&Mean) -> Option<f64>| {
        let mean = |n| means.iter().find(|mean| mean.n == n);
        let values: Vec<_> = tokens.iter().map(|&n| mean(n).and_then(value)).collect();
        if values.iter().all(Option::is_none) {
            return;
        }
        let emphasis = |text: String| match bold {
            true => format!("**{text}**"),
            false => text,
        };
        let mut cells = vec![emphasis(name.to_owned())];
        cells.extend(
            values
                .into_iter()
                .map(|v| cell(v.map(speedup).map(emphasis))),
        );
        lines.push(cells);
    };
    of_all("geometric mean", true, &|mean| Some(mean.pdl));
    of_all(WITHOUT_PDL, false, &|mean| {
        (mean.plain != mean.pdl).then_some(mean.plain)
    });
    of_all("decompression, then cuBLAS", false, &|mean| mean.decoupled);
    of_all(
        "if compressed bytes moved at the read ceiling",
        false,
        &|mean| (mean.n <= MEMORY_BOUND).then_some(mean.limit),
    );
    Table::new(header, lines)
}

/// Beside both ways of cuBLAS.
pub fn tflops(measured: &Measured) -> Titled {
    let tokens = measured.tokens();
    let of_layer = |layer: &LayerInfo| {
        let cell = |&n: &usize| {
            cell(measured.row(layer, n).map(|row| {
                let tflops = |us: f64| format!("{:.0}", layer.tflops(n, us));
                let decoupled = row.decoupled.as_ref().map(|decoupled| decoupled.us);
                let decoupled = decoupled.map_or("-".to_owned(), tflops);
                let ours = tflops(row.kernels[0].best_us());
                format!("{ours} / {decoupled} / {}", tflops(row.cublas_us))
            }))
        };
        let mut cells = vec![name(layer)];
        cells.extend(tokens.iter().map(cell));
        cells
    };
    let lines = measured.layers().into_iter().map(of_layer);
    Titled {
        title: "TFLOP/s of ZipGEMM / decompression, then cuBLAS / cuBLAS".to_owned(),
        table: Table::new(header(&tokens), lines),
    }
}

/// The batch-invariant plans, and beside those of the dispatch.
pub fn invariant(measured: &Measured) -> Titled {
    let tokens = measured.tokens();
    let of_layer = |layer: &LayerInfo| {
        let best = |&n: &usize| {
            let row = measured.row(layer, n)?;
            Some(speedup(row.speedup(row.invariant.as_ref()?.best_us())))
        };
        let mut cells = vec![name(layer)];
        cells.extend(tokens.iter().map(|n| cell(best(n))));
        cells
    };
    let mut lines: Vec<_> = measured.layers().into_iter().map(of_layer).collect();
    let means = measured.means(None);
    let mut of_all = |name: &str, value: &dyn Fn(&Mean, &InvariantMean) -> f64| {
        let mean = |n: &usize| {
            let mean = means.iter().find(|mean| mean.n == *n)?;
            Some(speedup(value(mean, mean.invariant.as_ref()?)))
        };
        let mut cells = vec![name.to_owned()];
        cells.extend(tokens.iter().map(|n| cell(mean(n))));
        lines.push(cells);
    };
    of_all("geometric mean", &|_, invariant| invariant.pdl);
    of_all(WITHOUT_PDL, &|_, invariant| invariant.plain);
    of_all("x the plan's own kernels", &|mean, invariant| {
        invariant.pdl / mean.pdl
    });
    Titled {
        title: "Batch-invariant, x cuBLAS".to_owned(),
        table: Table::new(header(&tokens), lines),
    }
}

/// Beside ZipServ as published.
pub fn published(measured: &Measured) -> Titled {
    let tokens = measured.tokens();
    let mut header = header(&tokens);
    header.push("decompression".to_owned());
    header.push("bits a weight".to_owned());
    let of_layer = |layer: &LayerInfo| {
        let row = |&n: &usize| measured.row(layer, n);
        let ratio = |row: &GemmRow| {
            let published = row.published.as_ref()?;
            Some(speedup(published.us / row.kernels[0].plain_us))
        };
        let mut cells = vec![name(layer)];
        cells.extend(tokens.iter().map(|n| cell(row(n).and_then(ratio))));
        let restored = measured.decompress(layer).and_then(|found| {
            let row = found.row;
            let speed = |us: f64| format!("{:.0}", layer.bf16_bytes() as f64 / us / 1e3);
            let published = row.published.as_ref()?;
            Some(format!("{} / {}", speed(row.us), speed(published.us)))
        });
        cells.push(cell(restored));
        let bits = |bytes: usize| format!("{:.2}", 16.0 * bytes as f64 / layer.bf16_bytes() as f64);
        let mut published = tokens.iter().filter_map(|n| row(n)?.published.as_ref());
        cells.push(cell(published.next().map(|published| {
            let (ours, published) = (layer.compressed_bytes, published.compressed_bytes);
            format!("{} / {}", bits(ours), bits(published))
        })));
        cells
    };
    let mut lines: Vec<_> = measured.layers().into_iter().map(of_layer).collect();
    let means = measured.means(None);
    let mut of_all = |name: &str, value: &dyn Fn(&PublishedMean) -> f64| {
        let mean = |n: &usize| means.iter().find(|mean| mean.n == *n)?.published.as_ref();
        let mut cells = vec![name.to_owned()];
        cells.extend(tokens.iter().map(|n| cell(mean(n).map(value).map(speedup))));
        lines.push(cells);
    };
    of_all("geometric mean", &|mean| mean.plain);
    of_all("with programmatic dependent launch", &|mean| mean.pdl);
    of_all("ZipServ as published, x cuBLAS", &|mean| mean.speedup);
    let title = "x ZipServ as published, launched plainly like it; decompression in GB/s of BF16, \
                 and bits a weight, of ours / as published";
    Titled {
        title: title.to_owned(),
        table: Table::new(header, lines),
    }
}

/// The first column's and those of the numbers of tokens.
pub(super) fn header(tokens: &[usize]) -> Vec<String> {
    let mut cells = vec!["layer (M x K)".to_owned()];
    cells.extend(tokens.iter().map(usize::to_string));
    cells[1].insert_str(0, "N=");
    cells
}

pub(super) fn name(layer: &LayerInfo) -> String {
    let LayerInfo {
        model,
        name,
        rows,
        cols,
        ..
    } = layer;
    match model.as_str() {
        // A layer of no model, see `Config::layers`.
        "-" => format!("{rows} x {cols}"),
        _ => format!("{model} {name} {rows} x {cols}"),
    }
}

fn speedup(value: f64) -> String {
    format!("{value:.2}x")
}

/// Nothing where nothing was measured.
fn cell(text: Option<String>) -> String {
    text.unwrap_or_default()
}

impl Table {
    /// Lines shorter than the header are filled up.
    pub fn new<Name: Into<String>>(
        header: impl IntoIterator<Item = Name>,
        lines: impl IntoIterator<Item = Vec<String>>,
    ) -> Self {
        let header: Vec<String> = header.into_iter().map(Into::into).collect();
        let mut lines: Vec<_> = lines.into_iter().collect();
        for line in &mut lines {
            line.resize(header.len(), String::new());
        }
        Self { header, lines }
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let line = |cells: &[String]| format!("| {} |", cells.join(" | "));
        writeln!(f, "{}", line(&self.header))?;
        write!(f, "{}", line(&vec!["---".to_owned(); self.header.len()]))?;
        let mut lines = self.lines.iter();
        lines.try_for_each(|cells| write!(f, "\n{}", line(cells)))
    }
}

impl fmt::Display for Titled {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}:\n\n{}", self.title, self.table)
    }
}
