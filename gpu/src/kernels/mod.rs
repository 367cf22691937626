//! The kernels. Each file opens with its data flow and its budget.

pub mod decompress;
pub mod read;
mod tile;
mod work;
pub mod zipgemm;
