//! Speed of the CPU codec beside a copy of the same bytes: `cargo bench -p zipserv-bench --bench codec`.
//!
//! Throughput counts the bytes of the BF16 weights, whichever way they go.

use std::{hint::black_box, time::Duration};

use criterion::{BatchSize, Criterion, SamplingMode, Throughput};
use half::bf16;
use rand::{Rng, SeedableRng, rngs::SmallRng};
use rand_distr::{Distribution, LogNormal, StandardNormal};
use zipserv::{Matrix, decode, decode_into, encode};

/// Gaussian weights with log-normal scales of rows and columns, as trained layers have.
fn weights(rows: usize, cols: usize) -> Vec<bf16> {
    let mut rng = SmallRng::seed_from_u64(1);
    let scale = LogNormal::new(0.0, 0.1).expect("a finite deviation");
    let col_scales: Vec<f32> = scale.sample_iter(&mut rng).take(cols).collect();
    (0..rows)
        .flat_map(|_| {
            let row_scale = 0.02 * scale.sample(&mut rng);
            let weight = |col_scale| row_scale * col_scale * rng.sample::<f32, _>(StandardNormal);
            col_scales
                .iter()
                .map(weight)
                .map(bf16::from_f32)
                .collect::<Vec<_>>()
        })
        .collect()
}

fn codec(criterion: &mut Criterion) {
    let all = std::thread::available_parallelism().map_or(1, usize::from);
    for (size, rows, cols) in [("8MB", 1024, 4096), ("128MB", 8192, 8192)] {
        let weights = weights(rows, cols);
        let matrix = Matrix::from_bf16(rows, cols, &weights).expect("the shape fits");
        let compressed = encode(&matrix).expect("the matrix is small");
        let mut output = vec![0; compressed.original_bytes()];

        let mut group = criterion.benchmark_group(size);
        group
            .throughput(Throughput::Bytes(output.len() as u64))
            .sampling_mode(SamplingMode::Flat)
            .sample_size(10);
        group.bench_function("memcpy", |b| {
            b.iter(|| output.copy_from_slice(black_box(matrix.as_le_bytes())));
        });
        for threads in [1, all] {
            let pool = rayon::ThreadPoolBuilder::new()
                .num_threads(threads)
                .build()
                .expect("threads start");
            let id = |name| format!("{name}/{threads} threads");
            // Freeing the result is not part of the work, `iter_batched` leaves it out.
            group.bench_function(id("encode"), |b| {
                let encode = |()| pool.install(|| encode(black_box(&matrix)));
                b.iter_batched(|| (), encode, BatchSize::PerIteration);
            });
            group.bench_function(id("decode"), |b| {
                let decode = |()| pool.install(|| decode(black_box(&compressed)));
                b.iter_batched(|| (), decode, BatchSize::PerIteration);
            });
            group.bench_function(id("decode_into"), |b| {
                b.iter(|| pool.install(|| decode_into(black_box(&compressed), &mut output)));
            });
        }
    }
}

fn main() {
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(3))
        .configure_from_args();
    codec(&mut criterion);
    criterion.final_summary();
}
