//! A kernel of one's own on compressed weights, step by step in `docs/KERNELS.md`: the host's side
//! of `examples/kernels/src/matvec.rs`.
//!
//! ```text
//! cargo run --release -p zipserv --features cuda --example matvec
//! ```

use std::error::Error;

use cust::{
    launch,
    memory::{CopyDestination, DeviceBuffer, DeviceCopy, DeviceSlice},
    module::Module,
    stream::{Stream, StreamFlags},
};
use example_kernels::matvec::{Args, LAUNCH};
use zipserv::{
    Matrix,
    cuda::{DeviceMatrix, Gpu},
    decode, encode,
};

mod reference;

const PTX: &str = include_str!("kernels/ptx/example_sm_80.ptx");

/// What cust passes to the kernel.
#[derive(Clone, Copy)]
#[repr(transparent)]
struct Parameter(Args);

// SAFETY: numbers and device addresses mean the same on the device.
unsafe impl DeviceCopy for Parameter {}

/// y[M] = W[M, K] x[K], in FP32, of BF16 activations; waits for it. K is a multiple of 64.
///
/// # Errors
/// When lengths do not fit, and from the driver.
pub fn matvec(
    stream: &Stream,
    weights: &DeviceMatrix,
    x: &DeviceSlice<u16>,
    y: &mut DeviceSlice<f32>,
) -> Result<(), Box<dyn Error>> {
    let (m, k) = (weights.rows(), weights.cols());
    if !k.is_multiple_of(64) || x.len() != k || y.len() != m {
        let lengths = format!("{} activations and {} outputs", x.len(), y.len());
        return Err(
            format!("{lengths} do not fit {m} x {k} weights in tiles of 64 columns").into(),
        );
    }
    let (dense, offsets, patches) = weights.addresses();
    let args = Parameter(Args {
        y: y.as_device_ptr().as_mut_ptr(),
        x: x.as_device_ptr().as_ptr(),
        dense,
        offsets,
        patches,
        m: m as u32,
        k: k as u32,
        base: u32::from(weights.base()),
    });
    let module = Module::from_ptx(PTX, &[])?;
    let kernel = module.get_function(LAUNCH.name)?;
    let (strips, threads, shared) = (m.div_ceil(32), LAUNCH.threads, LAUNCH.shared_bytes);
    // SAFETY: the kernel takes these arguments; lengths fit, and `y` is borrowed alone.
    unsafe { launch!(kernel<<<strips as u32, threads as u32, shared as u32, stream>>>(args))? };
    // Before the module goes.
    Ok(stream.synchronize()?)
}

fn main() -> Result<(), Box<dyn Error>> {
    let (m, k) = (4096, 4096);
    let (w, x) = (reference::values(m * k, 0.02), reference::values(k, 1.0));
    let compressed = encode(&Matrix::from_bf16(m, k, &w)?)?;

    let gpu = Gpu::new(0)?;
    let stream = Stream::new(StreamFlags::DEFAULT, None)?;
    let weights = DeviceMatrix::upload(&compressed)?;
    let x_gpu = DeviceBuffer::from_slice(&reference::bits(&x))?;
    let mut y_gpu = DeviceBuffer::from_slice(&vec![f32::NAN; m])?;
    matvec(&stream, &weights, &x_gpu, &mut y_gpu)?;
    let mut y = vec![0.0; m];
    y_gpu.copy_to(&mut y)?;

    // Against the same on the CPU.
    reference::check(&decode(&compressed), &x, k, &y, 0.0)?;
    let patches = compressed.outliers();
    println!(
        "{}: {m} x {k} weights, {patches} of them patched: right",
        gpu.name()?
    );
    Ok(())
}
