//! The GPU executor against the plain one. Without a GPU each test says that it is skipped.

use std::path::Path;

use half::bf16;
use rand::{Rng, SeedableRng, rngs::SmallRng};
use rand_distr::StandardNormal;
use serde_json::{Value, json};
use zipserv::gpu::{Buffer, CustomKernels, Device, Family, GpuError, Stream};
use zipserv_engine::{
    Chunk, CpuExecutor, Error, Executor, Logits, Sampling, SequenceId,
    cpu::ops::{self, Rows},
    gpu::{GpuExecutor, GpuOptions},
};
use zipserv_engine_kernels::{KERNELS, choose, experts, ptx};

use crate::support::{self, Tensors, config, folder, merge, tokens};

/// Models with heads as kernels have them, of each architecture and option.
pub fn configs() -> Vec<Value> {
    let sizes = |heads: usize, kv_heads: usize, head_dim: usize| {
        json!({
            "num_attention_heads": heads, "num_key_value_heads": kv_heads, "head_dim": head_dim,
            "hidden_size": 192, "intermediate_size": 320, "max_position_embeddings": 700,
        })
    };
    let mut all = vec![
        config("LlamaForCausalLM", sizes(4, 2, 64)),
        config("LlamaForCausalLM", sizes(3, 3, 128)),
        config("Qwen2ForCausalLM", sizes(12, 2, 64)),
        config("Qwen3ForCausalLM", sizes(8, 1, 128)),
        config("MistralForCausalLM", sizes(16, 1, 64)),
    ];
    let mut biased = sizes(6, 2, 64);
    merge(
        &mut biased,
        json!({"attention_bias": true, "mlp_bias": true}),
    );
    all.push(config("LlamaForCausalLM", biased));
    let mut window = sizes(4, 2, 64);
    merge(&mut window, json!({"sliding_window": 50}));
    all.push(config("MistralForCausalLM", window));
    all.extend(mixtures());
    all
}

/// Mixtures with experts in all layers, behind a dense one, before one, and with many for each token.
fn mixtures() -> Vec<Value> {
    let mixture = |changes: Value| {
        let mut sizes = json!({
            "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64, "hidden_size": 192,
            "intermediate_size": 320, "max_position_embeddings": 700,
        });
        merge(&mut sizes, changes);
        config("Qwen3MoeForCausalLM", sizes)
    };
    vec![
        mixture(json!({
            "num_experts": 24, "num_experts_per_tok": 6, "moe_intermediate_size": 64, "norm_topk_prob": true,
        })),
        mixture(json!({
            "num_experts": 130, "num_experts_per_tok": 8, "moe_intermediate_size": 96, "mlp_only_layers": [0],
        })),
        // Experts do not end with a tile, and all of them are chosen.
        mixture(json!({
            "num_experts": 5, "num_experts_per_tok": 5, "moe_intermediate_size": 32, "mlp_only_layers": [1],
            "hidden_size": 200, "num_hidden_layers": 3, "norm_topk_prob": true,
        })),
        // Longer prompts do not go through at once.
        mixture(json!({
            "num_experts": 40, "num_experts_per_tok": 32, "moe_intermediate_size": 32, "norm_topk_prob": true,
        })),
    ]
}

/// Random weights as large as those of trained models are, so that rounding stays small: products of states of size 1
/// have it too. Routers' are larger. Where rounding has a token take another expert, that is one among the last of its
/// choices, and these have little weight then.
fn tensors(config: &Value) -> Tensors {
    let mut tensors = support::tensors(config);
    for (name, (_, shape, bytes)) in &mut tensors {
        let [_, inputs] = shape[..] else {
            continue;
        };
        let size = match name.as_str() {
            "model.embed_tokens.weight" => 1.0,
            name if name.ends_with("mlp.gate.weight") => 4.0 / (inputs as f32).sqrt(),
            _ => 1.0 / (inputs as f32).sqrt(),
        };
        for pair in bytes.as_chunks_mut().0 {
            let weight = bf16::from_le_bytes(*pair).to_f32() / support::DEVIATION;
            *pair = bf16::from_f32(size * weight).to_le_bytes();
        }
    }
    tensors
}

/// The first GPU, if there is one.
pub fn device() -> Option<Device> {
    match Device::new(0) {
        Ok(device) => Some(device),
        Err(error) => {
            let is_absent = matches!(error, GpuError::NoDriver | GpuError::NoDevice { .. });
            assert!(is_absent, "{error}");
            eprintln!("skipped: {error}");
            None
        }
    }
}

