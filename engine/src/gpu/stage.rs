//! What a step's launches are for, to time those of one stage alone.

use serde::Serialize;

/// A stage of a step, in all layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// States before products, and embeddings where they start.
    Norm,
    /// The product that makes queries, keys and values.
    Qkv,
    /// Queries and keys are turned by their positions, keys and values go into the cache.
    Place,
    /// Attention.
    Attend,
    /// The product behind it.
    Output,
    /// The MLP, or experts and their choice.
    FeedForward,
    /// The product that makes logits.
    Head,
    /// The next token.
    Choose,
}

impl Stage {
    /// In the order of a step.
    pub const ALL: [Self; 8] = [
        Self::Norm,
        Self::Qkv,
        Self::Place,
        Self::Attend,
        Self::Output,
        Self::FeedForward,
        Self::Head,
        Self::Choose,
    ];
}

/// The stages that are wanted: all, or one.
#[derive(Clone, Copy)]
pub struct Wanted(pub Option<Stage>);

impl Wanted {
    pub const ALL: Self = Self(None);

    pub fn has(self, stage: Stage) -> bool {
        self.0.is_none_or(|only| only == stage)
    }
}
