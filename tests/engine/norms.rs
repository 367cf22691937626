//! The kernels that norm states, against the plain formula. Without a GPU each test says that it is skipped.

use half::bf16;
use rand::{Rng, SeedableRng, rngs::SmallRng};
use rand_distr::StandardNormal;
use zipserv::gpu::{Buffer, CustomKernels, Device, Family, Stream};
use zipserv_engine_kernels::{
    KERNELS,
    norm::{self, Args},
    norm_parts::{self, MOST_ROWS, Peer},
    ptx,
};

use crate::gpu::device;

const EPSILON: f32 = 1e-5;

fn kernels(device: &Device) -> CustomKernels {
    let text = match device.family() {
        Family::Hopper => ptx::SM_90A,
        _ => ptx::SM_80,
    };
    CustomKernels::new(device, text, KERNELS)
}

fn normal(rng: &mut SmallRng, count: usize) -> Vec<f32> {
    (0..count).map(|_| rng.sample(StandardNormal)).collect()
}

fn rounded(values: Vec<f32>) -> Vec<bf16> {
    values.into_iter().map(bf16::from_f32).collect()
}

/// `x` is what becomes of a state, to a rounding to BF16 and a sum in another order.
fn check(x: &[bf16], h: &[f32], gains: &[bf16], what: &str) {
    let wide = h.iter().map(|&value| f64::from(value));
    let square = wide.map(|value| value * value).sum::<f64>() / h.len() as f64;
    let scale = 1.0 / (square + f64::from(EPSILON)).sqrt();
    for ((x, &h), gain) in x.iter().zip(h).zip(gains) {
        let expected = f64::from(h) * scale * gain.to_f64();
        let error = (x.to_f64() - expected).abs();
        assert!(error <= 0.005 * expected.abs(), "{what}: {x} {expected}");
    }
}

#[test]
fn norms_of_rows_to_which_something_is_added_or_not() {
    let Some(device) = device() else {
        return;
    };
    let (stream, kernels) = (Stream::new(&device).unwrap(), kernels(&device));
    let mut rng = SmallRng::seed_from_u64(1);
    for features in [4, 192, 200, 2048, 4096, 8192, norm::MOST_FEATURES] {
        let rows = 5;
        let states = normal(&mut rng, rows * features);
        let more = rounded(normal(&mut rng, rows * features));
        let gains = rounded(normal(&mut rng, features));
        let order = [3u32, 0, 4];
        for (starts, adds, picks) in [
            (true, true, false),
            (false, true, false),
            (false, false, false),
            (false, true, true),
        ] {
            let what = format!("{features} features, starts {starts}, adds {adds}, picks {picks}");
            let h = Buffer::from_slice(&device, &states).unwrap();
            let x = Buffer::<bf16>::zeroed(&device, rows * features).unwrap();
            let added = Buffer::from_slice(&device, &more).unwrap();
            let gain = Buffer::from_slice(&device, &gains).unwrap();
            let picked = Buffer::from_slice(&device, &order).unwrap();
            let args = Args {
                x: x.address() as *mut u16,
                h: h.address() as *mut f32,
                added: if adds { added.address() } else { 0 } as *const u16,
                gains: gain.address() as *const u16,
                rows: if picks { picked.address() } else { 0 } as *const u32,
                starts,
                features: features as u32,
                epsilon: EPSILON,
            };
            let of: Vec<usize> = match picks {
                true => order.iter().map(|&row| row as usize).collect(),
                false => (0..rows).collect(),
            };
            let (name, shared) = (norm::LAUNCH.name, norm::shared_bytes(features));
            // SAFETY: all have as many rows.
            unsafe {
                let blocks = of.len() as u32;
                kernels.launch_dependent_with(&stream, name, blocks, shared, args)
            }
            .unwrap();
            let (x, h) = (x.to_vec(&stream).unwrap(), h.to_vec(&stream).unwrap());
            for row in 0..rows {
                let at = row * features..(row + 1) * features;
                let mut expected = states[at.clone()].to_vec();
                if adds && of.contains(&row) {
                    for (value, more) in expected.iter_mut().zip(&more[at.clone()]) {
                        *value = more.to_f32() + if starts { 0.0 } else { *value };
                    }
                }
                assert_eq!(h[at], expected, "{what}, row {row}");
            }
            for (x, &row) in x.chunks(features).zip(&of) {
                check(x, &h[row * features..(row + 1) * features], &gains, &what);
            }
        }
    }
}

/// Ranks that are streams of one device.
struct Ranks {
    streams: Vec<Stream>,
    states: Vec<Buffer<f32>>,
    /// Of each turn and rank.
    parts: [Vec<Buffer<f32>>; 2],
    peers: [Buffer<u64>; 2],
    counts: Vec<Buffer<u32>>,
    aborted: Buffer<u32>,
    gains: Buffer<bf16>,
    features: usize,
    _flags: Vec<Buffer<u32>>,
}

