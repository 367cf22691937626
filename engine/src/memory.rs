//! Bytes that a model takes, from its configuration alone.

use crate::{Config, models::Model};

/// Bytes of all weights in BF16. An embedding that is the head too counts once.
pub fn weights(config: &Config) -> u64 {
    let mut bytes = 0;
    let counted = Model::new(config, &mut |weight| {
        bytes += 2 * weight.shape.iter().product::<u64>();
        Ok(())
    });
    counted.expect("counting cannot fail");
    bytes
}

/// Bytes of keys and values of so many sequences of so many tokens each, whose elements take `element` bytes:
/// `u64::MAX` if they are more than that.
pub fn keys_and_values(config: &Config, sequences: u64, tokens: u64, element: u64) -> u64 {
    let per_token = 2 * (config.layers * config.kv_width()) as u64;
    [sequences, tokens, element]
        .into_iter()
        .fold(per_token, u64::saturating_mul)
}
