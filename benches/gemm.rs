//! ZipGEMM and cuBLAS on one layer: `cargo bench --features cuda --bench gemm`.
//!
//! Times are those of the GPU, from replays of a CUDA graph; throughput counts the bytes of BF16
//! weights. For figures to quote, use `zipserv bench`, which measures all layers, checks every
//! output, and compares with cuBLAS's best choice.

use std::time::Duration;

use criterion::{BenchmarkId, Criterion, SamplingMode, Throughput};
use zipserv::{
    bench::{Layer, iterate_gemm},
    cuda::Gpu,
};

const SHAPES: [(usize, usize); 2] = [(4096, 4096), (28672, 4096)];

fn gemm(criterion: &mut Criterion, gpu: &Gpu) {
    for (rows, cols) in SHAPES {
        let name = "one";
        let layer = Layer { name, rows, cols };
        let mut group = criterion.benchmark_group(format!("gemm/{rows}x{cols}"));
        group
            .throughput(Throughput::Bytes(2 * (rows * cols) as u64))
            .sampling_mode(SamplingMode::Flat)
            .sample_size(10);
        for n in [1, 8, 16, 32, 64] {
            iterate_gemm(gpu, layer, n, |name, time| {
                let id = BenchmarkId::new(name, n);
                group.bench_function(id, |b| b.iter_custom(time));
            })
            .expect("the device can be used");
        }
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
    gemm(&mut criterion, &gpu);
    criterion.final_summary();
}
