//! ZipGEMM on zipserv's own buffers and streams: the safe calls.
//!
//! ```text
//! cargo run --release -p zipserv --features cuda --example own
//! ```

use std::error::Error;

use half::bf16;
use zipserv::{
    Matrix, encode,
    gpu::{Buffer, Device, Linear, Stream, Workspace},
};

mod reference;

fn main() -> Result<(), Box<dyn Error>> {
    let (m, k, n) = (4096, 2048, 8);
    let (w, x) = (
        reference::values(m * k, 0.02),
        reference::values(n * k, 1.0),
    );
    let compressed = encode(&Matrix::from_bf16(m, k, &w)?)?;

    let device = Device::new(0)?;
    let stream = Stream::new(&device)?;
    let mut workspace = Workspace::new(&device)?;
    let layer = Linear::new(&device, &compressed)?;
    println!("{}: {}", device.name(), layer.prepare(n)?);

    // BF16 outputs.
    let x_gpu = Buffer::from_slice(&device, &x)?;
    let mut y = Buffer::<bf16>::zeroed(&device, n * m)?;
    layer.forward(&stream, &x_gpu, n, &mut y, &mut workspace)?;
    let y: Vec<f32> = y.to_vec(&stream)?.into_iter().map(bf16::to_f32).collect();
    reference::check(&w, &x, k, &y, 1.0 / 256.0)?;

    // FP32 outputs, and a bias of ones.
    let layer = layer.with_bias(Buffer::from_slice(&device, &vec![bf16::ONE; m])?)?;
    let mut y = Buffer::<f32>::zeroed(&device, n * m)?;
    layer.forward(&stream, &x_gpu, n, &mut y, &mut workspace)?;
    let y: Vec<f32> = y.to_vec(&stream)?.into_iter().map(|y| y - 1.0).collect();
    reference::check(&w, &x, k, &y, 1e-6)?;

    // The weights themselves, bit for bit.
    let mut restored = Buffer::<bf16>::zeroed(&device, m * k)?;
    layer.weights().decompress(&stream, &mut restored)?;
    if reference::bits(&restored.to_vec(&stream)?) != reference::bits(&w) {
        return Err("the weights came back otherwise".into());
    }
    println!("both products are right, and the weights came back bit for bit");
    Ok(())
}
