//! ZipGEMM and cuBLAS on one layer: `cargo bench --features cuda --bench gemm`.
//!
//! Times are those of the GPU, from replays of a CUDA graph; throughput counts the bytes of BF16
//! weights. For figures to quote, use `zipserv bench`, which measures all layers, checks every
//! output, and compares with cuBLAS's best choice.

mod gpu;

use criterion::{BenchmarkId, Criterion, SamplingMode, Throughput};
use zipserv::{bench::iterate_gemm, cuda::Gpu};

fn gemm(criterion: &mut Criterion, gpu: &Gpu) {
    for layer in gpu::LAYERS {
        let mut group = criterion.benchmark_group(format!("gemm/{}x{}", layer.rows, layer.cols));
        group
            .throughput(Throughput::Bytes(2 * (layer.rows * layer.cols) as u64))
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
    gpu::main(gemm);
}
