//! What a call of `Linear::forward` costs the host: `cargo bench -p zipserv-bench --bench
//! forward`. Beside it are its raw call, and what the driver alone takes for a launch.
//!
//! Calls are timed in batches that fit the driver's queue, which is empty before each: the host never
//! waits for the device.

mod gpu;

use std::time::{Duration, Instant};

use criterion::Criterion;
use half::bf16;
use zipserv::{
    Matrix, encode,
    gpu::{Buffer, Device, Linear, RawOperands, Reader, Stream, Workspace},
};

/// Calls in a row; the queue takes about a thousand.
const BATCH: u64 = 256;

/// Times `launch`, which may be called again and again.
fn time(criterion: &mut Criterion, name: &str, stream: &Stream, mut launch: impl FnMut()) {
    let mut batch = |calls: u64| {
        stream.synchronize().expect("kernels run");
        let start = Instant::now();
        (0..calls).for_each(|_| launch());
        start.elapsed()
    };
    batch(1);
    criterion.bench_function(&format!("host/{name}"), |b| {
        b.iter_custom(|iterations| {
            let whole = (0..iterations / BATCH).map(|_| batch(BATCH));
            whole.sum::<Duration>() + batch(iterations % BATCH)
        });
    });
}

fn forward(criterion: &mut Criterion, device: &Device) {
    let (m, k) = (4096, 4096);
    let weights = vec![bf16::from_f32(0.01); m * k];
    let matrix = Matrix::from_bf16(m, k, &weights).expect("sizes fit");
    let compressed = encode(&matrix).expect("the matrix is not too large");
    let layer = Linear::new(device, &compressed).expect("the device has room");
    let stream = Stream::new(device).expect("the device works");
    let mut workspace = Workspace::new(device).expect("the device has room");
    for n in [1, 32, 256] {
        let x = Buffer::from_slice(device, &vec![bf16::ONE; n * k]).expect("the device has room");
        let mut y = Buffer::<bf16>::zeroed(device, n * m).expect("the device has room");
        time(criterion, &format!("forward, {n} tokens"), &stream, || {
            let launched = layer.forward(&stream, &x, n, &mut y, &mut workspace);
            launched.expect("operands fit");
        });
        let operands = RawOperands::new(layer.weights(), x.address(), n, y.address());
        time(
            criterion,
            &format!("forward_raw, {n} tokens"),
            &stream,
            || {
                // SAFETY: all of it lives, and follows in the stream what used the workspace before.
                let launched = unsafe { layer.forward_raw(stream.raw(), &operands, &workspace) };
                launched.expect("operands fit");
            },
        );
    }
    let mut reader = Reader::new(device).expect("the device has room");
    let data = Buffer::<u8>::zeroed(device, 16).expect("the device has room");
    time(criterion, "a plain launch", &stream, || {
        let launched = reader.read(&stream, data.slice(..));
        launched.expect("operands fit");
    });
}

fn main() {
    gpu::main(forward);
}
