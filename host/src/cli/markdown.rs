//! The tables of `results`.

use zipserv::results::{
    GemmRow, InvariantMean, LayerInfo, MEMORY_BOUND, Mean, PublishedMean, TuningMean, TuningTable,
};

use super::measured::Measured;

/// Tokens for which the first table says what bounds the speedup, and how near it is.
const LIMIT_AT: usize = 8;

/// Speedups, then, where there are many tokens, TFLOP/s.
pub fn tables(measured: &Measured) -> String {
    let device = measured.device();
    let speedups = speedups(measured);
    let tuned = if measured.is_tuned() { ", tuned" } else { "" };
    let mut text = format!("ZipGEMM{tuned}, x cuBLAS, on {device}:\n\n{speedups}");
    let many = measured.tokens().into_iter().filter(|&n| n > MEMORY_BOUND);
    let many: Vec<_> = many.collect();
    if !many.is_empty() {
        let tflops = tflops(measured, &many);
        text +=
            &format!("\n\nTFLOP/s of ZipGEMM / decompression, then cuBLAS / cuBLAS:\n\n{tflops}");
    }
    if let Some((row, regret)) = measured.worst_dispatch() {
        let (layer, n) = (name(&row.layer), row.n);
        text += &format!(
            "\n\nWith memory for dense weights, the plan takes {regret:.3} times as long as the \
             better of both ways at worst ({layer}, N={n}).",
        );
    }
    let tokens = tokens_with(measured, |row| row.invariant.is_some());
    if !tokens.is_empty() {
        let invariant = invariant(measured, &tokens);
        text += &format!("\n\nBatch-invariant, x cuBLAS:\n\n{invariant}");
    }
    let tokens = tokens_with(measured, |row| row.published.is_some());
    if !tokens.is_empty() {
        let published = published(measured, &tokens);
        text += &format!(
            "\n\nx ZipServ as published, launched plainly like it; decompression in GB/s of BF16, \
             and bits a weight, of ours / as published:\n\n{published}"
        );
    }
    text
}

/// What tuning lifts the geometric mean by: times, and so speedups over anything else.
pub fn tuning(table: &TuningTable) -> String {
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
    let means = table.means().into_iter().map(line).collect();
    let means = self::table(header.map(str::to_owned).to_vec(), means);
    format!("Tuned launches on {}:\n\n{means}", table.key().device)
}

/// Numbers of tokens of which some row is as asked for.
fn tokens_with(measured: &Measured, is_wanted: impl Fn(&GemmRow) -> bool) -> Vec<usize> {
    let tokens = measured.tokens().into_iter().filter(|&n| {
        let layers = measured.layers().into_iter();
        let mut rows = layers.filter_map(|layer| measured.row(layer, n));
        rows.any(&is_wanted)
    });
    tokens.collect()
}

fn speedups(measured: &Measured) -> String {
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
        let speedup = |row: &GemmRow| speedup(row.kernels[0].best().speedup);
        cells.extend(tokens.iter().map(|&n| cell(row(n).map(speedup))));
        if with_limit {
            let row = row(LIMIT_AT);
            let of_read = |row: &GemmRow| 100.0 * row.kernels[0].best().of_read;
            cells.push(cell(row.map(|row| self::speedup(row.limit))));
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
    of_all("geometric mean", true, &|mean| Some(mean.dependent));
    of_all("without dependent launch", false, &|mean| {
        (mean.plain != mean.dependent).then_some(mean.plain)
    });
    of_all("decompression, then cuBLAS", false, &|mean| mean.decoupled);
    of_all(
        "if compressed bytes moved at the read ceiling",
        false,
        &|mean| (mean.n <= MEMORY_BOUND).then_some(mean.limit),
    );
    table(header, lines)
}

fn tflops(measured: &Measured, tokens: &[usize]) -> String {
    let of_layer = |layer: &LayerInfo| {
        let cell = |&n: &usize| {
            cell(measured.row(layer, n).map(|row| {
                let tflops = |us: f64| format!("{:.0}", layer.tflops(n, us));
                let decoupled = row.decoupled.as_ref().map(|decoupled| decoupled.us);
                let decoupled = decoupled.map_or("-".to_owned(), tflops);
                let ours = tflops(row.kernels[0].best().us);
                format!("{ours} / {decoupled} / {}", tflops(row.cublas_us))
            }))
        };
        let mut cells = vec![name(layer)];
        cells.extend(tokens.iter().map(cell));
        cells
    };
    let lines = measured.layers().into_iter().map(of_layer).collect();
    table(header(tokens), lines)
}

/// The batch-invariant plans, and beside those of the dispatch.
fn invariant(measured: &Measured, tokens: &[usize]) -> String {
    let of_layer = |layer: &LayerInfo| {
        let best = |&n: &usize| {
            let invariant = measured.row(layer, n)?.invariant.as_ref()?;
            Some(speedup(invariant.best().speedup))
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
    of_all("geometric mean", &|_, invariant| invariant.dependent);
    of_all("without dependent launch", &|_, invariant| invariant.plain);
    of_all("x the plan's own kernels", &|mean, invariant| {
        invariant.dependent / mean.dependent
    });
    table(header(tokens), lines)
}

/// Beside ZipServ as published.
fn published(measured: &Measured, tokens: &[usize]) -> String {
    let mut header = header(tokens);
    header.push("decompression".to_owned());
    header.push("bits a weight".to_owned());
    let of_layer = |layer: &LayerInfo| {
        let row = |&n: &usize| measured.row(layer, n);
        let ratio = |row: &GemmRow| {
            let published = row.published.as_ref()?;
            Some(speedup(published.speedup_of(row.kernels[0].plain.us)))
        };
        let mut cells = vec![name(layer)];
        cells.extend(tokens.iter().map(|n| cell(row(n).and_then(ratio))));
        let restored = measured.decompress(layer).and_then(|row| {
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
    of_all("with dependent launch", &|mean| mean.dependent);
    of_all("ZipServ as published, x cuBLAS", &|mean| mean.speedup);
    table(header, lines)
}

/// The first column's and those of the numbers of tokens.
fn header(tokens: &[usize]) -> Vec<String> {
    let mut cells = vec!["layer (M x K)".to_owned()];
    cells.extend(tokens.iter().map(usize::to_string));
    cells[1].insert_str(0, "N=");
    cells
}

fn name(layer: &LayerInfo) -> String {
    let LayerInfo {
        model,
        name,
        rows,
        cols,
        ..
    } = layer;
    format!("{model} {name} {rows} x {cols}")
}

fn speedup(value: f64) -> String {
    format!("{value:.2}x")
}

/// Nothing where nothing was measured.
fn cell(text: Option<String>) -> String {
    text.unwrap_or_default()
}

/// Lines shorter than the header are filled up.
fn table(header: Vec<String>, lines: Vec<Vec<String>>) -> String {
    let columns = header.len();
    let rule = vec!["---".to_owned(); columns];
    let line = |mut cells: Vec<String>| {
        cells.resize(columns, String::new());
        format!("| {} |", cells.join(" | "))
    };
    let lines = [header, rule].into_iter().chain(lines).map(line);
    lines.collect::<Vec<_>>().join("\n")
}