/// A GPU's executor of a model in a folder, if there is what it needs.
fn open(folder: &Path, options: &GpuOptions) -> Option<GpuExecutor> {
    match GpuExecutor::open(folder, options) {
        Ok(executor) => Some(executor),
        Err(
            error @ (Error::NoNccl
            | Error::Gpu(
                GpuError::NoDriver | GpuError::NoDevice { .. } | GpuError::NoLibrary { .. },
            )),
        ) => {
            eprintln!("skipped: {error}");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

/// A GPU's executor of a model.
pub fn gpu(config: &Value, options: &GpuOptions) -> Option<GpuExecutor> {
    open(folder(config, &tensors(config)).path(), options)
}

/// The plain executor of a model.
fn cpu(config: &Value) -> CpuExecutor {
    CpuExecutor::open(folder(config, &tensors(config)).path()).unwrap()
}

/// From compressed weights on one GPU, with room for so many sequences.
pub fn compressed(sequences: usize) -> GpuOptions {
    GpuOptions {
        sequences,
        ..GpuOptions::default()
    }
}

/// All ways to run a model.
fn ways(config: &Value, sequences: usize) -> Vec<GpuOptions> {
    let one = compressed(sequences);
    let mut ways = vec![
        one.clone(),
        GpuOptions {
            fastest: true,
            ..one.clone()
        },
    ];
    if config["num_experts"].is_null() {
        let dense = |one: &GpuOptions| GpuOptions {
            dense: true,
            ..one.clone()
        };
        ways.push(dense(&one));
        if config["num_key_value_heads"]
            .as_u64()
            .unwrap()
            .is_multiple_of(2)
        {
            let two = GpuOptions {
                devices: vec![0, 1],
                ..one
            };
            ways.push(dense(&two));
            ways.push(two);
        }
    }
    ways
}

/// Logits differ by no more than rounding states to BF16 does.
fn close(found: &[f32], expected: &[f32], what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let square = |values: &mut dyn Iterator<Item = f32>| -> f64 {
        values
            .map(|value| f64::from(value) * f64::from(value))
            .sum()
    };
    let error = square(&mut found.iter().zip(expected).map(|(a, b)| a - b));
    let size = square(&mut expected.iter().copied());
    let relative = (error / size).sqrt();
    assert!(relative < 0.02, "{what}: {relative}");
}

/// Logits of all tokens, of which the first come together, and each of the others alone.
fn logits(executor: &mut dyn Executor, together: &[u32], alone: &[u32]) -> Vec<f32> {
    let sequence = executor.start().unwrap();
    let all = |executor: &mut dyn Executor, tokens: &[u32]| {
        let chunk = Chunk { sequence, tokens };
        executor.forward(&[chunk], Logits::All).unwrap()
    };
    let mut logits = all(executor, together);
    for token in alone.chunks(1) {
        logits.extend(all(executor, token));
    }
    executor.end(sequence);
    logits
}

#[test]
fn logits_of_prompts_and_of_tokens_that_follow() {
    let text = tokens(600, 7);
    for config in configs() {
        let mut gpus: Vec<_> = ways(&config, 3)
            .into_iter()
            .filter_map(|options| Some((gpu(&config, &options)?, options)))
            .collect();
        if gpus.is_empty() {
            return;
        }
        let mut cpu = cpu(&config);
        for (prompt, more) in [(1, 3), (17, 2), (333, 40), (599, 1)] {
            let (together, alone) = text[..prompt + more].split_at(prompt);
            let run = |executor: &mut dyn Executor| logits(executor, together, alone);
            let expected = run(&mut cpu);
            let mut first = None;
            for (gpu, options) in &mut gpus {
                let found = run(gpu);
                let what = format!("{config}: {prompt} tokens and {more}, {options:?}");
                close(&found, &expected, &what);
                close(&found, first.get_or_insert_with(|| found.clone()), &what);
            }
        }
    }
}

/// Of more tokens than go through at once, so that later ones look back at what earlier launches have left.
#[test]
fn logits_of_a_long_prompt() {
    let text = tokens(3001, 8);
    for (heads, kv_heads, head_dim) in [(6, 2, 64), (4, 1, 128)] {
        let config = config(
            "LlamaForCausalLM",
            json!({
                "num_attention_heads": heads, "num_key_value_heads": kv_heads, "head_dim": head_dim,
                "hidden_size": 192, "intermediate_size": 320, "max_position_embeddings": 3100,
            }),
        );
        let Some(mut gpu) = gpu(&config, &compressed(9)) else {
            return;
        };
        let (together, alone) = text.split_at(3000);
        let expected = logits(&mut cpu(&config), together, alone);
        let found = logits(&mut gpu, together, alone);
        close(&found, &expected, &config.to_string());
    }
}

#[test]
fn what_runs_beside_a_sequence_does_not_change_a_bit() {
    let two = GpuOptions {
        devices: vec![0, 1],
        ..compressed(9)
    };
    for (config, options) in [
        (configs().remove(0), compressed(9)),
        (mixtures().remove(0), compressed(9)),
        (configs().remove(0), two),
    ] {
        if let Some(gpu) = gpu(&config, &options) {
            beside_others(gpu);
        }
    }
}

fn beside_others(mut gpu: GpuExecutor) {
    let text = tokens(400, 3);
    let add = |gpu: &mut GpuExecutor, sequence, tokens: &[u32], logits| {
        gpu.forward(&[Chunk { sequence, tokens }], logits).unwrap()
    };
    let own = gpu.start().unwrap();
    add(&mut gpu, own, &text[..200], Logits::No);
    let steps = text[200..230].chunks(1);
    let alone: Vec<_> = steps
        .map(|token| add(&mut gpu, own, token, Logits::Last))
        .collect();
    gpu.end(own);

    let others: Vec<_> = (0..8).map(|_| gpu.start().unwrap()).collect();
    let own = gpu.start().unwrap();
    add(&mut gpu, own, &text[..200], Logits::No);
    for (&sequence, len) in others.iter().zip([1, 30, 77, 130, 5, 16, 200, 299]) {
        add(&mut gpu, sequence, &text[..len], Logits::No);
    }
    for (token, alone) in text[200..230].chunks(1).zip(alone) {
        let mut chunks: Vec<_> = others
            .iter()
            .map(|&sequence| Chunk {
                sequence,
                tokens: &text[5..6],
            })
            .collect();
        chunks.insert(
            4,
            Chunk {
                sequence: own,
                tokens: token,
            },
        );
        let logits = gpu.forward(&chunks, Logits::Last).unwrap();
        let own = &logits[4 * alone.len()..5 * alone.len()];
        assert!(
            own.iter()
                .map(|x| x.to_bits())
                .eq(alone.iter().map(|x| x.to_bits()))
        );
    }
}

#[test]
fn greedy_steps_are_those_of_the_largest_logits() {
    let configs = configs();
    let all = configs.iter();
    let all = all.flat_map(|config| ways(config, 4).into_iter().map(move |way| (config, way)));
    for (config, options) in all.filter(|(_, options)| !options.fastest) {
        let Some(mut gpu) = gpu(config, &options) else {
            continue;
        };
        for sequences in [1, 3] {
            let prompts: Vec<_> = (0..sequences)
                .map(|s| tokens(20 + 31 * s, s as u64))
                .collect();
            let start = |gpu: &mut GpuExecutor| -> Vec<SequenceId> {
                prompts
                    .iter()
                    .map(|prompt| {
                        let sequence = gpu.start().unwrap();
                        let tokens = &prompt[..prompt.len() - 1];
                        gpu.forward(&[Chunk { sequence, tokens }], Logits::No)
                            .unwrap();
                        sequence
                    })
                    .collect()
            };
            let mut next: Vec<u32> = prompts
                .iter()
                .map(|prompt| *prompt.last().unwrap())
                .collect();
            let own = start(&mut gpu);
            // Twice, for a recording is used again.
            let mut found = gpu.greedy(&own, &next, 7).unwrap();
            let last = found[6].clone();
            found.extend(gpu.greedy(&own, &last, 9).unwrap());
            own.iter().for_each(|&sequence| gpu.end(sequence));

            let own = start(&mut gpu);
            for (step, found) in found.iter().enumerate() {
                let chunks: Vec<_> = own
                    .iter()
                    .zip(next.chunks(1))
                    .map(|(&sequence, tokens)| Chunk { sequence, tokens })
                    .collect();
                let logits = gpu.forward(&chunks, Logits::Last).unwrap();
                let rows = logits.chunks(gpu.vocabulary());
                let largest = rows.map(|row| {
                    let all = row.iter().enumerate().rev();
                    all.max_by(|a, b| a.1.total_cmp(b.1)).unwrap().0 as u32
                });
                next = largest.collect();
                assert_eq!(found, &next, "{config}: step {step}, {options:?}");
            }
            own.iter().for_each(|&sequence| gpu.end(sequence));
        }
    }
}

#[test]
fn not_a_number_does_not_reach_other_sequences() {
    if device().is_some() {
        not_a_number(&configs()[0]);
        not_a_number(&mixtures()[0]);
    }
}

fn not_a_number(config: &Value) {
    let mut tensors = tensors(config);
    let (_, shape, embedding) = tensors.get_mut("model.embed_tokens.weight").unwrap();
    // Of token 5.
    for value in embedding[5 * 2 * shape[1]..6 * 2 * shape[1]].chunks_mut(2) {
        value.copy_from_slice(&[0xC0, 0x7F]);
    }
    let Some(mut gpu) = open(folder(config, &tensors).path(), &compressed(2)) else {
        return;
    };
    let text: Vec<u32> = tokens(80, 1)
        .into_iter()
        .map(|token| token.max(6))
        .collect();
    let alone = gpu.start().unwrap();
    let chosen = gpu.greedy(&[alone], &[5], 1).unwrap();
    assert!(chosen[0][0] as usize >= gpu.vocabulary(), "{chosen:?}");
    let other = gpu.start().unwrap();
    for (top_k, top_p) in [(None, 1.0), (None, 0.5), (Some(3), 0.5)] {
        let sampling = Sampling {
            temperature: 0.7,
            top_k,
            top_p,
            seed: 1,
        };
        let chosen = gpu.choose(&[alone, other], &[5, 6], &[sampling; 2], 1);
        let is_known = |&token: &u32| (token as usize) < gpu.vocabulary();
        let found: Vec<_> = chosen.unwrap()[0].iter().map(is_known).collect();
        assert_eq!(found, [false, true], "{sampling:?}");
    }
    gpu.end(other);
    gpu.end(alone);
    let bad = [&text[..20], &[5], &text[20..40]].concat();
    for steps in [&[41, 40][..], &[1; 40]] {
        let (first, second) = (gpu.start().unwrap(), gpu.start().unwrap());
        let (mut ours, mut theirs) = (&bad[..], &text[40..]);
        for &step in steps {
            let mut chunks = Vec::new();
            for (sequence, left) in [(first, &mut ours), (second, &mut theirs)] {
                let (tokens, rest) = left.split_at(step.min(left.len()));
                *left = rest;
                if !tokens.is_empty() {
                    chunks.push(Chunk { sequence, tokens });
                }
            }
            if chunks.is_empty() {
                break;
            }
            let is_there = chunks.last().is_some_and(|chunk| chunk.sequence == second);
            let logits = gpu.forward(&chunks, Logits::Last).unwrap();
            if is_there {
                let second = &logits[logits.len() - gpu.vocabulary()..];
                assert!(second.iter().all(|value| value.is_finite()));
            }
        }
        gpu.end(first);
        gpu.end(second);
    }
}

#[test]
fn what_does_not_run_so_is_refused_before_a_device_is_opened() {
    let llama = |changes| config("LlamaForCausalLM", changes);
    let mixture = config("Qwen3MoeForCausalLM", json!({}));
    let on = |devices: &[u32], dense| GpuOptions {
        devices: devices.to_vec(),
        dense,
        ..compressed(1)
    };
    for (config, options, why) in [
        (
            &mixture,
            on(&[0], true),
            "mixtures of experts do not run from dense weights on a GPU",
        ),
        (
            &mixture,
            on(&[0, 1], false),
            "mixtures of experts run on one GPU only",
        ),
        (
            &llama(json!({})),
            on(&[], false),
            "there is no device to run on",
        ),
        (
            &llama(json!({})),
            on(&[3, 1, 3], false),
            "of devices [3, 1, 3] one comes twice",
        ),
        (
            &llama(json!({})),
            on(&[0, 1, 2, 3], false),
            "num_attention_heads is 6, which 4 devices cannot share equally",
        ),
        (
            &llama(json!({})),
            on(&[0, 1, 2], false),
            "num_key_value_heads is 2, which 3 devices cannot share equally",
        ),
        (
            &llama(json!({"intermediate_size": 51})),
            on(&[0, 1], false),
            "intermediate_size is 51, which 2 devices cannot share equally",
        ),
        (
            &llama(json!({"vocab_size": 32})),
            on(&[0, 1], false),
            "vocab_size is 32, too small for 2 devices",
        ),
    ] {
        let folder = folder(config, &tensors(config));
        let error = GpuExecutor::open(folder.path(), &options).err().unwrap();
        assert_eq!(error.to_string(), why);
    }
}

#[test]
fn experts_of_a_token_are_the_most_probable() {
    let Some(device) = device() else {
        return;
    };
    let stream = Stream::new(&device).unwrap();
    let text = match device.family() {
        Family::Hopper => ptx::SM_90A,
        _ => ptx::SM_80,
    };
    let kernels = CustomKernels::new(&device, text, KERNELS);
    let mut rng = SmallRng::seed_from_u64(1);
    for (count, per_token) in [
        (1, 1),
        (5, 5),
        (24, 6),
        (128, 8),
        (130, 8),
        (256, 32),
        (257, 3),
        (experts::MOST, experts::MOST_PER_TOKEN),
    ] {
        let numbers = 40;
        let mut logits: Vec<f32> = (0..(numbers + 4) * count)
            // Many are equal; others differ by more than rounding.
            .map(|_| (8.0 * rng.sample::<f32, _>(StandardNormal)).round() / 4.0)
            .collect();
        let row = |token: usize| token * count..(token + 1) * count;
        // Rows that have no softmax.
        logits[row(numbers)][count / 2] = f32::NAN;
        logits[row(numbers + 1)].fill(f32::NAN);
        logits[row(numbers + 2)][count / 2] = f32::INFINITY;
        logits[row(numbers + 3)].fill(f32::NEG_INFINITY);
        let rows = logits.len() / count;
        for normalized in [false, true] {
            let from = Buffer::from_slice(&device, &logits).unwrap();
            let chosen = Buffer::from_slice(&device, &vec![u32::MAX; rows * per_token]).unwrap();
            let weights = Buffer::from_slice(&device, &vec![-1f32; rows * per_token]).unwrap();
            let args = experts::Args {
                logits: from.address() as *const f32,
                experts: chosen.address() as *mut u32,
                weights: weights.address() as *mut f32,
                count: count as u32,
                per_token: per_token as u32,
                normalized,
            };
            // SAFETY: rows have as many logits, and as many choices.
            unsafe {
                let name = experts::LAUNCH.name;
                kernels.launch(&stream, name, rows as u32, args).unwrap();
            }
            let (chosen, weights) = (chosen.to_vec(&stream), weights.to_vec(&stream));
            let (chosen, weights) = (chosen.unwrap(), weights.unwrap());
            let plain = Rows::new(count, logits[..numbers * count].to_vec());
            let expected = ops::route(&plain, per_token, normalized);
            let found = chosen.chunks(per_token).zip(weights.chunks(per_token));
            for (token, (chosen, weights)) in found.enumerate() {
                let what = format!("{per_token} of {count}, token {token}");
                let Some(expected) = expected.get(token) else {
                    let mut sorted = chosen.to_vec();
                    sorted.sort();
                    sorted.dedup();
                    assert_eq!(sorted.len(), per_token, "{what}: {chosen:?}");
                    assert!(sorted.iter().all(|&expert| expert < count as u32), "{what}");
                    assert!(weights.iter().all(|weight| weight.is_nan()), "{what}");
                    continue;
                };
                for ((&expert, &weight), &(number, probability)) in
                    chosen.iter().zip(weights).zip(expected)
                {
                    assert_eq!(expert as usize, number, "{what}");
                    let error = (weight - probability).abs() / probability;
                    assert!(error < 1e-5, "{what}: {weight} {probability}");
                }
            }
        }
    }
}

#[test]
fn keys_are_in_the_order_of_logits_and_the_earlier_of_equal_tokens_is_larger() {
    let mut rng = SmallRng::seed_from_u64(1);
    let mut logits = vec![
        0.0,
        -0.0,
        f32::INFINITY,
        f32::NEG_INFINITY,
        f32::NAN,
        -f32::NAN,
    ];
    logits.extend((0..200).map(|_| f32::from_bits(rng.random())));
    for (i, &a) in logits.iter().enumerate() {
        assert_eq!(choose::token(choose::key(a, i as u32)), i as u32);
        for (j, &b) in logits.iter().enumerate() {
            let is_larger = match (a.is_nan(), b.is_nan()) {
                (false, false) if a != b => a > b,
                (a, b) if a != b => b,
                _ => i < j,
            };
            let keys = [choose::key(a, i as u32), choose::key(b, j as u32)];
            assert_eq!(keys[0] > keys[1], is_larger, "{a} {b}");
        }
    }
}
