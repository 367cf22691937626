//! The kernels as PTX, for the host to load. `builder` makes these files of this crate.

/// For sm_80 and later, without instructions of one architecture only.
pub const SM_80: &str = include_str!("../ptx/zipserv_sm_80.ptx");
/// For Hopper.
pub const SM_90A: &str = include_str!("../ptx/zipserv_sm_90a.ptx");
