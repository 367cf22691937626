//! What a mixture of experts has around its products: which tokens go to which expert, and what becomes of the outputs.
//!
//! ```text
//!  experts of tokens --route--> order, groups --+
//!                                               v
//!  activations ------------------> zipgemm_grouped (gate, up; silu) --> zipgemm_grouped (down) --combine--> outputs
//! ```
//!
//! Nothing of it waits for the host, so all of it can be captured into a graph.

pub mod combine;
pub mod route;
