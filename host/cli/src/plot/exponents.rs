//! The exponent histogram of `inspect --plot`.

use plotters::{coord::Shift, prelude::*};
use zipserv::Histogram;

use super::{Drawing, Drawn, FONT};

const WINDOW: u8 = 8;
const BIAS: i32 = 127;
const BAR: RGBColor = RGBColor(52, 101, 164);
const OUTLIER: RGBColor = RGBColor(204, 82, 60);
const SHADE: RGBColor = RGBColor(226, 234, 244);

/// How often each exponent occurs, with the window that covers the most of them. There is at least
/// one.
pub struct Exponents<'a>(pub &'a Histogram);

impl Drawing for Exponents<'_> {
    fn draw<B: DrawingBackend>(&self, area: &DrawingArea<B, Shift>) -> Drawn<B> {
        let exponents = self.0;
        let share = |exponent: i32| {
            let count = exponents.counts()[exponent as usize];
            100.0 * count as f64 / exponents.total() as f64
        };
        let base = i32::from(exponents.window().base);
        let window = base..base + i32::from(WINDOW);
        // Far exponents are too rare to be seen.
        let seen = || (0..256).filter(|&exponent| share(exponent) > 0.01);
        let first = seen().next().map_or(base, |first| first.min(base)) - 1;
        let last = seen().next_back().map_or(base, |last| last.max(window.end)) + 1;
        let top = seen().map(share).fold(0.0, f64::max) * 1.1;

        let title = format!(
            "{} weights, {:.2} % in the window of 8 exponents from 2^{}",
            exponents.total(),
            100.0 * exponents.coverage(),
            base - BIAS,
        );
        let edge = |exponent: i32| f64::from(exponent - BIAS) - 0.5;
        let mut chart = ChartBuilder::on(area)
            .caption(title, (FONT, 24))
            .margin(16)
            .x_label_area_size(48)
            .y_label_area_size(64)
            .build_cartesian_2d(edge(first)..edge(last + 1), 0.0..top)?;
        chart.draw_series([Rectangle::new(
            [(edge(window.start), 0.0), (edge(window.end), top)],
            SHADE.filled(),
        )])?;
        chart
            .configure_mesh()
            .disable_x_mesh()
            .max_light_lines(0)
            .x_desc("exponent (power of two)")
            .y_desc("% of weights")
            .x_labels((last - first) as usize)
            .x_label_formatter(&|exponent| format!("{exponent:.0}"))
            .label_style((FONT, 16))
            .axis_desc_style((FONT, 18))
            .draw()?;
        chart.draw_series((first.max(0)..=last.min(255)).map(|exponent| {
            let color = if window.contains(&exponent) {
                BAR
            } else {
                OUTLIER
            };
            let corners = [
                (edge(exponent) + 0.1, 0.0),
                (edge(exponent + 1) - 0.1, share(exponent)),
            ];
            Rectangle::new(corners, color.filled())
        }))?;
        Ok(())
    }
}
