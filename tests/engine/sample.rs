//! What the kernels sample, against the host by the same logits: both are integers, so they are equal. Without a GPU each
//! test says that it is skipped.

use rand::{Rng, SeedableRng, rngs::SmallRng};
use rand_distr::StandardNormal;
use zipserv::gpu::{Buffer, CustomKernels, Device, Family, Stream};
use zipserv_engine::{Chunk, Executor, Logits, Sampling, SequenceId, gpu::GpuOptions};
use zipserv_engine_kernels::{
    KERNELS,
    choose::{self, AdvanceArgs, LargestArgs},
    ptx,
    sample::{self, Pass, State},
};

use crate::{
    gpu::{compressed, configs, device, gpu},
    support::tokens,
};

const STEPS: usize = 2;

/// What is asked for often, and what is not.
fn settings(vocabulary: usize) -> Vec<Sampling> {
    let of = |temperature, top_k, top_p| Sampling {
        temperature,
        top_k,
        top_p,
        seed: 0,
    };
    vec![
        Sampling::default(),
        of(0.7, Some(20), 0.8),
        of(0.6, Some(50), 1.0),
        of(1.0, None, 0.95),
        of(1.3, None, 0.5),
        of(1.0, None, 1.0),
        of(3.0, None, 1.0),
        of(0.01, None, 0.9),
        of(1e-300, None, 1.0),
        of(1e300, Some(3), 0.4),
        of(1.0, Some(1), 1.0),
        of(1.0, Some(vocabulary.div_ceil(2)), 0.9),
        of(1.0, Some(vocabulary), 1.0),
        of(1.0, None, 1e-12),
    ]
}

/// Logits of several kinds: like those of models, flat ones, many that are equal, all that are, some that are no numbers,
/// very different ones.
fn kinds(vocabulary: usize, rng: &mut SmallRng) -> Vec<Vec<f32>> {
    let mut normal = |size: f32| -> Vec<f32> {
        let values = (0..vocabulary).map(|_| size * rng.sample::<f32, _>(StandardNormal));
        values.collect()
    };
    let equal = normal(2.0).into_iter().map(|logit| logit.round() / 2.0);
    let mut kinds = vec![
        normal(3.0),
        normal(0.5),
        equal.collect(),
        vec![0.0; vocabulary],
    ];
    let mut holes = normal(2.0);
    for (at, logit) in holes.iter_mut().enumerate().skip(1) {
        match at % 7 {
            0 => *logit = f32::NAN,
            3 => *logit = f32::NEG_INFINITY,
            _ => {}
        }
    }
    kinds.push(holes);
    kinds.push(normal(300.0));
    kinds.push(normal(1e-7));
    kinds
}

