//! A mixture's experts: products of tokens by the matrices that they were sent to.
//!
//! [`Routing`] sorts tokens by expert, [`GroupedPlan`] multiplies them, and [`Device::combine_raw`] adds up what became
//! of a token. All of it is told by the device, so nothing waits for the host, and a graph can have all of it.

mod linear;
mod plan;
mod routing;
mod wgmma;

pub use self::{
    linear::{ExpertInputs, GroupedLinear},
    plan::{GroupedPlan, RawGrouped},
    routing::{RawExperts, RawRouting, Routing},
};
