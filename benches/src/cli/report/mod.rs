//! `report`: what was measured as one page, which loads nothing else.

mod chart;
mod tables;

use std::{collections::BTreeMap, error::Error, fmt, fs, path::PathBuf, process::ExitCode};

use minijinja::{Environment, UndefinedBehavior, syntax::SyntaxConfig, value::Serde};
use serde::Serialize;
use zipserv_bench::results::{
    File, Found, Inputs, LayerInfo, MEMORY_BOUND, Measured, markdown::Table,
};

use super::{Outcome, console, spare};
use chart::{Axis, Chart, Mark, Point};
use tables::Card;

/// Make a page of what `gemm` measured: speedups, pace, roofline, compression; beside what `zipserv tune` found
#[derive(clap::Args)]
pub struct Report {
    /// Folders of results, and files: of `gemm --json`, and of the same device of `zipserv tune`,
    /// `steps --json` and `benches/peers/compare.py`; where several of the first have the
    /// same layer and number of tokens, the last one counts. What else is in a folder is skipped
    #[arg(required = true, value_name = "FILES")]
    files: Vec<PathBuf>,
    /// The page, as .html
    #[arg(short, long)]
    output: PathBuf,
    /// Replace the output if it exists
    #[arg(long)]
    force: bool,
}

impl Report {
    pub fn run(&self) -> Outcome {
        let mut inputs = Inputs::read(&self.files)?;
        let measured = inputs.measured()?;
        for (path, _) in std::mem::take(&mut inputs.serving) {
            inputs.skip(&path, "of a whole model; `results` has its table");
        }
        for (path, _) in std::mem::take(&mut inputs.experts) {
            inputs.skip(&path, "of experts; `results` has its table");
        }
        for (path, _) in std::mem::take(&mut inputs.engines) {
            inputs.skip(&path, "of the engine; `results` has its table");
        }
        console::skipped(&inputs);
        let page = page(&measured, &inputs)?;
        spare(&self.output, self.force)?;
        fs::write(&self.output, page)
            .map_err(|error| format!("{}: {error}", self.output.display()))?;
        console::wrote(&self.output);
        Ok(ExitCode::SUCCESS)
    }
}

/// What the page says.
#[derive(Serialize)]
struct Page<'a> {
    device: &'a str,
    files: Table,
    overview: Chart,
    tables: Vec<Card>,
    sections: Vec<Section<'a>>,
}

/// The whole page.
fn page(measured: &Measured, inputs: &Inputs) -> Result<String, Box<dyn Error>> {
    let models = measured.models();
    let page = Page {
        device: measured.device(),
        files: files(measured),
        overview: overview(measured, &models),
        tables: tables::cards(measured, inputs),
        sections: models
            .iter()
            .map(|model| section(measured, model))
            .collect(),
    };
    let mut environment = Environment::new();
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    let syntax = SyntaxConfig::builder()
        .trim_blocks(true)
        .lstrip_blocks(true)
        .build()?;
    environment.set_syntax(syntax);
    // Its name has what is put in escaped.
    environment.add_template("page.html", include_str!("page.html"))?;
    Ok(environment.get_template("page.html")?.render(Serde(page))?)
}

/// What the page says of a model.
#[derive(Serialize)]
struct Section<'a> {
    model: &'a str,
    charts: Vec<Chart>,
    compression: Table,
}

fn section<'a>(measured: &Measured, model: &'a str) -> Section<'a> {
    let all = Rows::of(measured, model);
    let mut charts = vec![speedups(measured, &all)];
    charts.extend(pace(measured, &all));
    charts.push(roofline(measured, &all));
    Section {
        model,
        charts,
        compression: compression(&all),
    }
}

/// The rows of a model.
struct Rows<'a> {
    model: &'a str,
    /// By layer, each with its rows in order of tokens.
    layers: Vec<(String, Vec<Found<'a>>)>,
}

impl<'a> Rows<'a> {
    fn of(measured: &'a Measured, model: &'a str) -> Self {
        let mut layers: Vec<(String, Vec<Found>)> = Vec::new();
        for found in measured.found().filter(|f| f.row.layer.model == model) {
            let name = name(&found.row.layer);
            match layers.iter_mut().find(|(layer, _)| *layer == name) {
                Some((_, rows)) => rows.push(found),
                None => layers.push((name, vec![found])),
            }
        }
        for (_, rows) in &mut layers {
            rows.sort_by_key(|found| found.row.n);
        }
        Self { model, layers }
    }