/// The tokens of some steps by the same logits, whose first position is given.
fn run(device: &Device, rows: &[(Vec<f32>, Sampling)], position: usize) -> Vec<Vec<u32>> {
    let stream = Stream::new(device).unwrap();
    let text = match device.family() {
        Family::Hopper => ptx::SM_90A,
        _ => ptx::SM_80,
    };
    let kernels = CustomKernels::new(device, text, KERNELS);
    let (n, vocabulary) = (rows.len(), rows[0].0.len());
    let all: Vec<f32> = rows
        .iter()
        .flat_map(|(logits, _)| logits)
        .copied()
        .collect();
    let logits = Buffer::from_slice(device, &all).unwrap();
    let settings = rows
        .iter()
        .map(|(_, sampling)| sampling.settings(vocabulary));
    let words: Vec<u32> = settings.flat_map(|settings| settings.words()).collect();
    let words = Buffer::from_slice(device, &words).unwrap();
    let random: Vec<u64> = (0..STEPS)
        .flat_map(|step| {
            rows.iter()
                .map(move |(_, sampling)| sampling.random(position + step))
        })
        .collect();
    let random = Buffer::from_slice(device, &random).unwrap();
    let keys = Buffer::<u64>::zeroed(device, n).unwrap();
    let states = Buffer::<u32>::zeroed(device, n * size_of::<State>() / 4).unwrap();
    let step = Buffer::<u32>::zeroed(device, 1).unwrap();
    let next = Buffer::<u32>::zeroed(device, 2 * n).unwrap();
    let output = Buffer::<u32>::zeroed(device, STEPS * n).unwrap();
    let largest = LargestArgs {
        logits: logits.address() as *const f32,
        keys: keys.address() as *mut u64,
        vocabulary: vocabulary as u32,
    };
    let advance = AdvanceArgs {
        keys: keys.address() as *mut u64,
        tokens: next.address() as *mut u32,
        positions: (next.address() + 4 * n as u64) as *mut u32,
        output: output.address() as *mut u32,
        step: step.address() as *mut u32,
        sequences: n as u32,
        steps: STEPS as u32,
    };
    for _ in 0..STEPS {
        // SAFETY: all rows, and what is kept of each, are there until the output has been read.
        unsafe {
            let blocks = (n * choose::BLOCKS) as u32;
            let name = choose::LARGEST.name;
            kernels
                .launch_dependent(&stream, name, blocks, largest)
                .unwrap();
            for pass in Pass::ALL {
                let args = sample::Args {
                    logits: logits.address() as *const f32,
                    keys: keys.address() as *mut u64,
                    states: states.address() as *mut State,
                    settings: words.address() as *const _,
                    random: random.address() as *const u64,
                    step: step.address() as *const u32,
                    vocabulary: vocabulary as u32,
                    sequences: n as u32,
                    steps: STEPS as u32,
                    pass,
                };
                let blocks = (n * sample::BLOCKS) as u32;
                for kernel in [sample::TALLY, sample::SETTLE] {
                    kernels
                        .launch_dependent(&stream, kernel.name, blocks, args)
                        .unwrap();
                }
            }
            kernels
                .launch_dependent(&stream, choose::ADVANCE.name, 1, advance)
                .unwrap();
        }
    }
    let output = output.to_vec(&stream).unwrap();
    output.chunks(n).map(<[u32]>::to_vec).collect()
}

#[test]
fn kernels_sample_what_the_host_does() {
    let Some(device) = device() else {
        return;
    };
    let mut rng = SmallRng::seed_from_u64(1);
    for vocabulary in [1, 2, 61, 1000, 8192, 32_000, 128_256, 151_937] {
        let kinds = kinds(vocabulary, &mut rng);
        let all = kinds.iter().flat_map(|logits| {
            let settings = settings(vocabulary).into_iter();
            settings.map(move |sampling| (logits.clone(), sampling))
        });
        let mut all: Vec<_> = all.collect();
        for (seed, (_, sampling)) in (0..).zip(&mut all) {
            sampling.seed = seed;
        }
        for (first, rows) in (0..).step_by(64).zip(all.chunks(64)) {
            let position = 5 + first;
            let found = run(&device, rows, position);
            for (row, (logits, sampling)) in rows.iter().enumerate() {
                // The host refuses what the device leaves out.
                let numbers = logits
                    .iter()
                    .map(|&x| if x.is_nan() { f32::NEG_INFINITY } else { x });
                let numbers: Vec<_> = numbers.collect();
                for (step, found) in found.iter().enumerate() {
                    let expected = sampling.sample(&numbers, position + step).unwrap();
                    let what = format!(
                        "{vocabulary} logits, kind {}",
                        (first + row) / settings(1).len()
                    );
                    assert_eq!(found[row], expected, "{what}, {sampling:?}, step {step}");
                }
            }
        }
    }
}

#[test]
fn of_no_number_and_of_the_infinite_comes_no_token() {
    let Some(device) = device() else {
        return;
    };
    let mut infinite = vec![0.0; 100];
    infinite[7] = f32::INFINITY;
    for logits in [vec![f32::NAN; 100], vec![f32::NEG_INFINITY; 100], infinite] {
        let rows: Vec<_> = settings(100)
            .into_iter()
            .filter(|sampling| sampling.temperature > 0.0)
            .map(|sampling| (logits.clone(), sampling))
            .collect();
        for found in run(&device, &rows, 0) {
            assert!(found.iter().all(|&token| token == u32::MAX), "{found:?}");
        }
    }
}

