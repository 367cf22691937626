//! Turns `gpu` into PTX. The kernels are not written yet.
fn main() {}
