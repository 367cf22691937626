//! What a call of `Linear::forward` costs the host: `cargo bench --features zipserv/bench --bench
//! forward`.
//!
//! Calls are timed in batches that fit the driver's queue, which is empty before each: the host never
//! waits for the device.

mod gpu;

use std::time::{Duration, Instant};

use criterion::Criterion;
use half::bf16;
use zipserv::{
    Matrix, encode,
    gpu::{Buffer, Device, Linear, Stream, Workspace},
};

/// Calls in a row; the queue takes about a thousand.
const BATCH: u64 = 256;

fn forward(criterion: &mut Criterion, device: &Device) {
    let (m, k) = (4096, 4096);
    let weights = vec![bf16::from_f32(0.01); m * k];
    let matrix = Matrix::from_bf16(m, k, &weights).expect("sizes fit");
    let compressed = encode(&matrix).expect("the matrix is not too large");
    let layer = Linear::new(device, &compressed).expect("the device has room");
    let stream = Stream::new(device).expect("the device works");
    let mut workspace = Workspace::new(device).expect("the device has room");
    let mut group = criterion.benchmark_group("forward, host");
    for n in [1, 32, 256] {
        let x = Buffer::from_slice(device, &vec![bf16::ONE; n * k]).expect("the device has room");
        let mut y = Buffer::<bf16>::zeroed(device, n * m).expect("the device has room");
        let mut batch = |calls: u64| {
            stream.synchronize().expect("kernels run");
            let start = Instant::now();
            for _ in 0..calls {
                let launched = layer.forward(&stream, &x, n, &mut y, &mut workspace);
                launched.expect("operands fit");
            }
            start.elapsed()
        };
        batch(1);
        group.bench_function(format!("{n} tokens"), |b| {
            b.iter_custom(|iterations| {
                let whole = (0..iterations / BATCH).map(|_| batch(BATCH));
                whole.sum::<Duration>() + batch(iterations % BATCH)
            });
        });
    }
}

fn main() {
    gpu::main(forward);
}
