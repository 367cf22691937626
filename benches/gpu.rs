//! What the benchmarks of the kernels share.

use std::time::Duration;

use criterion::Criterion;
use zipserv::gpu::Device;
use zipserv_bench::Layer;

/// A layer that is small for a GPU, and one that is large.
#[allow(dead_code, reason = "not every benchmark has layers")]
pub const LAYERS: [Layer; 2] = [layer(4096, 4096), layer(28672, 4096)];

#[allow(dead_code, reason = "as above")]
const fn layer(rows: usize, cols: usize) -> Layer {
    let name = "one";
    Layer { name, rows, cols }
}

/// Runs `benchmark` on the first device, if there is one.
pub fn main(benchmark: impl FnOnce(&mut Criterion, &Device)) {
    let device = match Device::new(0) {
        Ok(device) => device,
        Err(error) => return eprintln!("SKIPPED: {error}"),
    };
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_secs(1))
        .configure_from_args();
    benchmark(&mut criterion, &device);
    criterion.final_summary();
}