    fn iter(&self) -> impl Iterator<Item = (&str, Found<'a>)> + Clone {
        let layers = self.layers.iter();
        layers.flat_map(|(name, rows)| rows.iter().map(move |&found| (name.as_str(), found)))
    }

    /// Where the rows with so many tokens are, which a mean is of.
    fn places(&self, n: usize) -> String {
        let rows = self.iter().filter(|(_, found)| found.row.n == n);
        places(rows.map(|(_, found)| found))
    }
}

/// Where rows are, by file.
fn places<'a>(rows: impl Iterator<Item = Found<'a>>) -> String {
    let mut by_file: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for Found { path, index, .. } in rows {
        let file = by_file.entry(path.display().to_string()).or_default();
        file.push((index + 1).to_string());
    }
    let of_file = |(file, rows): (String, Vec<String>)| {
        let rows = match rows.as_slice() {
            [row] => format!("row {row}"),
            rows => format!("rows {}", rows.join(", ")),
        };
        format!("{rows} of {file}")
    };
    let files: Vec<_> = by_file.into_iter().map(of_file).collect();
    files.join("; ")
}

fn name(layer: &LayerInfo) -> String {
    format!("{} {} x {}", layer.name, layer.rows, layer.cols)
}

fn header<const COLUMNS: usize>(names: [&str; COLUMNS]) -> Vec<String> {
    names.map(str::to_owned).to_vec()
}

/// Where a row is.
fn place(found: &Found) -> String {
    format!("row {} of {}", found.index + 1, found.path.display())
}

/// Which figures of a row are told: those of the faster launch that the device has.
fn launch(found: &Found) -> &'static str {
    match found.row.kernels[0].pdl_us {
        Some(_) => "launched before the one ahead of it ends",
        None => "launched plainly",
    }
}

/// What is told of a point that is a figure of a row.
fn title(name: &str, found: &Found, figure: &str, how: &str) -> String {
    let (tokens, place) = (tokens(found.row.n), place(found));
    format!("{name}, {tokens}: {figure}\n{place}, {how}")
}

fn tokens(n: usize) -> String {
    match n {
        1 => "1 token".to_owned(),
        n => format!("{n} tokens"),
    }
}

fn times(value: f64) -> String {
    format!("{value:.3}x")
}

/// The files, a column each, and what was the same for all rows of each.
fn files(measured: &Measured) -> Table {
    let line = |name: &str, value: &dyn Fn(&File) -> String| {
        let values = measured.files().iter().map(value);
        [name.to_owned()].into_iter().chain(values).collect()
    };
    let ceiling = |tbs: f64| format!("{tbs:.3} TB/s");
    Table {
        header: line("file", &|file| file.path.display().to_string()),
        lines: vec![
            line("device", &|file| file.report.device.clone()),
            line("commit", &|file| {
                let commit = file.report.commit.as_deref();
                commit.unwrap_or("not told").to_owned()
            }),
            line("date", &|file| file.report.date.clone()),
            line("driver", &|file| file.report.driver.clone()),
            line("kernels", &|file| file.report.kernels.clone()),
            line("replays", &|file| match file.report.sustained_s {
                Some(seconds) => format!("{seconds} s of each"),
                None => file.report.replays.to_string(),
            }),
            line("seed", &|file| file.report.seed.to_string()),
            line("PTX", &|file| match file.report.ptx_crc32 {
                Some(crc32) => format!("CRC-32 {crc32:08x}"),
                None => "not told".to_owned(),
            }),
            line("read ceiling", &|file| ceiling(file.report.read_tbs)),
        ],
    }
}

/// Speedups of all models, each the mean of its layers.
fn overview(measured: &Measured, models: &[&str]) -> Chart {
    let mut lines = Vec::new();
    let mut curves = Vec::new();
    for &model in models {
        let rows = Rows::of(measured, model);
        let (mean, _) = means(measured, &rows, &mut lines);
        curves.push((model, mean));
    }
    let note = "Geometric means of each model's layers. Dashed: as fast as cuBLAS.".to_owned();
    speedup_chart(note, measured.tokens(), &curves, &[], lines)
}

