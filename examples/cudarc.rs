//! ZipGEMM on slices and streams of [cudarc](https://docs.rs/cudarc), by raw pointers. Any version
//! of cudarc will do: only addresses and a stream change hands.
//!
//! ```text
//! cargo run --release -p zipserv --features cuda --example cudarc
//! ```

use std::error::Error;

use cudarc::driver::{CudaContext, DevicePtr, DevicePtrMut};
use half::bf16;
use zipserv::{
    Matrix, encode,
    gpu::{Device, Linear, RawOperands, Workspace},
};

mod reference;

fn main() -> Result<(), Box<dyn Error>> {
    let (m, k, n) = (4096, 2048, 8);
    let (w, x) = (
        reference::values(m * k, 0.02),
        reference::values(n * k, 1.0),
    );
    let compressed = encode(&Matrix::from_bf16(m, k, &w)?)?;

    // Both hold the device's primary context. The first call finds out whether there is a driver;
    // cudarc's would panic.
    let device = Device::new(0)?;
    let context = CudaContext::new(0)?;
    let stream = context.new_stream()?;
    let workspace = Workspace::new(&device)?;
    let layer = Linear::new(&device, &compressed)?;
    println!("{}: {}", device.name(), layer.prepare(n)?);

    let x_gpu = stream.clone_htod(&reference::bits(&x))?;
    let mut y_gpu = stream.alloc_zeros::<u16>(n * m)?;
    {
        // While these live, cudarc takes the slices to be in use on the stream.
        let (x, _reads) = x_gpu.device_ptr(&stream);
        let (y, _writes) = y_gpu.device_ptr_mut(&stream);
        let operands = RawOperands::new(layer.weights(), x, n, y);
        // SAFETY: both slices have room, in memory of this device, and do not overlap; one stream
        // has the workspace; layer and workspace live until the copy below has waited.
        unsafe { layer.forward_raw(stream.cu_stream().cast(), &operands, &workspace)? };
    }
    let y = stream.clone_dtoh(&y_gpu)?;
    // The copy to the host may return before it is done.
    stream.synchronize()?;
    let y: Vec<f32> = y.iter().map(|&y| bf16::from_bits(y).to_f32()).collect();
    reference::check(&w, &x, k, &y, 1.0 / 256.0)?;
    println!("the product is right");
    Ok(())
}
