//! Qwen3's mixtures of experts ([report](https://arxiv.org/abs/2505.09388)): Qwen3 with routed experts in place of the
//! MLP of some layers, or all.

use super::{Experts, FeedForward, Layer, Scope, llama};
use crate::{Result, config::Config};

pub fn layer<W>(config: &Config, index: usize, scope: &mut Scope<W>) -> Result<Layer<W>> {
    let Some(experts) = config.experts.as_ref().filter(|e| e.layers[index]) else {
        return llama::layer(config, index, scope);
    };
    let hidden = config.hidden;
    let block = |scope: &mut Scope<W>| {
        let router = scope.matrix("gate", experts.count, hidden)?;
        let all = (0..experts.count).map(|expert| {
            let mut scope = scope.inside(&format!("experts.{expert}"));
            scope.mlp(hidden, experts.intermediate, false)
        });
        Ok(FeedForward::Experts(Experts {
            router,
            experts: all.collect::<Result<_>>()?,
            per_token: experts.per_token,
            normalized: experts.normalized,
        }))
    };
    llama::layer_with(block, config, index, scope)
}