/// Sequences of prompts without their last tokens, and these.
fn start(executor: &mut dyn Executor, prompts: &[Vec<u32>]) -> (Vec<SequenceId>, Vec<u32>) {
    let each = prompts.iter().map(|prompt| {
        let (&last, tokens) = prompt.split_last().unwrap();
        let sequence = executor.start().unwrap();
        let chunk = Chunk { sequence, tokens };
        executor.forward(&[chunk], Logits::No).unwrap();
        (sequence, last)
    });
    each.unzip()
}

#[test]
fn sampled_steps_are_those_of_the_host_and_of_a_sequence_alone() {
    let of = |temperature, top_k, top_p, seed| Sampling {
        temperature,
        top_k,
        top_p,
        seed,
    };
    let batches = [
        vec![of(0.8, None, 1.0, 1)],
        vec![
            of(0.8, Some(7), 0.9, 2),
            of(0.0, None, 1.0, 3),
            of(1.0, None, 0.9, 4),
        ],
        vec![of(1.5, None, 1.0, 5), of(0.0, None, 1.0, 3)],
        vec![
            of(1.0, None, 0.7, 6),
            of(1.0, Some(5), 1.0, 7),
            of(2.0, Some(100), 1.0, 8),
        ],
    ];
    for config in configs() {
        let Some(mut gpu) = gpu(&config, &compressed(3)) else {
            return;
        };
        for sampling in &batches {
            let n = sampling.len();
            let prompts: Vec<_> = (0..n).map(|s| tokens(20 + 31 * s, s as u64)).collect();
            let choose = |gpu: &mut zipserv_engine::gpu::GpuExecutor, which: &[usize]| {
                let prompts: Vec<_> = which.iter().map(|&s| prompts[s].clone()).collect();
                let sampling: Vec<_> = which.iter().map(|&s| sampling[s]).collect();
                let (own, next) = start(gpu, &prompts);
                // Twice, for a recording is used again.
                let mut found = gpu.choose(&own, &next, &sampling, 7).unwrap();
                let last = found[6].clone();
                found.extend(gpu.choose(&own, &last, &sampling, 9).unwrap());
                own.iter().for_each(|&sequence| gpu.end(sequence));
                found
            };
            let found = choose(&mut gpu, &(0..n).collect::<Vec<_>>());
            for s in 0..n {
                let alone = choose(&mut gpu, &[s]);
                let beside = found.iter().map(|row| row[s]);
                assert!(
                    beside.eq(alone.iter().map(|row| row[0])),
                    "{config}: {sampling:?} {s}"
                );
            }

            let (own, mut next) = start(&mut gpu, &prompts);
            for (step, found) in found.iter().enumerate() {
                let chunks = own.iter().zip(next.chunks(1));
                let chunks: Vec<_> = chunks
                    .map(|(&sequence, tokens)| Chunk { sequence, tokens })
                    .collect();
                let logits = gpu.forward(&chunks, Logits::Last).unwrap();
                let rows = logits.chunks(gpu.vocabulary()).zip(sampling);
                let expected = rows.zip(&prompts).map(|((row, sampling), prompt)| {
                    sampling.sample(row, prompt.len() + step).unwrap()
                });
                next = expected.collect();
                assert_eq!(found, &next, "{config}: step {step}, {sampling:?}");
            }
            own.iter().for_each(|&sequence| gpu.end(sequence));
        }
    }
}

#[test]
fn several_devices_leave_sampling_to_the_host() {
    let options = GpuOptions {
        devices: vec![0, 1],
        ..compressed(1)
    };
    let Some(mut gpu) = gpu(&configs()[0], &options) else {
        return;
    };
    let (own, next) = start(&mut gpu, &[tokens(9, 1)]);
    let warm = Sampling {
        temperature: 1.0,
        ..Sampling::default()
    };
    assert_eq!(gpu.try_choose(&own, &next, &[warm], 3).unwrap(), None);
    let error = gpu.choose(&own, &next, &[warm], 3).unwrap_err();
    assert_eq!(error.to_string(), "tokens are sampled on one device alone");
    let greedy = gpu.try_choose(&own, &next, &[Sampling::default()], 3);
    assert_eq!(greedy.unwrap().unwrap().len(), 3);
}
