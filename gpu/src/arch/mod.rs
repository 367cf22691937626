//! Thin wrappers of the instructions that the kernels use, one function each.
//!
//! Shared memory is addressed by 32-bit offsets in its own window, as the instructions take
//! them. A wrapper does what its PTX instruction does, or the few that belong together do; the
//! contract of each is the PTX ISA's, and its `# Safety` section says what the caller owes.

pub mod barrier;
pub mod cluster;
pub mod copy;
pub mod grid;
pub mod math;
pub mod memory;
pub mod mma;
pub mod thread;
pub mod wgmma;
