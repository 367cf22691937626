//! A kernel of one's own on compressed weights, step by step in `docs/KERNELS.md`: the host's side
//! of `examples/kernels/src/matvec.rs`.
//!
//! ```text
//! cargo run --release -p zipserv --features cuda --example matvec
//! ```

use std::error::Error;

use example_kernels::{
    KERNELS,
    matvec::{Args, LAUNCH},
};
use half::bf16;
use zipserv::{
    Matrix, decode, encode,
    gpu::{Buffer, CustomKernels, Device, DeviceMatrix, Stream},
};

mod reference;

const PTX: &str = include_str!("kernels/ptx/example_sm_80.ptx");

/// The kernel, for a device.
pub struct Matvec(CustomKernels);

impl Matvec {
    /// It is loaded when it first multiplies.
    pub fn new(device: &Device) -> Self {
        Self(CustomKernels::new(device, PTX, KERNELS))
    }

    /// y[M] = W[M, K] x[K], in FP32, of BF16 activations. K is a multiple of 64.
    ///
    /// # Errors
    /// When lengths do not fit, or something belongs to another device, and from the driver.
    pub fn multiply(
        &self,
        stream: &Stream,
        weights: &DeviceMatrix,
        x: &Buffer<bf16>,
        y: &mut Buffer<f32>,
    ) -> Result<(), Box<dyn Error>> {
        let (m, k) = (weights.rows(), weights.cols());
        if !k.is_multiple_of(64) || x.len() != k || y.len() != m || !x.address().is_multiple_of(4) {
            let lengths = format!("{} activations and {} outputs", x.len(), y.len());
            return Err(
                format!("{lengths} do not fit {m} x {k} weights in tiles of 64 columns").into(),
            );
        }
        let devices = [weights.device(), x.device(), y.device()];
        if devices.map(Device::ordinal) != [stream.device().ordinal(); 3] {
            return Err("not everything is on the stream's device".into());
        }
        let (dense, offsets, patches) = weights.addresses();
        let args = Args {
            y: y.address() as *mut f32,
            x: x.address() as *const u16,
            dense,
            offsets,
            patches,
            m: m as u32,
            k: k as u32,
        };
        let strips = m.div_ceil(32) as u32;
        // SAFETY: the kernel takes these arguments; all is on one device, and freeing it waits for
        // kernels that use it; lengths fit, and `y` is borrowed alone.
        unsafe { self.0.launch(stream, LAUNCH.name, strips, args)? };
        Ok(())
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let (m, k) = (4096, 4096);
    let (w, x) = (reference::values(m * k, 0.02), reference::values(k, 1.0));
    let compressed = encode(&Matrix::from_bf16(m, k, &w)?)?;

    let device = Device::new(0)?;
    let stream = Stream::new(&device)?;
    let weights = DeviceMatrix::upload(&device, &compressed)?;
    let x_gpu = Buffer::from_slice(&device, &x)?;
    let mut y_gpu = Buffer::from_slice(&device, &vec![f32::NAN; m])?;
    let kernel = Matvec::new(&device);
    kernel.multiply(&stream, &weights, &x_gpu, &mut y_gpu)?;
    let y = y_gpu.to_vec(&stream)?;

    // Against the same on the CPU.
    reference::check(&decode(&compressed), &x, k, &y, 0.0)?;
    let patches = compressed.outliers();
    println!(
        "{}: {m} x {k} weights, {patches} of them patched: right",
        device.name()
    );
    Ok(())
}
