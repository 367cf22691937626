//! ZipGEMM on buffers and streams of [cust](https://docs.rs/cust): the safe calls.
//!
//! ```text
//! cargo run --release -p zipserv --features cuda --example cust
//! ```

use std::error::Error;

use cust::{
    memory::{CopyDestination, DeviceBuffer},
    stream::{Stream, StreamFlags},
};
use half::bf16;
use zipserv::{
    Matrix,
    cuda::{
        DeviceMatrix, GemmSlices, Gpu, Outputs, Workspace, decompress, zipgemm, zipgemm_plan,
        zipgemm_with,
    },
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

    // Opens the device and makes its context current, which all that follows needs.
    let gpu = Gpu::new(0)?;
    let stream = Stream::new(StreamFlags::DEFAULT, None)?;
    let mut workspace = Workspace::new(&gpu)?;
    let weights = DeviceMatrix::upload(&compressed)?;
    let plan = zipgemm_plan(&gpu, &weights, n)?;
    println!("{}: {plan}", gpu.name()?);

    // BF16 outputs.
    let x_gpu = DeviceBuffer::from_slice(&reference::bits(&x))?;
    let mut y_gpu = DeviceBuffer::from_slice(&vec![0u16; n * m])?;
    zipgemm(
        &gpu,
        &stream,
        &plan,
        &weights,
        &x_gpu,
        &mut y_gpu,
        &mut workspace,
    )?;
    stream.synchronize()?;
    let mut y = vec![0u16; n * m];
    y_gpu.copy_to(&mut y)?;
    let y: Vec<f32> = y.iter().map(|&y| bf16::from_bits(y).to_f32()).collect();
    reference::check(&w, &x, k, &y, 1.0 / 256.0)?;

    // FP32 outputs, and a bias of ones.
    let bias = DeviceBuffer::from_slice(&vec![bf16::ONE.to_bits(); m])?;
    let mut y_gpu = DeviceBuffer::from_slice(&vec![0f32; n * m])?;
    let operands = GemmSlices {
        bias: Some(&bias),
        ..GemmSlices::new(&weights, &x_gpu, n, Outputs::F32(&mut y_gpu))
    };
    zipgemm_with(&gpu, &stream, &plan, &weights, operands, &mut workspace)?;
    stream.synchronize()?;
    let mut y = vec![0f32; n * m];
    y_gpu.copy_to(&mut y)?;
    let y: Vec<f32> = y.iter().map(|y| y - 1.0).collect();
    reference::check(&w, &x, k, &y, 1e-6)?;

    // The weights themselves, bit for bit.
    let mut restored = DeviceBuffer::from_slice(&vec![0u16; m * k])?;
    decompress(&gpu, &stream, &weights, &mut restored)?;
    stream.synchronize()?;
    let mut bits = vec![0u16; m * k];
    restored.copy_to(&mut bits)?;
    if bits != reference::bits(&w) {
        return Err("the weights came back otherwise".into());
    }
    println!("both products are right, and the weights came back bit for bit");
    Ok(())
}
