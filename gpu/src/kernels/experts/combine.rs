//! Adds up the outputs of a token's experts.
//!
//! ```text
//! place, weight of each assignment --LDG--+
//! four features of its outputs, FP32 -----+--> sum, in the order of assignments --> BF16 --> store
//! ```
//!
//! A block a token, four features a thread at a time. One rounding, of the sum.

use crate::{
    arch::{grid, memory, mma, thread},
    args::{CombineArgs, NOWHERE},
};

/// Writes a token's outputs.
///
/// # Safety
/// `args` describe outputs of experts, and places as `route` writes them; a block a token is launched.
#[inline(always)]
pub unsafe fn combine(args: &CombineArgs) {
    grid::wait_dependencies();
    grid::launch_dependents();
    // SAFETY: every thread has a place in the grid; ranges are the caller's promise.
    unsafe {
        let token = thread::block() as u32;
        let (mut feature, step) = (4 * thread::thread() as u32, 4 * thread::threads() as u32);
        while feature < args.features {
            let mut sums = [0f32; 4];
            for k in 0..args.top_k {
                let at = (token * args.top_k + k) as usize;
                let place = *args.places.add(at);
                if place == NOWHERE {
                    continue;
                }
                let weight = *args.weights.add(at);
                let from = args
                    .parts
                    .add(place as usize * args.features as usize + feature as usize);
                let part = memory::load_global_u32x4(from.cast()).map(f32::from_bits);
                unroll!(E < 4 => { sums[E] += weight * part[E]; });
            }
            let to = args
                .y
                .add(token as usize * args.features as usize + feature as usize);
            let [a, b, c, d] = sums;
            let pairs = [mma::to_bf16_pair(a, b), mma::to_bf16_pair(c, d)];
            memory::store_global_u32x2(to.cast(), pairs);
            feature += step;
        }
    }
}
