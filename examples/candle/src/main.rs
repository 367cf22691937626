//! ZipGEMM on tensors of [candle](https://docs.rs/candle-core): a linear layer whose weights stay
//! compressed. See README.md for how to build it.

use std::error::Error as StdError;

use candle_core::{
    CpuStorage, CudaStorage, CustomOp1, D, DType, Device, Error, Layout, Result, Shape, Tensor,
    backend::BackendStorage,
    bail,
    cuda_backend::{
        CudaDevice,
        cudarc::driver::{DevicePtr, DevicePtrMut},
    },
};
use half::bf16;
use zipserv::{
    CompressedMatrix, Matrix, encode,
    gpu::{self, Linear, RawOperands, Workspace},
};

#[path = "../../reference.rs"]
mod reference;

/// A linear layer without bias: `y = x W^T`, of BF16 tensors whose last dimension is K.
///
/// It belongs to one `CudaDevice` of candle, and so to one stream, which its workspace needs. It keeps
/// a plan for each number of tokens. The layers of a model would share a workspace.
struct ZipLinear {
    device: CudaDevice,
    layer: Linear,
    workspace: Workspace,
}

impl ZipLinear {
    fn new(
        device: &Device,
        weights: &CompressedMatrix,
    ) -> std::result::Result<Self, Box<dyn StdError>> {
        let device = device.as_cuda_device()?.clone();
        let ordinal = device.cuda_stream().context().ordinal();
        // Holds the context that candle uses too.
        let gpu = gpu::Device::new(ordinal as u32)?;
        Ok(Self {
            device,
            layer: Linear::new(&gpu, weights)?,
            workspace: Workspace::new(&gpu)?,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        x.apply_op1_no_bwd(self)
    }
}

impl CustomOp1 for ZipLinear {
    fn name(&self) -> &'static str {
        "zip-linear"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        bail!("zip-linear is for CUDA tensors")
    }

    fn cuda_fwd(&self, x: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        let weights = self.layer.weights();
        let (m, k) = (weights.rows(), weights.cols());
        let dims = layout.dims();
        let Some((start, end)) = layout.contiguous_offsets() else {
            bail!("zip-linear wants contiguous activations")
        };
        if dims.last() != Some(&k) {
            bail!("activations of {dims:?} do not fit weights of {m} x {k}")
        }
        if x.device().id() != self.device.id() {
            bail!("zip-linear belongs to another device")
        }
        let n = (end - start) / k;
        let stream = self.device.cuda_stream();
        let x = x.as_cuda_slice::<bf16>()?.slice(start..end);
        // SAFETY: the product writes all of it.
        let mut y = unsafe { self.device.alloc::<bf16>(n * m)? };
        {
            // While these live, candle takes the memory to be in use on the stream.
            let (x, _reads) = x.device_ptr(&stream);
            let (y, _writes) = y.device_ptr_mut(&stream);
            let operands = RawOperands::new(weights, x, n, y);
            let (layer, raw) = (&self.layer, stream.cu_stream().cast());
            // SAFETY: both have room, in memory of this device, and do not overlap; all calls are on
            // the device's stream, one after the other; uploading the weights has waited for them.
            // Layer and workspace free their memory only when all that was launched has run.
            let launched = unsafe { layer.forward_raw(raw, &operands, &self.workspace) };
            launched.map_err(Error::wrap)?;
        }
        let shape = Shape::from([&dims[..dims.len() - 1], &[m]].concat());
        Ok((CudaStorage::wrap_cuda_slice(y, self.device.clone()), shape))
    }
}

fn main() -> std::result::Result<(), Box<dyn StdError>> {
    let (m, k, batch, tokens) = (4096, 2048, 2, 4);
    let n = batch * tokens;
    let (w, x) = (
        reference::values(m * k, 0.02),
        reference::values(n * k, 1.0),
    );

    let device = Device::new_cuda(0)?;
    let layer = ZipLinear::new(&device, &encode(&Matrix::from_bf16(m, k, &w)?)?)?;
    let x_gpu = Tensor::from_slice(&x, (batch, tokens, k), &device)?;
    let y = layer.forward(&x_gpu)?;
    assert_eq!(y.dims(), [batch, tokens, m]);

    let outputs: Vec<f32> = y.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?;
    reference::check(&w, &x, k, &outputs, 1.0 / 256.0)?;
    println!("the product is right");

    // Beside candle's own product of the dense weights, which rounds sums in another order.
    let dense = Tensor::from_slice(&w, (m, k), &device)?;
    let theirs = x_gpu.broadcast_matmul(&dense.t()?)?;
    let off = (y.to_dtype(DType::F32)? - theirs.to_dtype(DType::F32)?)?.abs()?;
    let worst: f32 = off.max(D::Minus1)?.flatten_all()?.max(0)?.to_scalar()?;
    println!("candle's product of the dense weights is at most {worst} off");
    Ok(())
}
