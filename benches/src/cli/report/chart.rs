//! Charts as the page draws them: inline SVG, whose colors are the page's.

use std::fmt::Display;

use serde::Serialize;

use zipserv_bench::results::markdown::Table;

/// Width and height, and the edges of the plane, in units of the SVG.
const WIDTH: f64 = 440.0;
const HEIGHT: f64 = 300.0;
const LEFT: f64 = 48.0;
const RIGHT: f64 = WIDTH - 12.0;
const TOP: f64 = 12.0;
const BOTTOM: f64 = HEIGHT - 42.0;
/// Room that a character of a label takes.
const CHARACTER: f64 = 7.0;
/// Colors that the page has.
const COLORS: usize = 8;
/// Room beyond the smallest and the largest value of a logarithmic axis, as a factor.
const ROOM: f64 = 1.25;

/// An axis from its lowest value to its highest.
pub struct Axis {
    label: &'static str,
    low: f64,
    high: f64,
    is_log: bool,
    ticks: Vec<(f64, String)>,
}

impl Axis {
    /// From 0, in round steps.
    pub fn linear(label: &'static str, values: impl Iterator<Item = f64>) -> Self {
        let high = values.fold(f64::MIN_POSITIVE, f64::max);
        let power = high.log10().floor() as i32 - 1;
        let steps = [power, power + 1]
            .into_iter()
            .flat_map(|power| [1.0, 2.0, 5.0].map(|first| (first * 10f64.powi(power), power)));
        let (step, power) = steps
            .into_iter()
            .find(|(step, _)| high / step <= 6.0)
            .unwrap_or((high, power));
        let count = (high / step).ceil() as usize;
        let tick = |i: usize| (i as f64 * step, decimal(i as f64 * step, power));
        Self {
            label,
            low: 0.0,
            high: count as f64 * step,
            is_log: false,
            ticks: (0..=count).map(tick).collect(),
        }
    }

    /// Logarithmic, with the roundest ticks of which it has two.
    pub fn log(label: &'static str, values: impl Iterator<Item = f64> + Clone) -> Self {
        let mut axis = Self::log_at(label, values);
        let range = axis.low..axis.high;
        let powers = range.start.log10().floor() as i32..=range.end.log10().floor() as i32;
        let ticks = |firsts: &[u8]| -> Vec<(f64, String)> {
            let values = powers.clone().flat_map(|power| {
                let value = |&first| (f64::from(first) * 10f64.powi(power), power);
                firsts.iter().map(value).collect::<Vec<_>>()
            });
            let values = values.filter(|(value, _)| range.contains(value));
            values.map(|(at, power)| (at, decimal(at, power))).collect()
        };
        let all = [
            ticks(&[1]),
            ticks(&[1, 2, 5]),
            ticks(&[1, 2, 3, 4, 5, 6, 7, 8, 9]),
        ];
        let fewest = all.iter().find(|ticks| ticks.len() >= 2);
        axis.ticks = fewest.unwrap_or(&all[2]).clone();
        axis
    }

    /// Logarithmic, with ticks at the values themselves, of which there must be one.
    pub fn log_at(label: &'static str, values: impl Iterator<Item = f64> + Clone) -> Self {
        let low = values.clone().fold(f64::INFINITY, f64::min) / ROOM;
        let high = values.clone().fold(0.0, f64::max) * ROOM;
        let mut ticks: Vec<f64> = values.collect();
        ticks.sort_by(f64::total_cmp);
        ticks.dedup();
        Self {
            label,
            low,
            high,
            is_log: true,
            ticks: ticks.into_iter().map(|at| (at, at.to_string())).collect(),
        }
    }

    /// The lowest and the highest value.
    pub fn ends(&self) -> [f64; 2] {
        [self.low, self.high]
    }

    /// Where a value is, of the axis's length.
    fn share(&self, value: f64) -> f64 {
        match self.is_log {
            true => (value / self.low).ln() / (self.high / self.low).ln(),
            false => (value - self.low) / (self.high - self.low),
        }
    }
}

/// A value as exact as its power of ten.
fn decimal(value: f64, power: i32) -> String {
    let digits = usize::try_from(-power).unwrap_or(0);
    format!("{value:.digits$}")
}

/// A value in a chart, and what a pointer that rests on it is told.
#[derive(Clone)]
pub struct Point {
    pub x: f64,
    pub y: f64,
    pub title: String,
}

/// What the template draws.
#[derive(Serialize)]
pub struct Chart {
    width: f64,
    height: f64,
    left: f64,
    right: f64,
    top: f64,
    bottom: f64,
    title: &'static str,
    note: String,
    x_label: &'static str,
    y_label: &'static str,
    x_ticks: Vec<Tick>,
    y_ticks: Vec<Tick>,
    series: Vec<Series>,
    table: Table,
    #[serde(skip)]
    axes: (Axis, Axis),
}

