//! ZipGEMM on buffers and streams of [cust](https://docs.rs/cust).
//!
//! ```text
//! cargo run --release -p zipserv --features cust --example cust
//! ```
//!
//! cust links to the driver: building this needs `libcuda.so`, or what `.ci/cuda-stub` makes in its
//! place, in the folder that `CUDA_LIBRARY_PATH` names.

use std::error::Error;

use cust::{
    memory::{CopyDestination, DeviceBuffer},
    stream::{Stream, StreamFlags},
};
use half::bf16;
use zipserv::{
    Matrix, encode,
    gpu::{self, Device, Linear, Workspace},
};

mod reference;

fn main() -> Result<(), Box<dyn Error>> {
    let (m, k, n) = (4096, 2048, 8);
    let (w, x) = (
        reference::values(m * k, 0.02),
        reference::values(n * k, 1.0),
    );
    let compressed = encode(&Matrix::from_bf16(m, k, &w)?)?;

    // Both hold the device's primary context, which cust makes the thread's current one.
    let _context = cust::quick_init()?;
    let device = Device::new(0)?;
    let layer = Linear::new(&device, &compressed)?;
    println!("{}: {}", device.name(), layer.prepare(n)?);

    // cust takes no BF16, but their bits.
    let theirs = Stream::new(StreamFlags::NON_BLOCKING, None)?;
    let x_gpu = DeviceBuffer::from_slice(&reference::bits(&x))?;
    let mut y_gpu = DeviceBuffer::from_slice(&vec![0u16; n * m])?;
    // cust's copies are on the default stream, which `theirs` does not wait for.
    cust::context::CurrentContext::synchronize()?;
    // SAFETY: the stream lives longer than the workspace that serves it.
    let stream = unsafe { gpu::cust::stream(&device, &theirs)? };
    let mut workspace = Workspace::new(&device)?;
    // SAFETY: the slices live until the wait, and nothing else uses the outputs meanwhile.
    unsafe {
        let x = gpu::cust::view::<u16, bf16>(&device, &x_gpu);
        let y = gpu::cust::view_mut::<u16, bf16>(&device, &mut y_gpu);
        layer.forward(&stream, x, n, y, &mut workspace)?;
        stream.synchronize()?;
    }
    let mut y = vec![0u16; n * m];
    y_gpu.copy_to(&mut y)?;
    let y: Vec<f32> = y.iter().map(|&y| bf16::from_bits(y).to_f32()).collect();
    reference::check(&w, &x, k, &y, 1.0 / 256.0)?;

    // The weights themselves, bit for bit.
    let mut restored = DeviceBuffer::from_slice(&vec![0u16; m * k])?;
    cust::context::CurrentContext::synchronize()?;
    // SAFETY: as above.
    unsafe {
        let restored = gpu::cust::view_mut::<u16, bf16>(&device, &mut restored);
        layer.weights().decompress(&stream, restored)?;
        stream.synchronize()?;
    }
    let mut bits = vec![0u16; m * k];
    restored.copy_to(&mut bits)?;
    if bits != reference::bits(&w) {
        return Err("the weights came back otherwise".into());
    }
    println!("the product is right, and the weights came back bit for bit");
    Ok(())
}
