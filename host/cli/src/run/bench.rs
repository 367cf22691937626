use std::{path::Path, process::ExitCode};

use zipserv::gpu::{Device, driver};
use zipserv_bench::{
    date,
    results::{Engine, ExpertsShape, ModelShape, json},
};
use zipserv_engine::{
    Config, Sampling,
    bench::{Points, Row, run},
    gpu::{GpuExecutor, GpuOptions},
};

use crate::{Format, Outcome, console};

/// Steps of a run of which the median counts.
const STEPS: usize = 64;
/// Sequences at a time.
const BATCHES: [usize; 3] = [1, 8, 32];
/// Tokens that sequences have before they go on.
const CONTEXTS: [usize; 3] = [512, 4096, 32768];

/// Measures batches of 1, 8 and 32 sequences that have 512, 4,096 and 32,768 tokens, of both no more than is said, as far
/// as there is room. What is kept as JSON does not say how tokens are chosen, so that is by the largest logit then.
pub fn bench(
    model: &Path,
    options: &GpuOptions,
    (sequences, context): (usize, Option<usize>),
    sampling: Sampling,
    format: &Format,
) -> Outcome {
    let mut executor = GpuExecutor::open(model, options)?;
    let upto = |all: [usize; 3], most: usize| all.into_iter().filter(|&n| n <= most).collect();
    let points = Points {
        batches: upto(BATCHES, sequences),
        contexts: upto(CONTEXTS, context.unwrap_or(usize::MAX)),
        steps: STEPS,
        sampling,
        stages: options.devices.len() == 1,
    };
    let rows = run(&mut executor, &points, show)?;
    if rows.is_empty() {
        return Err(
            "there is no room for any of the batches and contexts that are measured".into(),
        );
    }
    if format.json {
        let first = options.devices.first().copied().unwrap_or(0);
        let device = Device::new(first)?.name().to_owned();
        let result = result(executor.config(), options, (device, driver()?), rows);
        console::print(json(&result))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// What is kept of the rows and of where they are from.
fn result<Row>(
    config: &Config,
    options: &GpuOptions,
    (device, driver): (String, String),
    rows: Vec<Row>,
) -> Engine<Row> {
    let experts = config.experts.as_ref().map(|experts| ExpertsShape {
        num_experts: experts.count,
        num_experts_per_tok: experts.per_token,
        moe_intermediate_size: experts.intermediate,
    });
    Engine {
        engine: format!("zipserv {}", env!("ZIPSERV_VERSION")),
        device,
        driver,
        date: date(),
        model: ModelShape {
            architecture: config.architecture.to_string(),
            num_hidden_layers: config.layers,
            hidden_size: config.hidden,
            intermediate_size: config.intermediate,
            num_attention_heads: config.heads,
            num_key_value_heads: config.kv_heads,
            head_dim: config.head_dim,
            vocab_size: config.vocabulary,
            experts,
        },
        fastest: options.fastest,
        dense: options.dense,
        tensor_parallel_size: options.devices.len(),
        rows,
    }
}

fn show(row: &Row) {
    let Row {
        batch,
        context,
        prefill_ms,
        step_ms,
        stages,
    } = row;
    let speed = 1e3 * *batch as f64 / step_ms;
    console::note(format_args!(
        "batch {batch}, {context} tokens: prompts {prefill_ms:.1} ms, a step {step_ms:.3} ms, {speed:.0} tokens a second"
    ));
    for time in stages {
        let name = format!("{:?}", time.stage);
        let speed = time
            .tb_per_s
            .map_or(String::new(), |speed| format!("{speed:6.2} TB/s"));
        console::note(format_args!("  {name:12} {:8.3} ms {speed}", time.ms));
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use serde_json::json as value;
    use zipserv_engine::{bench::StageTime, gpu::Stage};

    use super::*;

    /// That of a folder with nothing else.
    fn config(experts: bool) -> Config {
        let mut keys = value!({
            "architectures": [if experts { "Qwen3MoeForCausalLM" } else { "LlamaForCausalLM" }],
            "num_hidden_layers": 2, "hidden_size": 192, "intermediate_size": 320, "num_attention_heads": 4,
            "num_key_value_heads": 2, "head_dim": 64, "vocab_size": 100, "max_position_embeddings": 700,
            "rms_norm_eps": 1e-5, "hidden_act": "silu", "rope_theta": 1e4,
        });
        if experts {
            keys["num_experts"] = value!(8);
            keys["num_experts_per_tok"] = value!(3);
            keys["moe_intermediate_size"] = value!(96);
        }
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("config.json"), keys.to_string()).unwrap();
        Config::open(folder.path()).unwrap()
    }

    /// What `zipserv-bench results` reads of what is printed.
    fn read(config: &Config, options: &GpuOptions) -> Engine {
        let stages =
            [(Stage::Norm, None), (Stage::FeedForward, Some(4.0))].map(|(stage, tb_per_s)| {
                StageTime {
                    stage,
                    ms: 0.25,
                    tb_per_s,
                }
            });
        let row = |batch, stages| Row {
            batch,
            context: 512,
            prefill_ms: 10.5,
            step_ms: 2.5,
            stages,
        };
        let rows = vec![row(1, stages.to_vec()), row(8, Vec::new())];
        let gpu = ("a GPU".to_owned(), "1 (CUDA 2)".to_owned());
        let printed = json(&result(config, options, gpu, rows));
        assert_eq!(
            printed
                .lines()
                .filter(|line| line.starts_with("{\"batch\""))
                .count(),
            2
        );
        serde_json::from_str(&printed).unwrap()
    }

    #[test]
    fn results_are_read_as_they_are_printed() {
        let options = GpuOptions {
            devices: vec![0, 1],
            fastest: true,
            ..GpuOptions::default()
        };
        let found = read(&config(false), &options);
        assert_eq!(found.engine, format!("zipserv {}", env!("ZIPSERV_VERSION")));
        assert_eq!((&*found.device, &*found.driver), ("a GPU", "1 (CUDA 2)"));
        assert_eq!(
            (found.fastest, found.dense, found.tensor_parallel_size),
            (true, false, 2)
        );
        assert!(found.model.experts.is_none());
        let model = serde_json::to_value(&found.model).unwrap();
        let expected = value!({
            "architecture": "LlamaForCausalLM", "num_hidden_layers": 2, "hidden_size": 192, "intermediate_size": 320,
            "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64, "vocab_size": 100,
        });
        assert_eq!(model, expected);
        let row = &found.rows[0];
        assert_eq!(
            (row.batch, row.context, row.prefill_ms, row.step_ms),
            (1, 512, 10.5, 2.5)
        );
        let stages: Vec<_> = row
            .stages
            .iter()
            .map(|of| (&*of.stage, of.ms, of.tb_per_s))
            .collect();
        assert_eq!(
            stages,
            [("norm", 0.25, None), ("feed_forward", 0.25, Some(4.0))]
        );
        assert!(found.rows[1].stages.is_empty());
    }

    #[test]
    fn a_mixture_has_its_experts() {
        let options = GpuOptions {
            dense: true,
            ..GpuOptions::default()
        };
        let found = read(&config(true), &options);
        let experts = found.model.experts.unwrap();
        assert_eq!(
            (
                experts.num_experts,
                experts.num_experts_per_tok,
                experts.moe_intermediate_size
            ),
            (8, 3, 96)
        );
        assert_eq!((found.dense, found.tensor_parallel_size), (true, 1));
    }
}
