use std::{
    collections::BTreeSet,
    error::Error,
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use zipserv::results::{Figure, GemmRow, LayerInfo, Mean, Report, means};

use super::{
    Outcome, console, markdown,
    plot::{self, Speedup},
};

/// Print what `bench` measured as Markdown tables, and plot it
#[derive(clap::Args)]
pub struct Results {
    /// Files that `bench --json` wrote, of one device; where several have the same layer and number
    /// of tokens, the last one counts
    #[arg(required = true)]
    files: Vec<PathBuf>,
    /// Draw the speedup of each model over the number of tokens, as .svg or .png
    #[arg(long, value_name = "FILE", value_parser = plot::image)]
    plot: Option<PathBuf>,
    /// Replace the plot if it exists
    #[arg(long)]
    force: bool,
}

impl Results {
    pub fn run(&self) -> Outcome {
        let measured = Measured::read(&self.files)?;
        if let Some(path) = &self.plot {
            plot::save(&Speedup(&measured), path, self.force)?;
        }
        console::print(markdown::tables(&measured))?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Multiplications from one file or several, all of one device.
pub struct Measured {
    pub device: String,
    /// Each layer and number of tokens once, in the order of the files.
    rows: Vec<GemmRow>,
}

impl Measured {
    /// Reads and merges files.
    fn read(paths: &[PathBuf]) -> Result<Self, Box<dyn Error>> {
        let mut all: Option<(Report, &Path)> = None;
        for path in paths {
            let at = |error: String| format!("{}: {error}", path.display());
            let json = fs::read(path).map_err(|error| at(error.to_string()))?;
            let report = parse(&json).map_err(at)?;
            match &mut all {
                None => all = Some((report, path)),
                Some((first, first_path)) => {
                    let on = |report: &Report| format!("{} ({})", report.device, report.kernels);
                    if on(&report) != on(first) {
                        let (this, other) = (on(&report), on(first));
                        let other = format!("{}, of {other}", first_path.display());
                        return Err(at(format!("of {this}, unlike {other}")).into());
                    }
                    first.gemm.extend(report.gemm);
                }
            }
        }
        let (report, _) = all.ok_or("no file")?;
        let mut measured = Self {
            device: report.device,
            rows: Vec::new(),
        };
        for row in report.gemm {
            let is_older = |old: &&mut GemmRow| old.n == row.n && is_same(&old.layer, &row.layer);
            match measured.rows.iter_mut().find(is_older) {
                Some(old) => *old = row,
                None => measured.rows.push(row),
            }
        }
        Ok(measured)
    }

    /// All layers.
    pub fn layers(&self) -> Vec<&LayerInfo> {
        let mut layers: Vec<&LayerInfo> = Vec::new();
        for GemmRow { layer, .. } in &self.rows {
            if !layers.iter().any(|known| is_same(known, layer)) {
                layers.push(layer);
            }
        }
        layers
    }

    /// All models.
    pub fn models(&self) -> Vec<&str> {
        let mut models: Vec<&str> = Vec::new();
        for LayerInfo { model, .. } in self.layers() {
            if !models.contains(&model.as_str()) {
                models.push(model);
            }
        }
        models
    }

    /// All numbers of tokens, in order.
    pub fn tokens(&self) -> Vec<usize> {
        let tokens: BTreeSet<usize> = self.rows.iter().map(|row| row.n).collect();
        tokens.into_iter().collect()
    }

    /// What was measured on a layer with so many tokens.
    pub fn row(&self, layer: &LayerInfo, n: usize) -> Option<&GemmRow> {
        let mut rows = self.rows.iter();
        rows.find(|row| row.n == n && is_same(&row.layer, layer))
    }

    /// Means over the layers of a model, or over all, for those numbers of tokens that each of them
    /// was measured with: means over other layers are no match.
    pub fn means(&self, model: Option<&str>) -> Vec<Mean> {
        let is_of = |layer: &LayerInfo| model.is_none_or(|model| layer.model == model);
        let layers = self.layers().into_iter().filter(|l| is_of(l)).count();
        let rows = self.rows.iter().filter(|row| is_of(&row.layer));
        let mut means = means(rows);
        means.retain(|mean| mean.layers == layers);
        means
    }
}

/// What is in a file, if it is fit for tables; otherwise, what is wrong with it.
fn parse(json: &[u8]) -> Result<Report, String> {
    let report: Report = serde_json::from_slice(json)
        .map_err(|error| format!("not what `bench --json` writes: {error}"))?;
    if report.gemm.is_empty() {
        return Err("no multiplication is in it".to_owned());
    }
    if !report.is_correct() {
        return Err("some outputs were wrong, so its times mean nothing".to_owned());
    }
    for GemmRow {
        layer,
        n,
        cublas_us,
        limit,
        decoupled,
        kernels,
        ..
    } in &report.gemm
    {
        let what = format!("{} {}, {n} tokens", layer.model, layer.name);
        let Some(kernel) = kernels.first() else {
            return Err(format!("{what}: no kernel"));
        };
        let of = |figure: &Figure| [figure.us, figure.of_read, figure.speedup];
        let mut figures = vec![*n as f64, *cublas_us, *limit];
        figures.extend(of(&kernel.plain));
        figures.extend(kernel.dependent.iter().flat_map(of));
        figures.extend(decoupled.iter().flat_map(|d| [d.us, d.speedup]));
        // Others cannot be true, and could not be drawn.
        if let Some(figure) = figures.iter().find(|at| !(1e-6..1e12).contains(*at)) {
            return Err(format!("{what}: {figure} cannot be a measurement"));
        }
    }
    Ok(report)
}

fn is_same(a: &LayerInfo, b: &LayerInfo) -> bool {
    (&a.model, &a.name, a.rows, a.cols) == (&b.model, &b.name, b.rows, b.cols)
}
