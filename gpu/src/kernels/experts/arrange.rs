//! Puts rows of activations into the order of experts, as `prefill_grouped` copies them.
//!
//! ```text
//! number of a row --LDG--+
//! eight of its features -+--> store
//! ```
//!
//! A thread has eight features of a row. Bound by memory. Rows of the result are aligned to 16 bytes, whatever they were
//! before.

use crate::{
    arch::{grid, memory, thread},
    args::ArrangeArgs,
    launch::ARRANGE_FEATURES,
};

/// Copies a thread's features.
///
/// # Safety
/// `args` describe rows, and their order and number as `route` writes them; the grid has a column of blocks for each row
/// that there can be, each for [`ARRANGE_FEATURES`] features.
#[inline(always)]
pub unsafe fn arrange(args: &ArrangeArgs) {
    grid::wait_dependencies();
    grid::launch_dependents();
    // SAFETY: every thread has a place in the grid; ranges are the caller's promise.
    unsafe {
        let columns = args.features.div_ceil(ARRANGE_FEATURES as u32);
        let block = thread::block() as u32;
        let row = block.checked_div(columns).unwrap_or(0);
        let column = block - row * columns;
        let feature = column * ARRANGE_FEATURES as u32 + 8 * thread::thread() as u32;
        if feature >= args.features || row >= *args.routed {
            return;
        }
        let from = match args.rows.is_null() {
            true => row,
            false => *args.rows.add(row as usize),
        };
        let at = |row: u32, stride: u64| row as usize * stride as usize + feature as usize;
        let from = args.x.add(at(from, args.x_stride));
        let to = args.y.add(at(row, args.y_stride));
        let left = args.features - feature;
        if left >= 8 && from as u64 % 16 == 0 {
            memory::store_global_u32x4(to.cast(), memory::load_global_u32x4(from.cast()));
        } else {
            unroll!(I < 8 => {
                if (I as u32) < left {
                    *to.add(I) = *from.add(I);
                }
            });
        }
    }
}