/// A chart of speedups over numbers of tokens, with room for the `others` that are still to be drawn.
fn speedup_chart(
    note: String,
    tokens: impl IntoIterator<Item = usize, IntoIter: Clone>,
    curves: &[(&str, Vec<Point>)],
    others: &[Point],
    lines: Vec<Vec<String>>,
) -> Chart {
    let values = points_of(curves).chain(others).map(|point| point.y);
    let mut chart = Chart::new(
        "Speedup against tokens",
        note,
        Axis::log_at("tokens", tokens.into_iter().map(|n| n as f64)),
        Axis::linear("x cuBLAS", values.chain([1.0])),
        Table {
            header: header(MEANS),
            lines,
        },
    );
    parity(&mut chart);
    for (color, (name, points)) in curves.iter().enumerate() {
        chart.draw(name, Mark::Joined(color), points);
    }
    chart
}

/// Of which time figures are, as notes have it.
const PLAN: &str =
    "that of the plan's kernel, with programmatic dependent launch where the device has it";

/// The header of a table of speedups.
const MEANS: [&str; 5] = ["layer", "tokens", "x cuBLAS", "byte limit", "from"];

fn points_of<T>(curves: &[(T, Vec<Point>)]) -> impl Iterator<Item = &Point> + Clone {
    curves.iter().flat_map(|(_, points)| points)
}

/// A line at 1.
fn parity(chart: &mut Chart) {
    let [low, high] = chart.x_ends();
    let at = |x| Point {
        x,
        y: 1.0,
        title: String::new(),
    };
    chart.draw("cuBLAS", Mark::Dashed, &[low, high].map(at));
}

/// Means of a model's layers and of their byte limits, as points and as lines of a table.
fn means(
    measured: &Measured,
    rows: &Rows,
    lines: &mut Vec<Vec<String>>,
) -> (Vec<Point>, Vec<Point>) {
    let (mut points, mut limits) = (Vec::new(), Vec::new());
    for mean in measured.means(Some(rows.model)) {
        let (model, n, places) = (rows.model, mean.n, rows.places(mean.n));
        let point = |what: &str, y: f64| Point {
            x: n as f64,
            y,
            title: format!("{model}, {what}, {}: {}\n{places}", tokens(n), times(y)),
        };
        points.push(point("geometric mean", mean.pdl));
        let has_limit = n <= MEMORY_BOUND;
        if has_limit {
            limits.push(point("byte limit, geometric mean", mean.limit));
        }
        lines.push(vec![
            format!("{model}, geometric mean"),
            n.to_string(),
            times(mean.pdl),
            if has_limit {
                times(mean.limit)
            } else {
                String::new()
            },
            places,
        ]);
    }
    (points, limits)
}

/// Speedups of a model's layers, their mean, and what the bytes allow.
fn speedups(measured: &Measured, rows: &Rows) -> Chart {
    let mut lines = Vec::new();
    let mut curves = Vec::new();
    for (name, of_layer) in &rows.layers {
        let mut points = Vec::new();
        for found in of_layer {
            let speedup = found.row.speedup(found.row.kernels[0].best_us());
            let (n, limit) = (found.row.n, found.row.limit());
            points.push(Point {
                x: n as f64,
                y: speedup,
                title: title(name, found, &times(speedup), launch(found)),
            });
            lines.push(vec![
                name.clone(),
                n.to_string(),
                times(speedup),
                if n <= MEMORY_BOUND {
                    times(limit)
                } else {
                    String::new()
                },
                place(found),
            ]);
        }
        curves.push((name.as_str(), points));
    }
    let (mean, limit) = means(measured, rows, &mut lines);
    let note = format!(
        "The time of cuBLAS over {PLAN}. The byte limit is \
         x cuBLAS if the compressed bytes moved at the read ceiling; up to {MEMORY_BOUND} tokens, \
         of which memory sets the pace."
    );
    let tokens = rows.iter().map(|(_, found)| found.row.n);
    let means: Vec<_> = mean.iter().chain(&limit).cloned().collect();
    let mut chart = speedup_chart(note, tokens, &curves, &means, lines);
    chart.draw("byte limit, geometric mean", Mark::Bound, &limit);
    chart.draw("geometric mean", Mark::Strong, &mean);
    chart
}

