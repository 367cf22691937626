//! Two runs beside one another.

use super::{
    LayerInfo, Measured,
    markdown::{self, Table, Titled},
    report::geometric_mean,
};

/// How many times as fast the plan's kernels are in `b` as in `a`, for each layer and number of tokens
/// that both have. Runs differ by some percent, as the last line shows, for cuBLAS is the same in both;
/// `gemm --ptx A --ptx B` compares in one run.
pub fn diff(a: &Measured, b: &Measured) -> Titled {
    let tokens: Vec<usize> = a.tokens();
    // Of the kernel, and of cuBLAS.
    let ratios = |layer: &LayerInfo, n: usize| {
        let (a, b) = (a.row(layer, n)?, b.row(layer, n)?);
        let ours = a.kernels[0].best_us() / b.kernels[0].best_us();
        Some([ours, a.cublas_us / b.cublas_us])
    };
    let layers = a.layers();
    let cell = |ratio: Option<f64>| ratio.map_or(String::new(), |ratio| format!("{ratio:.3}x"));
    let of_layer = |layer: &&LayerInfo| {
        let mut cells = vec![markdown::name(layer)];
        cells.extend(
            tokens
                .iter()
                .map(|&n| cell(ratios(layer, n).map(|ratios| ratios[0]))),
        );
        cells
    };
    let mut lines: Vec<_> = layers.iter().map(of_layer).collect();
    for (name, which) in [("**geometric mean**", 0), ("geometric mean of cuBLAS", 1)] {
        let mut cells = vec![name.to_owned()];
        cells.extend(tokens.iter().map(|&n| {
            let all = layers.iter().filter_map(|layer| ratios(layer, n));
            let all: Vec<f64> = all.map(|ratios| ratios[which]).collect();
            cell((!all.is_empty()).then(|| geometric_mean(all.into_iter())))
        }));
        lines.push(cells);
    }
    Titled {
        title: format!("How many times as fast {} is as {}", what(b), what(a)),
        table: Table::new(markdown::header(&tokens), lines),
    }
}

/// A file, and what its kernels are.
fn what(measured: &Measured) -> String {
    let file = &measured.files()[0];
    let crc32 = file.report.ptx_crc32;
    let ptx = crc32.map_or("not told".to_owned(), |crc32| format!("{crc32:08x}"));
    let commit = file.report.commit.as_deref().unwrap_or("not told");
    format!("{} (PTX {ptx}, commit {commit})", file.path.display())
}
