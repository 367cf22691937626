//! Layers of mixtures of experts, as `python/benches/experts.py` times them.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::markdown::Table;

/// What the harness writes.
#[derive(Deserialize)]
pub struct Experts {
    /// Whose kernels are compared, and their versions.
    pub experts: String,
    /// Names and drivers.
    pub devices: Vec<String>,
    /// The day, UTC.
    pub date: String,
    /// The commit that was built.
    pub commit: String,
    /// Each layer, routing and number of tokens.
    pub rows: Vec<Layers>,
}

/// The layers of one model, with one number of tokens.
#[derive(Deserialize)]
pub struct Layers {
    /// Whose shape they have.
    pub shape: String,
    /// Tokens.
    pub tokens: usize,
    /// How experts are chosen: random, skewed, or half, where every second token takes one of them.
    pub routing: String,
    /// Experts of a layer that have tokens, on average.
    pub active_experts: f64,
    /// Microseconds for a layer, by the form.
    pub us: BTreeMap<String, f64>,
}

/// This project's form.
const OWN: &str = "zipserv";

impl Layers {
    /// How many times as fast as the fastest of the others.
    fn ratio(&self) -> Option<f64> {
        let others = self.us.iter().filter(|(form, _)| *form != OWN);
        let best = others.map(|(_, us)| *us).reduce(f64::min)?;
        Some(best / self.us.get(OWN)?)
    }
}

impl Experts {
    /// A paragraph that says what was measured, and a table.
    pub fn section(&self) -> String {
        let commit = self.commit.get(..7).unwrap_or(&self.commit);
        format!(
            "{}.\n{}, commit {commit}, {}.\n\
             Microseconds for both products of a layer with silu, router's weights and sum:\n\n{}\n",
            self.experts,
            self.devices.join(" and "),
            self.date,
            self.table(),
        )
    }

    fn table(&self) -> Table {
        let mut forms: Vec<&str> = Vec::new();
        for form in self.rows.iter().flat_map(|row| row.us.keys()) {
            if !forms.contains(&&**form) {
                forms.push(form);
            }
        }
        forms.sort_by_key(|form| *form != OWN);
        let header = ["layer of", "routing", "tokens", "experts"]
            .into_iter()
            .chain(forms.iter().copied())
            .chain(["x the best other"]);
        let line = |row: &Layers| {
            let us = |form: &&str| {
                let us = row.us.get(*form);
                us.map_or(String::new(), |us| format!("{us:.1}"))
            };
            let ratio = row
                .ratio()
                .map_or(String::new(), |ratio| format!("**{ratio:.2}x**"));
            [
                row.shape.clone(),
                row.routing.clone(),
                row.tokens.to_string(),
                format!("{:.0}", row.active_experts),
            ]
            .into_iter()
            .chain(forms.iter().map(us))
            .chain([ratio])
            .collect::<Vec<_>>()
        };
        Table::new(header, self.rows.iter().map(line))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn ratios_are_to_the_best_other() {
        let experts: Experts = serde_json::from_value(json!({
            "experts": "a package 1.0", "devices": ["a GPU, 1"], "date": "2026-01-31", "commit": "0123456789",
            "rows": [
                {"shape": "a model", "tokens": 8, "routing": "random", "active_experts": 5.5,
                 "us": {"grouped_mm": 40.0, "zipserv": 10.0, "fused_moe": 15.0}},
                {"shape": "a model", "tokens": 16, "routing": "skewed", "active_experts": 6.0, "us": {"zipserv": 10.0}},
                {"shape": "a model", "tokens": 16, "routing": "half", "active_experts": 6.0, "us": {"zipserv": 9.0}},
            ],
        }))
        .unwrap();
        let section = experts.section();
        assert!(section.starts_with("a package 1.0.\na GPU, 1, commit 0123456, 2026-01-31.\n"));
        let lines: Vec<&str> = section
            .lines()
            .skip_while(|line| !line.starts_with('|'))
            .collect();
        assert_eq!(
            lines[2..],
            [
                "| a model | random | 8 | 6 | 10.0 | 15.0 | 40.0 | **1.50x** |",
                "| a model | skewed | 16 | 6 | 10.0 |  |  |  |",
                "| a model | half | 16 | 6 | 9.0 |  |  |  |",
            ]
        );
    }
}