/// TB/s of compressed bytes over the size, if memory sets the pace of any row.
fn pace(measured: &Measured, rows: &Rows) -> Option<Chart> {
    let mut lines = Vec::new();
    let mut by_tokens: BTreeMap<usize, Vec<Point>> = BTreeMap::new();
    for (name, found) in rows.iter().filter(|(_, f)| f.row.n <= MEMORY_BOUND) {
        let us = found.row.kernels[0].best_us();
        let pace = found.row.tbs(us);
        let megabytes = found.row.layer.compressed_bytes as f64 / 1e6;
        let tbs = format!("{pace:.3} TB/s");
        let text = format!("{megabytes:.1} MB, {tbs}");
        by_tokens.entry(found.row.n).or_default().push(Point {
            x: megabytes,
            y: pace,
            title: title(name, &found, &text, launch(&found)),
        });
        lines.push(vec![
            name.to_owned(),
            found.row.n.to_string(),
            format!("{megabytes:.3}"),
            format!("{pace:.3}"),
            format!("{:.1} %", 100.0 * found.row.of_read(us)),
            place(&found),
        ]);
    }
    if by_tokens.is_empty() {
        return None;
    }
    let ceiling = Ceiling::of(measured);
    lines.push(vec![
        "read ceiling".to_owned(),
        String::new(),
        String::new(),
        format!("{:.3}", ceiling.tbs),
        String::new(),
        ceiling.place.clone(),
    ]);
    let points = by_tokens.values().flatten();
    let tbs = points.clone().map(|point| point.y).chain([ceiling.tbs]);
    let mut chart = Chart::new(
        "TB/s against size",
        format!(
            "Compressed bytes over {PLAN}, against compressed bytes; up to {MEMORY_BOUND} tokens, of which memory sets the pace."
        ),
        Axis::log("compressed MB", points.map(|point| point.x)),
        Axis::linear("TB/s of compressed bytes", tbs),
        Table {
            header: header([
                "layer",
                "tokens",
                "MB",
                "TB/s",
                "of the read ceiling",
                "from",
            ]),
            lines,
        },
    );
    let at = |x| Point {
        x,
        y: ceiling.tbs,
        title: String::new(),
    };
    let ends = chart.x_ends().map(at);
    chart.draw(&ceiling, Mark::Dashed, &ends);
    for (color, (n, points)) in by_tokens.iter().enumerate() {
        chart.draw(tokens(*n), Mark::Dots(color), points);
    }
    Some(chart)
}

/// The highest read ceiling of the files.
struct Ceiling {
    tbs: f64,
    place: String,
}

impl Ceiling {
    fn of(measured: &Measured) -> Self {
        let of_file = |File { path, report }: &File| Self {
            tbs: report.read_tbs,
            place: format!("the read ceiling of {}", path.display()),
        };
        let all = measured.files().iter().map(of_file);
        all.max_by(|a, b| a.tbs.total_cmp(&b.tbs)).expect("a file")
    }
}

impl fmt::Display for Ceiling {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "read ceiling, {:.3} TB/s", self.tbs)
    }
}

