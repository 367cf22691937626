//! Plots, as SVG or PNG.

mod exponents;

use std::{
    error::Error,
    ffi::OsStr,
    fmt::Display,
    path::{Path, PathBuf},
};

use plotters::{coord::Shift, drawing::DrawingAreaErrorKind, prelude::*, style::register_font};

pub use exponents::Exponents;

use super::spare;

/// Width and height in pixels.
const SIZE: (u32, u32) = (960, 540);
const FONT: &str = "sans-serif";

/// What comes of drawing on a backend.
type Drawn<B> = Result<(), DrawingAreaErrorKind<<B as DrawingBackend>::ErrorType>>;

/// Something that can be drawn.
pub trait Drawing {
    /// Draws it on a white area of [`SIZE`].
    fn draw<B: DrawingBackend>(&self, area: &DrawingArea<B, Shift>) -> Drawn<B>;
}

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

/// Writes a plot to a file whose name [`image`] let through.
pub fn save(drawing: &impl Drawing, path: &Path, force: bool) -> Result<(), Box<dyn Error>> {
    let at = |error: &dyn Display| format!("{}: {error}", path.display());
    spare(path, force)?;
    // A font of our own: there may be none on the system.
    register_font(FONT, FontStyle::Normal, epaint_default_fonts::UBUNTU_LIGHT)
        .map_err(|_| "the font cannot be read")?;
    match extension(path) {
        Some("svg") => draw(drawing, SVGBackend::new(path, SIZE)).map_err(|e| at(&e))?,
        _ => draw(drawing, BitMapBackend::new(path, SIZE)).map_err(|e| at(&e))?,
    }
    Ok(())
}

fn draw<B: DrawingBackend>(drawing: &impl Drawing, backend: B) -> Drawn<B> {
    let area = backend.into_drawing_area();
    area.fill(&WHITE)?;
    drawing.draw(&area)?;
    area.present()
}