#[derive(Serialize)]
struct Tick {
    at: String,
    label: Option<String>,
}

#[derive(Serialize)]
struct Series {
    label: String,
    /// Its class, which is its color or its kind of line.
    class: String,
    /// The points that a line joins, none where no line does.
    line: String,
    points: Vec<Dot>,
}

#[derive(Serialize)]
struct Dot {
    x: String,
    y: String,
    title: String,
}

/// How the points of a series are drawn.
pub enum Mark {
    /// Dots of the color that has this number.
    Dots(usize),
    /// Such dots, joined.
    Joined(usize),
    /// Dots of the text's color, joined.
    Strong,
    /// Dots joined by a line of dashes and dots: what cannot be exceeded.
    Bound,
    /// A dashed line alone.
    Dashed,
    /// A dotted line alone.
    Dotted,
}

impl Chart {
    pub fn new(title: &'static str, note: String, x: Axis, y: Axis, table: Table) -> Self {
        let mut free = f64::NEG_INFINITY;
        let x_ticks = x.ticks.iter().map(|(value, label)| {
            let at = across(&x, *value);
            let half = label.len() as f64 * CHARACTER / 2.0;
            let fits = at - half >= free;
            if fits {
                free = at + half + CHARACTER;
            }
            let label = fits.then(|| label.clone());
            Tick {
                at: unit(at),
                label,
            }
        });
        let x_ticks = x_ticks.collect();
        let y_ticks = y.ticks.iter().map(|(value, label)| Tick {
            at: unit(up(&y, *value)),
            label: Some(label.clone()),
        });
        Self {
            width: WIDTH,
            height: HEIGHT,
            left: LEFT,
            right: RIGHT,
            top: TOP,
            bottom: BOTTOM,
            title,
            note,
            x_label: x.label,
            y_label: y.label,
            x_ticks,
            y_ticks: y_ticks.collect(),
            series: Vec::new(),
            table,
            axes: (x, y),
        }
    }

    /// The lowest and the highest value across.
    pub fn x_ends(&self) -> [f64; 2] {
        self.axes.0.ends()
    }

    /// Draws points over those that are there.
    pub fn draw(&mut self, label: impl Display, mark: Mark, points: &[Point]) {
        if points.is_empty() {
            return;
        }
        let (x, y) = &self.axes;
        let (class, has_line, has_dots) = match mark {
            Mark::Dots(color) => (format!("c{}", color % COLORS), false, true),
            Mark::Joined(color) => (format!("c{}", color % COLORS), true, true),
            Mark::Strong => ("strong".to_owned(), true, true),
            Mark::Bound => ("bound".to_owned(), true, true),
            Mark::Dashed => ("dashed".to_owned(), true, false),
            Mark::Dotted => ("dotted".to_owned(), true, false),
        };
        let dots = points.iter().map(|point| Dot {
            x: unit(across(x, point.x)),
            y: unit(up(y, point.y)),
            title: point.title.clone(),
        });
        let dots: Vec<_> = dots.collect();
        let line: Vec<_> = dots
            .iter()
            .map(|dot| format!("{},{}", dot.x, dot.y))
            .collect();
        self.series.push(Series {
            label: label.to_string(),
            class,
            line: if has_line {
                line.join(" ")
            } else {
                String::new()
            },
            points: if has_dots { dots } else { Vec::new() },
        });
    }
}

fn across(axis: &Axis, value: f64) -> f64 {
    LEFT + axis.share(value) * (RIGHT - LEFT)
}

fn up(axis: &Axis, value: f64) -> f64 {
    BOTTOM - axis.share(value) * (BOTTOM - TOP)
}

/// As exact as it can be seen.
fn unit(at: f64) -> String {
    format!("{at:.1}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(axis: &Axis) -> Vec<&str> {
        axis.ticks.iter().map(|(_, label)| label.as_str()).collect()
    }

    #[test]
    fn round_ticks() {
        let axis = Axis::linear("", [0.3, 1.7].into_iter());
        assert_eq!(labels(&axis), ["0.0", "0.5", "1.0", "1.5", "2.0"]);
        assert_eq!(axis.share(1.0), 0.5);
        let axis = Axis::linear("", [1e11].into_iter());
        assert!((3..=7).contains(&axis.ticks.len()));
        let axis = Axis::log("", [0.3, 3.0].into_iter());
        assert_eq!(labels(&axis), ["0.5", "1", "2"]);
        let axis = Axis::log("", [3.0, 3e4].into_iter());
        assert_eq!(labels(&axis), ["10", "100", "1000", "10000"]);
        let axis = Axis::log("", [80.0, 100.0].into_iter());
        assert_eq!(labels(&axis), ["70", "80", "90", "100"]);
        let axis = Axis::log_at("", [8.0, 2.0, 8.0].into_iter());
        assert_eq!(labels(&axis), ["2", "8"]);
        assert!((axis.share(4.0) - 0.5).abs() < 1e-12);
    }
}