/// TFLOP/s over operations for each compressed byte, below what memory and cuBLAS reach.
fn roofline(measured: &Measured, rows: &Rows) -> Chart {
    let mut lines = Vec::new();
    let mut curves = Vec::new();
    for (name, of_layer) in &rows.layers {
        let mut points = Vec::new();
        for found in of_layer {
            let (layer, n) = (&found.row.layer, found.row.n);
            let us = found.row.kernels[0].best_us();
            let tflops = layer.tflops(n, us);
            // A microsecond's operations are the tera-operations of a second.
            let intensity = layer.tflops(n, 1.0) * 1e6 / layer.compressed_bytes as f64;
            let text = format!("{tflops:.1} TFLOP/s, {intensity:.2} FLOP/B");
            points.push(Point {
                x: intensity,
                y: tflops,
                title: title(name, found, &text, launch(found)),
            });
            lines.push(vec![
                name.clone(),
                n.to_string(),
                format!("{intensity:.2}"),
                format!("{us:.2}"),
                format!("{tflops:.1}"),
                place(found),
            ]);
        }
        curves.push((name.as_str(), points));
    }
    let ceiling = Ceiling::of(measured);
    let cublas = |found: Found<'_>| {
        let row = found.row;
        (row.layer.tflops(row.n, row.cublas_us), place(&found), row.n)
    };
    let all = measured.found().map(cublas);
    let (roof, roof_place, roof_n) = all.max_by(|a, b| a.0.total_cmp(&b.0)).expect("a row");
    lines.push(vec![
        "read ceiling, TB/s".to_owned(),
        String::new(),
        String::new(),
        String::new(),
        format!("{:.3}", ceiling.tbs),
        ceiling.place.clone(),
    ]);
    lines.push(vec![
        "best cuBLAS of all rows".to_owned(),
        roof_n.to_string(),
        String::new(),
        String::new(),
        format!("{roof:.1}"),
        roof_place,
    ]);
    let points = points_of(&curves);
    let x = Axis::log(
        "FLOP for each compressed byte",
        points.clone().map(|point| point.x),
    );
    let [left, right] = x.ends();
    // TB/s times operations for each byte are tera-operations a second.
    let bounds = [roof, ceiling.tbs * left];
    let y = Axis::log("TFLOP/s", points.map(|point| point.y).chain(bounds));
    let [_, top] = y.ends();
    let slope = [left, right.min(top / ceiling.tbs)];
    let mut chart = Chart::new(
        "Roofline",
        format!(
            "Operations over {PLAN}, against operations for each compressed byte. The flat roof is the \
             fastest multiplication by cuBLAS in the files, not what the device could do at most."
        ),
        x,
        y,
        Table {
            header: header(["layer", "tokens", "FLOP/B", "us", "TFLOP/s", "from"]),
            lines,
        },
    );
    let point = |x, y| Point {
        x,
        y,
        title: String::new(),
    };
    let slope = slope.map(|x| point(x, ceiling.tbs * x));
    chart.draw(&ceiling, Mark::Dashed, &slope);
    let roof_label = format!("best cuBLAS measured, {roof:.0} TFLOP/s");
    chart.draw(
        roof_label,
        Mark::Dotted,
        &[left, right].map(|x| point(x, roof)),
    );
    for (color, (name, points)) in curves.iter().enumerate() {
        chart.draw(name, Mark::Dots(color), points);
    }
    chart
}

/// The size of each layer, of its first row: other rows may be of other random weights.
fn compression(rows: &Rows) -> Table {
    let line = |(name, bf16, compressed, place): (&str, f64, f64, String)| {
        let bits = 16.0 * compressed / bf16;
        vec![
            name.to_owned(),
            format!("{:.3}", bf16 / 1e6),
            format!("{:.3}", compressed / 1e6),
            format!("{bits:.3}"),
            format!("{:.3}", bf16 / compressed),
            format!("{:.1} %", 100.0 * (1.0 - compressed / bf16)),
            place,
        ]
    };
    let of_layer = |(name, rows): &(String, Vec<Found>)| {
        let LayerInfo {
            rows: m,
            cols: k,
            compressed_bytes,
            ..
        } = rows[0].row.layer;
        let bf16 = 2.0 * m as f64 * k as f64;
        (name.clone(), bf16, compressed_bytes as f64, place(&rows[0]))
    };
    let layers: Vec<_> = rows.layers.iter().map(of_layer).collect();
    let bf16 = layers.iter().map(|layer| layer.1).sum();
    let compressed = layers.iter().map(|layer| layer.2).sum();
    let mut lines: Vec<_> = layers
        .into_iter()
        .map(|(name, bf16, compressed, place)| line((&name, bf16, compressed, place)))
        .collect();
    lines.push(line(("all", bf16, compressed, "the rows above".to_owned())));
    Table {
        header: header([
            "layer",
            "BF16 MB",
            "compressed MB",
            "bits a weight",
            "BF16 / compressed",
            "saved",
            "from",
        ]),
        lines,
    }
}
