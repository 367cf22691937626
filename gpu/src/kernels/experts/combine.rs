//! Adds up the outputs of a token's experts.
//!
//! ```text
//! place, weight of each assignment --LDG, a lane each--+
//! four features of its outputs, FP32, eight at a time -+--> sum, in the order of assignments --> BF16 --> store
//! ```
//!
//! A thread has four features of a token. One rounding, of the sum.

use crate::{
    arch::{grid, memory, mma, thread},
    args::{CombineArgs, NOWHERE},
    kernels::experts::expert,
    launch::COMBINE_FEATURES,
    layout::LANES,
};

/// Assignments whose outputs are loaded at a time.
const AT_ONCE: u32 = 8;

/// Writes a thread's outputs.
///
/// # Safety
/// `args` describe outputs of experts, and places as `route` writes them, if any: these and weights are there before the
/// kernel ahead has ended. The grid has a column of blocks a token, each for [`COMBINE_FEATURES`] features.
#[inline(always)]
pub unsafe fn combine(args: &CombineArgs) {
    // SAFETY: every thread has a place in the grid; ranges are the caller's promise.
    unsafe {
        let columns = args.features.div_ceil(COMBINE_FEATURES as u32);
        let block = thread::block() as u32;
        let token = block.checked_div(columns).unwrap_or(0);
        let column = block - token * columns;
        let feature = column * COMBINE_FEATURES as u32 + 4 * thread::thread() as u32;
        let has_feature = feature < args.features;
        let first = token * args.top_k;
        // Each lane looks after an assignment of the next 32. Routing is done: the product ahead has waited for it.
        let assignment = |done: u32| {
            let at = (first + done + thread::lane()) as usize;
            if done + thread::lane() >= args.top_k {
                return (NOWHERE, 0);
            }
            let place = match args.places.is_null() {
                true if expert(&args.unsorted, at as u32) == NOWHERE => NOWHERE,
                true => at as u32,
                false => memory::observe_u32(args.places.add(at)),
            };
            (place, memory::observe_u32(args.weights.add(at).cast()))
        };
        let mut own = assignment(0);
        grid::wait_dependencies();
        grid::launch_dependents();
        let mut sums = [0f32; 4];
        let mut done = 0;
        while done < args.top_k {
            let (own_place, own_weight) = own;
            let end = (done + LANES as u32).min(args.top_k);
            let mut from = 0;
            while done < end {
                let mut parts = [[0u32; 4]; 8];
                let mut weights = [0u32; 8];
                unroll!(I < 8 => {
                    let lane = (from + I as u32) % LANES as u32;
                    let place = thread::shuffle(own_place, lane);
                    weights[I] = thread::shuffle(own_weight, lane);
                    let there = done + (I as u32) < end && place != NOWHERE && has_feature;
                    if there {
                        let at = place as usize * args.features as usize + feature as usize;
                        parts[I] = memory::load_global_u32x4(args.parts.add(at).cast());
                    } else {
                        weights[I] = 0;
                    }
                });
                unroll!(I < 8 => {
                    unroll!(E < 4 => { sums[E] += f32::from_bits(weights[I]) * f32::from_bits(parts[I][E]); });
                });
                from += AT_ONCE;
                done += AT_ONCE;
            }
            done = end;
            own = assignment(done);
        }
        if has_feature {
            let to = args
                .y
                .add(token as usize * args.features as usize + feature as usize);
            let [a, b, c, d] = sums;
            let pairs = [mma::to_bf16_pair(a, b), mma::to_bf16_pair(c, d)];
            memory::store_global_u32x2(to.cast(), pairs);
        }
    }
}
