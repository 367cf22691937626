//! Whole models, as the harnesses in `python/benches` time them.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;

use super::markdown::Table;

/// What such a harness writes.
#[derive(Deserialize)]
pub struct Serving {
    /// What served the model, and its version.
    pub server: String,
    /// Names and drivers.
    pub devices: Vec<String>,
    /// The day, UTC.
    pub date: String,
    /// The commit that was built.
    pub commit: String,
    /// Whose shape the model has.
    pub shape: String,
    /// Tokens before the first step.
    pub context: usize,
    /// GPUs that a model is split over.
    #[serde(default)]
    pub tensor_parallel: Option<usize>,
    /// Each start of the server.
    pub rows: Vec<Start>,
}

/// One process.
#[derive(Deserialize)]
pub struct Start {
    /// Of the weights: `dense`, or how they are compressed.
    pub form: String,
    /// Milliseconds a decode step, by the requests at a time.
    pub steps_ms: BTreeMap<usize, f64>,
    /// What else was measured of the model.
    #[serde(flatten)]
    pub figures: Figures,
}

/// Figures of a start that not every harness has.
#[derive(Deserialize)]
pub struct Figures {
    /// Milliseconds to the first token of 8 requests of 512.
    pub prefill_8x512_ms: Option<f64>,
    /// Bytes of GPU memory that weights take.
    pub weights_bytes: Option<f64>,
    /// The most bytes while they were loaded.
    pub peak_bytes: Option<f64>,
    /// Tokens that the cache of keys and values has room for.
    pub cache_tokens: Option<f64>,
    /// Seconds to load the weights.
    pub load_s: Option<f64>,
}

/// What a figure is called, how to get it in the unit that it is told in, and its digits.
type Figure = (&'static str, fn(&Figures) -> Option<f64>, usize);

const FIGURES: [Figure; 5] = [
    ("prefill of 8 x 512 tokens, ms", |f| f.prefill_8x512_ms, 1),
    ("weights, GB", |f| f.weights_bytes.map(|b| b / 1e9), 2),
    (
        "peak while loading, GB",
        |f| f.peak_bytes.map(|b| b / 1e9),
        2,
    ),
    ("tokens of cache", |f| f.cache_tokens, 0),
    ("seconds to load weights", |f| f.load_s, 2),
];

impl Serving {
    /// A paragraph that says what was measured, and a table with medians over starts.
    pub fn section(&self) -> String {
        let starts = self.forms().into_iter().map(|form| self.of(form).count());
        let (least, most) = (starts.clone().min().unwrap_or(0), starts.max().unwrap_or(0));
        let starts = match (least, most) {
            (1, 1) => "one start of each".to_owned(),
            (least, most) if least == most => format!("medians of {least} starts"),
            (least, most) => format!("medians of {least} to {most} starts"),
        };
        let commit = self.commit.get(..7).unwrap_or(&self.commit);
        let devices = self.devices.join(" and ");
        let split = match self.tensor_parallel {
            None | Some(1) => String::new(),
            Some(gpus) => format!("tensor parallelism over {gpus} GPUs, "),
        };
        format!(
            "{}, the shape of {}, {split}{} tokens of context; {starts}.\n\
             {devices}, commit {commit}, {}.\n\
             Milliseconds a decode step, and how many times as fast as dense:\n\n{}\n",
            self.server,
            self.shape,
            self.context,
            self.date,
            self.table(),
        )
    }

    fn table(&self) -> Table {
        let forms = self.forms();
        let header = ["requests at a time"]
            .into_iter()
            .chain(forms.iter().copied());
        let batches: BTreeSet<usize> = (self.rows.iter())
            .flat_map(|row| row.steps_ms.keys().copied())
            .collect();
        let mut lines = Vec::new();
        for batch in batches {
            let step = |form: &str| {
                median(
                    self.of(form)
                        .filter_map(|row| row.steps_ms.get(&batch).copied()),
                )
            };
            let dense = (forms.iter().filter(|form| is_dense(form)))
                .filter_map(|form| step(form))
                .reduce(f64::min);
            let cell = |form: &&str| match (step(form), dense) {
                (Some(ms), Some(dense)) if !is_dense(form) => {
                    format!("{ms:.2} ({:.2}x)", dense / ms)
                }
                (Some(ms), _) => format!("{ms:.2}"),
                (None, _) => String::new(),
            };
            lines.push(
                [batch.to_string()]
                    .into_iter()
                    .chain(forms.iter().map(cell))
                    .collect(),
            );
        }
        for (name, figure, digits) in FIGURES {
            let of = |form: &&str| median(self.of(form).filter_map(|row| figure(&row.figures)));
            let values: Vec<_> = forms.iter().map(of).collect();
            if values.iter().any(Option::is_some) {
                let cells = values
                    .into_iter()
                    .map(|value| value.map_or(String::new(), |v| format!("{v:.digits$}")));
                lines.push([name.to_owned()].into_iter().chain(cells).collect());
            }
        }
        Table::new(header, lines)
    }

    /// In the order in which they were first run.
    fn forms(&self) -> Vec<&str> {
        let mut forms: Vec<&str> = Vec::new();
        for row in &self.rows {
            if !forms.contains(&&*row.form) {
                forms.push(&row.form);
            }
        }
        forms
    }

    fn of(&self, form: &str) -> impl Iterator<Item = &Start> {
        self.rows.iter().filter(move |row| row.form == form)
    }
}

/// Not those of a mode of the server's that costs speed.
fn is_dense(form: &str) -> bool {
    form.starts_with("dense") && !form.contains("invariant")
}

fn median(values: impl Iterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => None,
        len if len % 2 == 1 => Some(values[middle]),
        _ => Some(f64::midpoint(values[middle - 1], values[middle])),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn medians_stand_beside_the_best_dense_form() {
        let row =
            |form, ms: f64| json!({"form": form, "steps_ms": {"8": ms, "16": ms}, "load_s": 2.0});
        let serving: Serving = serde_json::from_value(json!({
            "server": "a server 1.0", "devices": ["a GPU, 1"], "date": "2026-01-31", "commit": "0123456789",
            "shape": "a model", "context": 512,
            "rows": [row("dense", 6.0), row("packed", 4.0), row("dense", 8.0), row("packed", 3.0), row("packed", 5.0),
                     row("dense-early", 6.5), row("dense-invariant", 1.0)],
        }))
        .unwrap();
        let section = serving.section();
        assert!(section.contains("\na GPU, 1, commit 0123456, 2026-01-31.\n"));
        assert!(section.contains("medians of 1 to 3 starts"));
        let lines: Vec<&str> = section
            .lines()
            .skip_while(|line| !line.starts_with('|'))
            .collect();
        assert_eq!(
            lines[2..],
            [
                "| 8 | 7.00 | 4.00 (1.62x) | 6.50 | 1.00 (6.50x) |",
                "| 16 | 7.00 | 4.00 (1.62x) | 6.50 | 1.00 (6.50x) |",
                "| seconds to load weights | 2.00 | 2.00 | 2.00 | 2.00 |",
            ]
        );
    }
}
