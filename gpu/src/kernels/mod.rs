//! The kernels. Each file opens with its data flow and its budget.

pub mod decompress;
mod fetch;
pub mod read;
mod tile;
mod work;
pub mod zipgemm;
