//! ZipGEMM, decompression followed by cuBLAS, and cuBLAS on two layers:
//! `cargo bench -p zipserv-bench --bench gemm`, with `-- '/8192$'` for that many tokens alone.
//!
//! Times are those of the GPU, from replays of a CUDA graph; throughput counts the bytes of BF16
//! weights for few tokens, and floating-point operations for many. For figures to quote, use
//! `zipserv-bench gemm`, which measures all layers, checks every output, and compares with cuBLAS's
//! best choice.

mod gpu;

use criterion::{BenchmarkId, Criterion, SamplingMode, Throughput};
use zipserv::gpu::Device;
use zipserv_bench::{TOKENS, iterate_gemm, results::MEMORY_BOUND};

fn gemm(criterion: &mut Criterion, device: &Device) {
    for layer in gpu::LAYERS {
        let mut group = criterion.benchmark_group(format!("gemm/{}x{}", layer.rows, layer.cols));
        group.sampling_mode(SamplingMode::Flat).sample_size(10);
        let bytes = 2 * (layer.rows * layer.cols) as u64;
        iterate_gemm(device, layer, &TOKENS, |name, n, time| {
            group.throughput(match n > MEMORY_BOUND {
                // A byte of weights goes into one operation for each token.
                true => Throughput::Elements(bytes * n as u64),
                false => Throughput::Bytes(bytes),
            });
            let id = BenchmarkId::new(name, n);
            group.bench_function(id, |b| b.iter_custom(time));
        })
        .expect("the device can be used");
    }
}

fn main() {
    gpu::main(gemm);
}
