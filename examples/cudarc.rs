//! ZipGEMM on slices and streams of [cudarc](https://docs.rs/cudarc), by raw pointers. Any version
//! of cudarc will do: only an address and a stream change hands.
//!
//! ```text
//! cargo run --release -p zipserv --features cuda --example cudarc
//! ```

use std::error::Error;

use cudarc::driver::{CudaContext, DevicePtr, DevicePtrMut};
use half::bf16;
use zipserv::{
    Matrix,
    cuda::{DeviceMatrix, GemmOperands, Gpu, Workspace, zipgemm_plan, zipgemm_raw},
    encode,
};

mod reference;

fn main() -> Result<(), Box<dyn Error>> {
    let (m, k, n) = (4096, 2048, 8);
    let (w, x) = (
        reference::values(m * k, 0.02),
        reference::values(n * k, 1.0),
    );
    let compressed = encode(&Matrix::from_bf16(m, k, &w)?)?;

    // Both hold the device's primary context.
    let context = CudaContext::new(0)?;
    let stream = context.new_stream()?;
    let gpu = Gpu::new(0)?;
    let workspace = Workspace::new(&gpu)?;
    let weights = DeviceMatrix::upload(&compressed)?;
    let plan = zipgemm_plan(&gpu, &weights, n)?;
    println!("{}: {plan}", gpu.name()?);

    let x_gpu = stream.clone_htod(&reference::bits(&x))?;
    let mut y_gpu = stream.alloc_zeros::<u16>(n * m)?;
    {
        // While these live, cudarc takes the slices to be in use on the stream.
        let (x, _reads) = x_gpu.device_ptr(&stream);
        let (y, _writes) = y_gpu.device_ptr_mut(&stream);
        let operands = GemmOperands::new(&weights, x, n, y);
        // SAFETY: both slices have room, in memory of this device; they do not overlap; one stream
        // has the workspace; uploading the weights has waited for them.
        unsafe {
            zipgemm_raw(
                &gpu,
                stream.cu_stream(),
                &plan,
                &weights,
                &operands,
                &workspace,
            )?;
        }
    }
    let y = stream.clone_dtoh(&y_gpu)?;
    let y: Vec<f32> = y.iter().map(|&y| bf16::from_bits(y).to_f32()).collect();
    reference::check(&w, &x, k, &y, 1.0 / 256.0)?;
    println!("the product is right");
    Ok(())
}
