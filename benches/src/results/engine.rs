//! Models in this project's own engine, as `zipserv run --bench --json` times them.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::markdown::Table;

/// What the program writes; with rows of its own, which have all that [`EngineRow`] has.
#[derive(Serialize, Deserialize)]
pub struct Engine<Row = EngineRow> {
    /// The program, its version and commit.
    pub engine: String,
    /// The GPU's name, or that of the first.
    pub device: String,
    /// The driver's version, and the CUDA version that it knows.
    pub driver: String,
    /// When, UTC.
    pub date: String,
    /// What ran.
    pub model: ModelShape,
    /// Whether products were the fastest, not the batch-invariant ones.
    pub fastest: bool,
    /// Whether weights were dense, and products cuBLASLt's.
    pub dense: bool,
    /// GPUs that shared the model.
    pub tensor_parallel_size: usize,
    /// Each batch and context.
    pub rows: Vec<Row>,
}

/// A model's sizes, by the keys of `config.json`.
#[derive(Serialize, Deserialize)]
#[expect(missing_docs, reason = "the keys are transformers'")]
pub struct ModelShape {
    /// As `architectures` names it.
    pub architecture: String,
    pub num_hidden_layers: usize,
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub num_attention_heads: usize,
    pub num_key_value_heads: usize,
    pub head_dim: usize,
    pub vocab_size: usize,
    /// Of a mixture.
    #[serde(flatten)]
    pub experts: Option<ExpertsShape>,
}

/// Experts of a mixture, by the keys of `config.json`.
#[derive(Serialize, Deserialize)]
#[expect(missing_docs, reason = "the keys are transformers'")]
pub struct ExpertsShape {
    pub num_experts: usize,
    pub num_experts_per_tok: usize,
    pub moe_intermediate_size: usize,
}

/// Times of a batch at a context.
#[derive(Serialize, Deserialize)]
pub struct EngineRow {
    /// Sequences.
    pub batch: usize,
    /// Tokens of each before the first step.
    pub context: usize,
    /// Milliseconds of all prompts together.
    pub prefill_ms: f64,
    /// Milliseconds of a step.
    pub step_ms: f64,
    /// Stages by themselves, in the order of a step.
    pub stages: Vec<EngineStage>,
}

/// A stage of a step by itself, in all layers.
#[derive(Serialize, Deserialize)]
pub struct EngineStage {
    /// Its name.
    pub stage: String,
    /// Milliseconds a step.
    pub ms: f64,
    /// Terabytes a second of weights, keys and values, where it is known what is read.
    pub tb_per_s: Option<f64>,
}

impl ModelShape {
    fn name(&self) -> String {
        let Self {
            architecture,
            num_hidden_layers: layers,
            hidden_size: hidden,
            num_attention_heads: heads,
            num_key_value_heads: kv_heads,
            vocab_size: tokens,
            ..
        } = self;
        let inner = match &self.experts {
            None => format!("{} inner", self.intermediate_size),
            Some(experts) => format!(
                "{} of {} experts with {} inner",
                experts.num_experts_per_tok, experts.num_experts, experts.moe_intermediate_size
            ),
        };
        format!(
            "{architecture}: {layers} layers, {hidden} hidden and {inner} features, {heads} heads and {kv_heads} of keys \
             and values,\na vocabulary of {tokens}"
        )
    }
}

impl Engine {
    /// A paragraph that says what was measured, a table of steps and prompts, and one of stages.
    pub fn section(&self) -> String {
        let products = match (self.dense, self.fastest) {
            (true, _) => "dense weights in cuBLASLt",
            (false, true) => "compressed weights, the fastest products",
            (false, false) => "compressed weights, batch-invariant products",
        };
        let gpus = match self.tensor_parallel_size {
            1 => String::new(),
            gpus => format!("{gpus} x "),
        };
        let day = self.date.split('T').next().unwrap_or_default();
        let mut text = format!(
            "{}; {products}.\n{gpus}{}, driver {}, {}, {day}.\n\n{}\n",
            self.model.name(),
            self.device,
            self.driver,
            self.engine,
            self.steps(),
        );
        if let Some(stages) = self.stages() {
            text += &format!(
                "\nStages of a step of one sequence, ms, and TB/s of what they read:\n\n{stages}\n"
            );
        }
        text
    }

    fn steps(&self) -> Table {
        let header = [
            "sequences",
            "tokens of each",
            "ms a step",
            "tokens a second",
            "prompts, ms",
        ];
        let line = |row: &EngineRow| {
            vec![
                row.batch.to_string(),
                row.context.to_string(),
                format!("{:.3}", row.step_ms),
                format!("{:.0}", 1e3 * row.batch as f64 / row.step_ms),
                format!("{:.1}", row.prefill_ms),
            ]
        };
        Table::new(header, self.rows.iter().map(line))
    }

