//! `decompress` on two layers: `cargo bench -p zipserv-bench --bench decompress`.
//!
//! Times are those of the GPU, from replays of a CUDA graph; throughput counts bytes read and
//! written. For figures to quote, use `zipserv-bench gemm`.

mod gpu;

use criterion::{Criterion, SamplingMode, Throughput};
use zipserv::gpu::Device;
use zipserv_bench::iterate_decompress;

fn decompress(criterion: &mut Criterion, device: &Device) {
    for layer in gpu::LAYERS {
        let mut group =
            criterion.benchmark_group(format!("decompress/{}x{}", layer.rows, layer.cols));
        group.sampling_mode(SamplingMode::Flat).sample_size(10);
        iterate_decompress(device, layer, |name, bytes, time| {
            group.throughput(Throughput::Bytes(bytes as u64));
            group.bench_function(name, |b| b.iter_custom(time));
        })
        .expect("the device can be used");
    }
}

fn main() {
    gpu::main(decompress);
}
