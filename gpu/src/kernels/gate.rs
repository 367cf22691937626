//! Y = silu(first half of X's features) x (second half): what a gated MLP has between its products, where the first of
//! them has not done it itself.
//!
//! ```text
//! eight features of gate and up, BF16 --LDG--> silu(gate) x up, FP32 --> BF16, unless outputs are FP32 --> store
//! ```
//!
//! A thread has eight features of a token. Bound by memory, or for a few tokens by the launch.

use crate::{
    arch::{grid, memory, thread},
    args::GateArgs,
    kernels::epilogue::Epilogue,
    launch::GATE_FEATURES,
};

/// Writes a thread's outputs.
///
/// # Safety
/// `args` describe inputs and outputs, aligned to 16 bytes with their rows; the grid has a column of blocks a token,
/// each for [`GATE_FEATURES`] features.
#[inline(always)]
pub unsafe fn gate(args: &GateArgs) {
    grid::wait_dependencies();
    grid::launch_dependents();
    // SAFETY: every thread has a place in the grid; ranges are the caller's promise.
    unsafe {
        let columns = args.features.div_ceil(GATE_FEATURES as u32);
        let block = thread::block() as u32;
        let token = block.checked_div(columns).unwrap_or(0);
        let column = block - token * columns;
        let feature = column * GATE_FEATURES as u32 + 8 * thread::thread() as u32;
        let is_there = args.routed.is_null() || token < *args.routed;
        if feature >= args.features || !is_there {
            return;
        }
        let row = args.x.add(token as usize * args.x_stride as usize);
        let eight = |from: u32| memory::load_global_u32x4(row.add(from as usize).cast());
        let (gate, up) = (eight(feature), eight(args.features + feature));
        let epilogue = Epilogue::new(&args.output, args.features, token + 1);
        epilogue.store_gated(token, feature, gate, up);
    }
}