impl Ranks {
    fn new(device: &Device, count: usize, states: &[f32], gains: &[bf16], aborted: u32) -> Self {
        let each = |make: &dyn Fn() -> Buffer<u32>| (0..count).map(|_| make()).collect::<Vec<_>>();
        let parts = [(); 2].map(|()| -> Vec<_> {
            let zeroed = (0..count).map(|_| Buffer::zeroed(device, states.len()));
            zeroed.collect::<Result<_, _>>().unwrap()
        });
        // So that they pass the largest number.
        let before = u32::MAX - 1;
        let words = |len: usize| Buffer::from_slice(device, &vec![before; len]).unwrap();
        let flags = each(&|| words(count * MOST_ROWS));
        let counts = each(&|| words(MOST_ROWS));
        let peers = [0, 1].map(|turn: usize| {
            let both = parts[turn].iter().zip(&flags);
            let words = both.flat_map(|(parts, flags)| [parts.address(), flags.address()]);
            Buffer::from_slice(device, &words.collect::<Vec<_>>()).unwrap()
        });
        Self {
            streams: (0..count).map(|_| Stream::new(device).unwrap()).collect(),
            states: (0..count)
                .map(|_| Buffer::from_slice(device, states).unwrap())
                .collect(),
            parts,
            peers,
            counts,
            aborted: Buffer::from_slice(device, &[aborted]).unwrap(),
            gains: Buffer::from_slice(device, gains).unwrap(),
            features: gains.len(),
            _flags: flags,
        }
    }

    /// Launches a rank's norm of so many rows, which puts out `x`.
    fn launch(
        &self,
        kernels: &CustomKernels,
        rank: usize,
        turn: usize,
        rows: usize,
        x: &Buffer<bf16>,
    ) {
        let (features, count) = (self.features, self.streams.len());
        let args = norm_parts::Args {
            norm: Args {
                x: x.address() as *mut u16,
                h: self.states[rank].address() as *mut f32,
                added: std::ptr::null(),
                gains: self.gains.address() as *const u16,
                rows: std::ptr::null(),
                starts: false,
                features: features as u32,
                epsilon: EPSILON,
            },
            ranks: self.peers[turn].address() as *const Peer,
            counts: self.counts[rank].address() as *mut u32,
            aborted: self.aborted.address() as *const u32,
            count: count as u32,
            rank: rank as u32,
            fours: norm_parts::fours_at_a_time(features, count) as u32,
        };
        let (name, shared) = (
            norm_parts::LAUNCH.name,
            norm_parts::shared_bytes(features, count),
        );
        // SAFETY: all have as many rows, and live until the stream has been waited for.
        unsafe {
            let stream = &self.streams[rank];
            kernels.launch_dependent_with(stream, name, rows as u32, shared, args)
        }
        .unwrap();
    }
}

#[test]
fn parts_of_all_ranks_are_added_in_their_order() {
    let Some(device) = device() else {
        return;
    };
    let kernels = kernels(&device);
    // What is loaded while others wait for it may wait for them.
    kernels.resident_blocks(norm_parts::LAUNCH.name).unwrap();
    let mut rng = SmallRng::seed_from_u64(2);
    for features in [4, 192, 4096, 8192, 12_288] {
        for count in [2, 3, 4, 8] {
            // All blocks of all ranks run at a time.
            let rows = 8;
            let gains = rounded(normal(&mut rng, features));
            let mut expected = normal(&mut rng, rows * features);
            let mut all = Ranks::new(&device, count, &expected, &gains, 0);
            for (exchange, now) in [1, rows, 3, 3, rows, 2].into_iter().enumerate() {
                let turn = exchange % 2;
                let outputs: Vec<_> = (0..count)
                    .map(|_| Buffer::<bf16>::zeroed(&device, rows * features).unwrap())
                    .collect();
                for rank in 0..count {
                    let part = normal(&mut rng, rows * features);
                    let own = now * features;
                    let values = expected[..own].iter_mut().zip(&part);
                    values.for_each(|(value, part)| *value += part);
                    let stream = all.streams[rank].clone();
                    all.parts[turn][rank]
                        .copy_from_slice(&stream, &part)
                        .unwrap();
                }
                // The last rank comes first.
                for rank in (0..count).rev() {
                    all.launch(&kernels, rank, turn, now, &outputs[rank]);
                }
                let what = format!("{features} features, {count} ranks, exchange {exchange}");
                let mut first = None;
                for (rank, x) in outputs.iter().enumerate() {
                    let x = x.to_vec(&all.streams[rank]).unwrap();
                    let h = all.states[rank].to_vec(&all.streams[rank]).unwrap();
                    assert_eq!(h, expected, "{what}, rank {rank}");
                    for (x, h) in x.chunks(features).zip(h.chunks(features)).take(now) {
                        check(x, h, &gains, &what);
                    }
                    assert_eq!(&x, first.get_or_insert_with(|| x.clone()), "{what}");
                }
            }
        }
    }
}

#[test]
fn nobody_waits_for_a_rank_when_the_host_says_so() {
    let Some(device) = device() else {
        return;
    };
    let (kernels, rows, features) = (kernels(&device), 3, 192);
    let (states, gains) = (vec![1.0; rows * features], vec![bf16::ONE; features]);
    let mut all = Ranks::new(&device, 2, &states, &gains, 0);
    let x = Buffer::<bf16>::zeroed(&device, rows * features).unwrap();
    all.launch(&kernels, 0, 0, rows, &x);
    assert!(!all.streams[0].is_idle().unwrap());
    let other = Stream::new(&device).unwrap();
    all.aborted.copy_from_slice(&other, &[1]).unwrap();
    all.streams[0].synchronize().unwrap();
}