    /// Of one sequence, if they were timed.
    fn stages(&self) -> Option<Table> {
        let timed = |row: &&EngineRow| row.batch == 1 && !row.stages.is_empty();
        let rows: Vec<_> = self.rows.iter().filter(timed).collect();
        let header = rows.iter().map(|row| format!("{} tokens", row.context));
        let header = ["stage".to_owned()].into_iter().chain(header);
        let mut seen = BTreeSet::new();
        let names = rows.iter().flat_map(|row| &row.stages);
        let names = names.map(|stage| &*stage.stage);
        let line = |name: &str| {
            let cell = |row: &&EngineRow| {
                let stage = row.stages.iter().find(|stage| stage.stage == name);
                stage.map_or(String::new(), |stage| match stage.tb_per_s {
                    None => format!("{:.3}", stage.ms),
                    Some(speed) => format!("{:.3} ({speed:.2})", stage.ms),
                })
            };
            let name = [name.replace('_', " ")].into_iter();
            name.chain(rows.iter().map(cell)).collect()
        };
        let lines: Vec<_> = names.filter(|&name| seen.insert(name)).map(line).collect();
        (!rows.is_empty()).then(|| Table::new(header, lines))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn engine() -> Value {
        let row = |batch: usize, context: usize, stages: Value| json!({"batch": batch, "context": context, "prefill_ms": 10.25, "step_ms": 2.5, "stages": stages});
        json!({
            "engine": "zipserv 0.1.0 (012345678)", "device": "a GPU", "driver": "1 (CUDA 2)",
            "date": "2026-01-31T12:00:00Z", "fastest": true, "dense": false, "tensor_parallel_size": 1,
            "model": {
                "architecture": "LlamaForCausalLM", "num_hidden_layers": 2, "hidden_size": 3, "intermediate_size": 4,
                "num_attention_heads": 6, "num_key_value_heads": 5, "head_dim": 7, "vocab_size": 8,
            },
            "rows": [
                row(1, 512, json!([{"stage": "norm", "ms": 0.125, "tb_per_s": null},
                                   {"stage": "feed_forward", "ms": 2.0, "tb_per_s": 4.0}])),
                row(8, 512, json!([{"stage": "norm", "ms": 9.0, "tb_per_s": null}])),
                row(1, 4096, json!([{"stage": "norm", "ms": 0.25, "tb_per_s": null}])),
            ],
        })
    }

    fn section(engine: Value) -> String {
        serde_json::from_value::<Engine>(engine).unwrap().section()
    }

    #[test]
    fn steps_are_told_and_stages_of_one_sequence() {
        let expected = "\
LlamaForCausalLM: 2 layers, 3 hidden and 4 inner features, 6 heads and 5 of keys and values,
a vocabulary of 8; compressed weights, the fastest products.
a GPU, driver 1 (CUDA 2), zipserv 0.1.0 (012345678), 2026-01-31.

| sequences | tokens of each | ms a step | tokens a second | prompts, ms |
| --- | --- | --- | --- | --- |
| 1 | 512 | 2.500 | 400 | 10.2 |
| 8 | 512 | 2.500 | 3200 | 10.2 |
| 1 | 4096 | 2.500 | 400 | 10.2 |

Stages of a step of one sequence, ms, and TB/s of what they read:

| stage | 512 tokens | 4096 tokens |
| --- | --- | --- |
| norm | 0.125 | 0.250 |
| feed forward | 2.000 (4.00) |  |
";
        assert_eq!(section(engine()), expected);
    }

    #[test]
    fn several_devices_and_mixtures_are_told() {
        let mut engine = engine();
        engine["tensor_parallel_size"] = json!(2);
        engine["fastest"] = json!(false);
        engine["rows"][0]["stages"] = json!([]);
        engine["rows"][2]["stages"] = json!([]);
        for (key, value) in [
            ("num_experts", 128),
            ("num_experts_per_tok", 9),
            ("moe_intermediate_size", 10),
        ] {
            engine["model"][key] = json!(value);
        }
        let text = section(engine);
        assert!(
            text.contains(" 9 of 128 experts with 10 inner features,"),
            "{text}"
        );
        assert!(text.contains("\n2 x a GPU,"), "{text}");
        assert!(text.contains("batch-invariant products"), "{text}");
        assert!(!text.contains("Stages"), "{text}");
    }
}
