//! What a mixture of experts has around its products: which tokens go to which expert, and what becomes of the outputs.
//!
//! ```text
//!  experts of tokens --route--> order, groups --+
//!                                               v
//!  activations ------------------> zipgemm_grouped (gate, up; silu) --> zipgemm_grouped (down) --combine--> outputs
//! ```
//!
//! With many tokens an expert the products are those of `wgmma`, which take activations in the order of experts, and do
//! not gate:
//!
//! ```text
//!  order, activations --arrange--> prefill_grouped (gate, up) --gate--> prefill_grouped (down) --combine--> outputs
//! ```
//!
//! Nothing of it waits for the host, so all of it can be captured into a graph.

pub mod arrange;
pub mod combine;
pub mod route;
