//! What a mixture of experts has around its products: which tokens go to which expert, and what becomes of the outputs.
//!
//! ```text
//!  experts of tokens --route--> order, groups --+
//!                                               v
//!  activations ------------------> zipgemm_grouped (gate, up; silu) --> zipgemm_grouped (down) --combine--> outputs
//! ```
//!
//! A single token's assignments have nothing to be sorted by: the products take them as they are, and there is no `route`.
//!
//! With many tokens an expert the products are those of `wgmma`, which take activations in the order of experts:
//!
//! ```text
//!  order, activations --arrange--> prefill_grouped (gate, up; silu) --> prefill_grouped (down) --combine--> outputs
//! ```
//!
//! In groups of more than 64 tokens they do not gate; `gate` does it between them.
//!
//! Nothing of it waits for the host, so all of it can be captured into a graph.

pub mod arrange;
pub mod combine;
pub mod route;

use crate::{
    arch::memory,
    args::{ExpertsOf, NOWHERE},
};

/// The expert of an assignment, or [`NOWHERE`].
///
/// # Safety
/// The numbers are there. Threads that have not waited for the kernel ahead may ask, if one before it has written them.
#[inline(always)]
pub unsafe fn expert(of: &ExpertsOf, at: u32) -> u32 {
    if at >= of.assignments {
        return NOWHERE;
    }
    let words = 1 + usize::from(of.is_64_bit);
    let number = of.numbers.cast::<u32>().wrapping_add(at as usize * words);
    // SAFETY: there are so many assignments.
    let [low, high] = unsafe {
        [
            memory::observe_u32(number),
            if of.is_64_bit {
                memory::observe_u32(number.add(1))
            } else {
                0
            },
        ]
    };
    // Negative numbers are large ones without their sign.
    if high == 0 && low < of.experts {
        low
    } else {
        NOWHERE
    }
}
