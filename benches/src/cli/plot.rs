//! The speedups of `results --plot`, as SVG or PNG.

use std::{
    error::Error,
    ffi::OsStr,
    fmt::Display,
    path::{Path, PathBuf},
};

use plotters::{coord::Shift, drawing::DrawingAreaErrorKind, prelude::*, style::register_font};
use zipserv_bench::results::{MEMORY_BOUND, Mean, Measured};

use super::spare;

/// Width and height in pixels.
const SIZE: (u32, u32) = (960, 540);
const FONT: &str = "sans-serif";

/// Taken in turn by the models.
const COLORS: [RGBColor; 6] = [
    RGBColor(52, 101, 164),
    RGBColor(204, 82, 60),
    RGBColor(64, 140, 64),
    RGBColor(130, 80, 160),
    RGBColor(190, 140, 20),
    RGBColor(20, 140, 150),
];
const GREY: RGBColor = RGBColor(90, 90, 90);
/// How much of its color a curve has that is not the model's main one.
const LIGHT: f64 = 0.3;
const WIDTH: u32 = 2;

/// What comes of drawing on a backend.
type Drawn<B> = Result<(), DrawingAreaErrorKind<<B as DrawingBackend>::ErrorType>>;

/// A name that tells which kind of image it is for.
pub fn image(name: &str) -> Result<PathBuf, &'static str> {
    let path = PathBuf::from(name);
    match extension(&path) {
        Some("svg" | "png") => Ok(path),
        _ => Err("neither .svg nor .png"),
    }
}

fn extension(path: &Path) -> Option<&str> {
    path.extension().and_then(OsStr::to_str)
}

/// Draws x cuBLAS over the number of tokens to a file whose name [`image`] let through: for each model
/// the geometric mean of its layers, lighter with decompression followed by cuBLAS; dashed, what the
/// bytes allow over all layers.
pub fn save(measured: &Measured, path: &Path, force: bool) -> Result<(), Box<dyn Error>> {
    let at = |error: &dyn Display| format!("{}: {error}", path.display());
    spare(path, force)?;
    // A font of our own: there may be none on the system.
    register_font(FONT, FontStyle::Normal, epaint_default_fonts::UBUNTU_LIGHT)
        .map_err(|_| "the font cannot be read")?;
    match extension(path) {
        Some("svg") => draw(measured, SVGBackend::new(path, SIZE)).map_err(|e| at(&e))?,
        _ => draw(measured, BitMapBackend::new(path, SIZE)).map_err(|e| at(&e))?,
    }
    Ok(())
}

fn draw<B: DrawingBackend>(measured: &Measured, backend: B) -> Drawn<B> {
    let area = backend.into_drawing_area();
    area.fill(&WHITE)?;
    speedups(measured, &area)?;
    area.present()
}

fn speedups<B: DrawingBackend>(measured: &Measured, area: &DrawingArea<B, Shift>) -> Drawn<B> {
    let curve = |means: &[Mean], value: &dyn Fn(&Mean) -> Option<f64>| -> Vec<(f64, f64)> {
        let point = |mean: &Mean| Some((mean.n as f64, value(mean)?));
        means.iter().filter_map(point).collect()
    };
    let of_model = |model| {
        let means = measured.means(Some(model));
        let fused = curve(&means, &|mean| Some(mean.pdl));
        let decoupled = curve(&means, &|mean| mean.decoupled);
        (model, fused, decoupled)
    };
    let models: Vec<_> = measured.models().into_iter().map(of_model).collect();
    let limit = curve(&measured.means(None), &|mean| {
        (mean.n <= MEMORY_BOUND).then_some(mean.limit)
    });

    let curves = models
        .iter()
        .flat_map(|(_, fused, decoupled)| [fused, decoupled]);
    let values = curves.chain([&limit]).flatten().map(|&(_, value)| value);
    let (low, high) = values.fold((1.0, 1.0), |(low, high): (f64, f64), value| {
        (low.min(value), high.max(value))
    });
    let tokens: Vec<_> = measured.tokens().iter().map(|&n| n as f64).collect();
    // Room at both ends, also where there is one number only.
    let ends = tokens[0] / 1.3..tokens[tokens.len() - 1] * 1.3;

    let mut chart = ChartBuilder::on(area)
        .caption(format!("ZipGEMM on {}", measured.device()), (FONT, 24))
        .margin(16)
        .x_label_area_size(48)
        .y_label_area_size(64)
        .build_cartesian_2d(
            ends.clone().log_scale().with_key_points(tokens),
            low * 0.9..high * 1.05,
        )?;
    chart
        .configure_mesh()
        .max_light_lines(0)
        .x_desc("tokens")
        .y_desc("x cuBLAS, geometric mean of the layers")
        .x_label_formatter(&|tokens| format!("{tokens:.0}"))
        .y_label_formatter(&|speedup| format!("{speedup:.1}x"))
        .label_style((FONT, 16))
        .axis_desc_style((FONT, 18))
        .draw()?;
    chart.draw_series(LineSeries::new(
        [(ends.start, 1.0), (ends.end, 1.0)],
        BLACK.stroke_width(1),
    ))?;
    let key = |style: ShapeStyle| {
        move |(x, y): (i32, i32)| PathElement::new([(x, y), (x + 20, y)], style)
    };
    let mut any_decoupled = false;
    for ((_, _, decoupled), color) in models.iter().zip(COLORS.iter().cycle()) {
        any_decoupled |= !decoupled.is_empty();
        let style = color.mix(LIGHT).stroke_width(WIDTH);
        chart.draw_series(LineSeries::new(decoupled.clone(), style))?;
    }
    for ((model, fused, _), color) in models.iter().zip(COLORS.iter().cycle()) {
        let style = color.stroke_width(WIDTH);
        let line = LineSeries::new(fused.clone(), color.filled().stroke_width(WIDTH));
        chart
            .draw_series(line.point_size(3))?
            .label(*model)
            .legend(key(style));
    }
    if any_decoupled {
        let none: [(f64, f64); 0] = [];
        let style = GREY.mix(LIGHT).stroke_width(WIDTH);
        chart
            .draw_series(LineSeries::new(none, style))?
            .label("lighter: decompression, then cuBLAS")
            .legend(key(style));
    }
    if !limit.is_empty() {
        let style = GREY.stroke_width(WIDTH);
        chart
            .draw_series(DashedLineSeries::new(limit, 6, 4, style))?
            .label("dashed: compressed bytes at the read ceiling, all layers")
            .legend(key(style));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::LowerLeft)
        .background_style(WHITE.mix(0.8))
        .border_style(GREY)
        .label_font((FONT, 14))
        .draw()?;
    Ok(())
}
