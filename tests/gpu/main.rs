//! The kernels on a GPU, against the host's codec and sums in FP64.
//!
//! ```text
//! cargo test --release -p zipserv-bench --test gpu
//! ```
//!
//! Every test runs with each family of kernels that the device can run. Without a device, one line
//! says that everything was skipped. `ZIPSERV_PTX=FILE` takes the kernels from a file, in place of
//! those built in. `ZIPSERV_QUICK=1` leaves out most cases, for NVIDIA's `compute-sanitizer`, which
//! runs kernels many times slower. It is to find nothing:
//!
//! ```text
//! export ZIPSERV_QUICK=1
//! gpu=$(ls -t target/release/deps/gpu-* | grep -v '\.d$' | head -1)
//! compute-sanitizer --tool memcheck --leak-check no --error-exitcode 1 $gpu --test-threads 1
//! compute-sanitizer --tool racecheck --error-exitcode 1 $gpu --test-threads 1
//! compute-sanitizer --tool synccheck --error-exitcode 1 $gpu --test-threads 1
//! compute-sanitizer --tool initcheck --error-exitcode 1 $gpu --test-threads 1
//! ```

mod allocations;
mod api;
mod data;
mod decompress;
mod decoupled;
mod encode;
mod epilogue;
mod experts;
mod gated;
mod gather;
mod gemm;
mod invariant;
mod lab;
mod linear;
mod matvec;
mod prefill;
mod published;
mod read;
mod sound;
mod stream;
mod tuning;
