//! Any address as memory of the device, or as a stream.
#![forbid(unsafe_code)]

use half::bf16;
use zipserv::gpu::{Buffer, Device, Stream, View, ViewMut};

fn borrowed(device: &Device) {
    let _ = Buffer::<bf16>::borrowed(device, 0x1000, 8);
    let _ = View::<bf16>::from_raw(device, 0x1000, 8);
    let _ = ViewMut::<bf16>::from_raw(device, 0x1000, 8);
    let _ = Stream::from_raw(device, std::ptr::dangling_mut());
}

fn main() {}
