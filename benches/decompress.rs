//! `decompress` beside a copy of the same weights: `cargo bench --features cuda --bench decompress`.
//!
//! Times are those of the GPU, from replays of a CUDA graph; throughput counts bytes read and
//! written. For figures to quote, use `zipserv bench`.

use std::time::Duration;

use criterion::{Criterion, SamplingMode, Throughput};
use zipserv::{
    bench::{Layer, iterate_decompress},
    cuda::Gpu,
};

const SHAPES: [(usize, usize); 2] = [(4096, 4096), (28672, 4096)];

fn decompress(criterion: &mut Criterion, gpu: &Gpu) {
    for (rows, cols) in SHAPES {
        let name = "one";
        let layer = Layer { name, rows, cols };
        let mut group = criterion.benchmark_group(format!("decompress/{rows}x{cols}"));
        group.sampling_mode(SamplingMode::Flat).sample_size(10);
        iterate_decompress(gpu, layer, |name, bytes, time| {
            group.throughput(Throughput::Bytes(bytes as u64));
            group.bench_function(name, |b| b.iter_custom(time));
        })
        .expect("the device can be used");
    }
}

fn main() {
    let gpu = match Gpu::new(0) {
        Ok(gpu) => gpu,
        Err(error) => return eprintln!("SKIPPED: {error}"),
    };
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_secs(1))
        .configure_from_args();
    decompress(&mut criterion, &gpu);
    criterion.final_summary();
}
