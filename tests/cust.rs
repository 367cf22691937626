//! Buffers and streams of cust, by the feature of that name.
//!
//! ```text
//! cargo test --release -p zipserv --features cust --test cust
//! ```
//!
//! Without a device, one line says that everything was skipped.

use std::{
    io::{Write, stderr},
    sync::{Mutex, MutexGuard, PoisonError},
};

use cust::{
    context::{Context, CurrentContext},
    memory::{CopyDestination, DeviceBuffer},
    stream::{Stream, StreamFlags},
};
use half::bf16;
use zipserv::{
    Matrix, encode,
    gpu::{self, Device, GpuError, Linear, Operand, Workspace},
};

/// One test at a time: waiting for the device breaks nothing here, but contexts are the thread's.
static TURN: Mutex<()> = Mutex::new(());

/// The device, and its context as cust holds it.
struct Lab {
    device: Device,
    _context: Context,
    _turn: MutexGuard<'static, ()>,
}

fn lab() -> Option<Lab> {
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    match Device::new(0) {
        Err(error @ (GpuError::NoDriver | GpuError::NoDevice { .. })) => {
            // The macros that print would be captured.
            let _ = writeln!(stderr(), "SKIPPED: {error}");
            None
        }
        device => Some(Lab {
            device: device.unwrap(),
            _context: cust::quick_init().unwrap(),
            _turn: turn,
        }),
    }
}

/// Small whole numbers, whose products and sums are exact.
fn values(len: usize) -> Vec<u16> {
    let value = |i: usize| bf16::from_f32((i * 7 % 5) as f32 - 2.0).to_bits();
    (0..len).map(value).collect()
}

fn upload<T: cust::memory::DeviceCopy>(values: &[T]) -> DeviceBuffer<T> {
    let buffer = DeviceBuffer::from_slice(values).unwrap();
    // cust copies on the default stream, which the tests' streams do not wait for.
    CurrentContext::synchronize().unwrap();
    buffer
}

fn download<T: cust::memory::DeviceCopy + Default>(buffer: &DeviceBuffer<T>) -> Vec<T> {
    let mut values = vec![T::default(); buffer.len()];
    buffer.copy_to(&mut values).unwrap();
    values
}

#[test]
fn a_layer_multiplies_and_comes_back() {
    let Some(lab) = lab() else {
        return;
    };
    let (m, k) = (100, 200);
    let w = values(m * k);
    let matrix = encode(&Matrix::from_bits(m, k, &w).unwrap()).unwrap();
    let layer = Linear::new(&lab.device, &matrix).unwrap();
    let theirs = Stream::new(StreamFlags::NON_BLOCKING, None).unwrap();
    // SAFETY: `theirs` lives to the end of the test.
    let stream = unsafe { gpu::cust::stream(&lab.device, &theirs).unwrap() };
    let mut workspace = Workspace::new(&lab.device).unwrap();
    for n in [1, 8, 70] {
        let x = values(n * k);
        let x_gpu = upload(&x);
        let mut y_gpu = upload(&vec![f32::NAN; n * m]);
        // SAFETY: the slices live until the wait, and nothing else uses the outputs.
        unsafe {
            let x = gpu::cust::view::<u16, bf16>(&lab.device, &x_gpu);
            let y = gpu::cust::view_mut::<f32, f32>(&lab.device, &mut y_gpu);
            layer.forward(&stream, x, n, y, &mut workspace).unwrap();
            stream.synchronize().unwrap();
        }
        let value = |bits: u16| bf16::from_bits(bits).to_f32();
        let row = |x: &[u16], w: &[u16]| -> f32 {
            x.iter().zip(w).map(|(&x, &w)| value(x) * value(w)).sum()
        };
        let of_token = |x| w.chunks(k).map(move |w| row(x, w));
        let expected: Vec<f32> = x.chunks(k).flat_map(of_token).collect();
        assert!(download(&y_gpu) == expected, "{n} tokens");
    }
    let mut restored = upload(&vec![0u16; m * k]);
    // SAFETY: as above.
    unsafe {
        let restored = gpu::cust::view_mut::<u16, bf16>(&lab.device, &mut restored);
        layer.weights().decompress(&stream, restored).unwrap();
        stream.synchronize().unwrap();
    }
    assert!(download(&restored) == w);
}

/// A stream of another context than the device's primary one.
#[test]
fn streams_of_other_contexts_are_refused() {
    use cust::context::legacy;
    let Some(lab) = lab() else {
        return;
    };
    let device = cust::device::Device::get_device(0).unwrap();
    let flags = legacy::ContextFlags::SCHED_AUTO;
    let _other = legacy::Context::create_and_push(flags, device).unwrap();
    let theirs = Stream::new(StreamFlags::NON_BLOCKING, None).unwrap();
    // SAFETY: it lives.
    let stream = unsafe { gpu::cust::stream(&lab.device, &theirs) };
    let operand = Operand::Stream;
    assert!(matches!(stream, Err(GpuError::Context { operand: it }) if it == operand));
}

#[test]
#[should_panic(expected = "bits of another type")]
fn types_of_other_sizes_are_refused() {
    let Some(lab) = lab() else {
        panic!("bits of another type, were there a device");
    };
    let slice = upload(&[0f32; 4]);
    // SAFETY: the view is not used.
    let _ = unsafe { gpu::cust::view::<f32, bf16>(&lab.device, &slice) };
}
