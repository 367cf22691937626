//! What `gemm` measured, read from its files.

use std::{
    collections::BTreeSet,
    error::Error,
    fs,
    path::{Path, PathBuf},
    rc::Rc,
};

use super::{DecompressRow, GemmRow, LayerInfo, MEMORY_BOUND, Mean, Report, means};

/// Multiplications from one file or several, all of one device.
pub struct Measured {
    /// At least one.
    files: Rc<[File]>,
    /// Each layer and number of tokens once, in the order of the files.
    places: Vec<Place>,
}

/// A file that was read.
pub struct File {
    /// Its name.
    pub path: PathBuf,
    /// What is in it.
    pub report: Report,
}

/// Where a multiplication is: which file, and which of its `gemm`.
#[derive(Clone, Copy)]
struct Place {
    file: usize,
    index: usize,
}

/// A multiplication, or another row, and where it was read.
pub struct Found<'a, Row = GemmRow> {
    /// The row.
    pub row: &'a Row,
    /// Its file.
    pub path: &'a Path,
    /// Which of the file's `gemm` it is, or of the list that has such rows.
    pub index: usize,
}

/// What sets a file's figures apart from a plain run's.
fn how(report: &Report) -> String {
    let tuned = report.tuned.then_some(", tuned");
    let sustained = report.sustained_s.and(Some(", sustained"));
    tuned.into_iter().chain(sustained).collect()
}

/// What files of one table have in common.
pub(super) fn kind(report: &Report) -> String {
    format!("{} ({}{})", report.device, report.kernels, how(report))
}

impl<Row> Clone for Found<'_, Row> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<Row> Copy for Found<'_, Row> {}

impl Measured {
    /// Reads and merges files.
    ///
    /// # Errors
    /// When a file cannot be read, has wrong outputs or impossible figures, or is of another device than
    /// the first.
    pub fn read(paths: &[PathBuf]) -> Result<Self, Box<dyn Error>> {
        let mut files: Vec<File> = Vec::new();
        for path in paths {
            let at = |error: String| format!("{}: {error}", path.display());
            let json = fs::read(path).map_err(|error| at(error.to_string()))?;
            let report = parse(&json).map_err(at)?;
            if let Some(first) = files.first() {
                let (this, other) = (kind(&report), kind(&first.report));
                if this != other {
                    let other = format!("{}, of {other}", first.path.display());
                    return Err(at(format!("of {this}, unlike {other}")).into());
                }
            }
            let path = path.clone();
            files.push(File { path, report });
        }
        if files.is_empty() {
            return Err("no file that `gemm --json` wrote".into());
        }
        let places = places(&files, |_| true);
        let files = files.into();
        Ok(Self { files, places })
    }

    /// The multiplications beside which the published kernel was measured, if there are any.
    pub fn with_published(&self) -> Option<Self> {
        self.only(|row| row.published.is_some())
    }

    /// Those beside which the batch-invariant plan was measured.
    pub fn with_invariant(&self) -> Option<Self> {
        self.only(|row| row.invariant.is_some())
    }

    /// Those of which floating-point operations set the pace.
    pub fn with_many_tokens(&self) -> Option<Self> {
        self.only(|row| row.n > MEMORY_BOUND)
    }

    /// What is left where only some rows count: a row that another one has replaced counts again if
    /// the other one does not.
    fn only(&self, counts: impl Fn(&GemmRow) -> bool) -> Option<Self> {
        let files = self.files.clone();
        let places = places(&files, counts);
        (!places.is_empty()).then_some(Self { files, places })
    }

    /// The files, in order.
    pub fn files(&self) -> &[File] {
        &self.files
    }

    /// The device that all files are of.
    pub fn device(&self) -> &str {
        &self.files[0].report.device
    }

    /// What sets their figures apart from a plain run's, to be put behind a name.
    pub fn how(&self) -> String {
        how(&self.files[0].report)
    }

