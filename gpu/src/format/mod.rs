//! The format of compressed weights: pure integer code, the same on the CPU and the GPU.

pub mod crc;
pub mod decode;
pub mod integer;
pub mod layout;
pub mod window;