    /// All multiplications that count.
    pub fn found(&self) -> impl Iterator<Item = Found<'_>> {
        self.places.iter().map(|&Place { file, index }| {
            let File { path, report } = &self.files[file];
            Found {
                row: &report.gemm[index],
                path,
                index,
            }
        })
    }

    fn rows(&self) -> impl Iterator<Item = &GemmRow> {
        self.found().map(|found| found.row)
    }

    /// All layers.
    pub fn layers(&self) -> Vec<&LayerInfo> {
        let mut layers: Vec<&LayerInfo> = Vec::new();
        for GemmRow { layer, .. } in self.rows() {
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
        let tokens: BTreeSet<usize> = self.rows().map(|row| row.n).collect();
        tokens.into_iter().collect()
    }

    /// What was measured on a layer with so many tokens.
    pub fn row(&self, layer: &LayerInfo, n: usize) -> Option<&GemmRow> {
        self.rows()
            .find(|row| row.n == n && is_same(&row.layer, layer))
    }

    /// The multiplication whose dispatch takes the longest, compared with the better of fused and
    /// decoupled, and how much longer.
    pub fn worst_dispatch(&self) -> Option<(&GemmRow, f64)> {
        let regrets = self.rows().filter_map(|row| Some((row, row.regret()?)));
        regrets.max_by(|a, b| a.1.total_cmp(&b.1))
    }

    /// How fast a layer was restored, and from the published layout: what the last file says that
    /// has both.
    pub fn decompress(&self, layer: &LayerInfo) -> Option<Found<'_, DecompressRow>> {
        self.files.iter().rev().find_map(|File { path, report }| {
            let is_wanted =
                |row: &DecompressRow| row.published.is_some() && is_same(&row.layer, layer);
            let index = report.decompress.iter().position(is_wanted)?;
            let row = &report.decompress[index];
            Some(Found { row, path, index })
        })
    }

    /// Means over the layers of a model, or over all, for those numbers of tokens that each of them
    /// was measured with: means over other layers are no match.
    pub fn means(&self, model: Option<&str>) -> Vec<Mean> {
        let is_of = |layer: &LayerInfo| model.is_none_or(|model| layer.model == model);
        let layers = self.layers().into_iter().filter(|l| is_of(l)).count();
        let rows = self.rows().filter(|row| is_of(&row.layer));
        let mut means = means(rows);
        means.retain(|mean| mean.layers == layers);
        means
    }
}

/// Where the rows are that count, each layer and number of tokens once.
fn places(files: &[File], counts: impl Fn(&GemmRow) -> bool) -> Vec<Place> {
    let mut places: Vec<Place> = Vec::new();
    for (file, File { report, .. }) in files.iter().enumerate() {
        let rows = report.gemm.iter().enumerate();
        for (index, row) in rows.filter(|(_, row)| counts(row)) {
            let place = Place { file, index };
            let is_older = |old: &&mut Place| {
                let old = &files[old.file].report.gemm[old.index];
                old.n == row.n && is_same(&old.layer, &row.layer)
            };
            match places.iter_mut().find(is_older) {
                Some(old) => *old = place,
                None => places.push(place),
            }
        }
    }
    places
}

/// What is in a file, if it is fit for tables; otherwise, what is wrong with it.
pub(super) fn parse(json: &[u8]) -> Result<Report, String> {
    let report = Report::from_json(json)
        .map_err(|error| format!("not what `gemm --json` writes: {error}"))?;
    if report.gemm.is_empty() {
        return Err("no multiplication is in it".to_owned());
    }
    if !report.is_correct() {
        return Err("some outputs were wrong, so its times mean nothing".to_owned());
    }
    // Others cannot be true, and could not be drawn.
    let possible = |figure: &f64| (1e-6..1e12).contains(figure);
    let read = report.read_tbs;
    if !possible(&read) {
        return Err(format!("the read ceiling: {read} cannot be a measurement"));
    }
    for GemmRow {
        layer,
        n,
        cublas_us,
        decoupled,
        published,
        kernels,
        dispatch,
        invariant,
        ..
    } in &report.gemm
    {
        let what = format!("{} {}, {n} tokens", layer.model, layer.name);
        let Some(kernel) = kernels.first() else {
            return Err(format!("{what}: no kernel"));
        };
        let mut figures = vec![*n as f64, *cublas_us];
        figures.extend([layer.rows, layer.cols, layer.compressed_bytes].map(|of| of as f64));
        figures.push(kernel.plain_us);
        figures.extend(kernel.pdl_us);
        figures.extend(decoupled.iter().map(|decoupled| decoupled.us));
        figures.extend(dispatch.iter().map(|dispatch| dispatch.us));
        figures.extend(published.iter().map(|published| published.us));
        figures.extend(invariant.iter().map(|invariant| invariant.plain_us));
        figures.extend(invariant.iter().filter_map(|invariant| invariant.pdl_us));
        if let Some(figure) = figures.iter().find(|figure| !possible(figure)) {
            return Err(format!("{what}: {figure} cannot be a measurement"));
        }
    }
    for DecompressRow {
        layer,
        us,
        published,
        ..
    } in &report.decompress
    {
        let mut figures = [*us]
            .into_iter()
            .chain(published.map(|published| published.us));
        if let Some(figure) = figures.find(|figure| !possible(figure)) {
            let what = format!("{} {}, decompression", layer.model, layer.name);
            return Err(format!("{what}: {figure} cannot be a measurement"));
        }
    }
    Ok(report)
}

/// Whether a layer is the same, of whatever random weights.
pub fn is_same(a: &LayerInfo, b: &LayerInfo) -> bool {
    (&a.model, &a.name, a.rows, a.cols) == (&b.model, &b.name, b.rows, b.cols)
}
