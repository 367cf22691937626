//! How a model is divided among devices, after [Megatron-LM](https://arxiv.org/abs/1909.08053): each has some heads, and
//! some inner elements of feed-forward blocks. What two products in a row make of these is summed up over all devices.

use std::{collections::HashSet, ops::Range};

use crate::{Config, Error, Result};

/// Rows at whose multiples a compressed matrix can be cut.
const STRIP: usize = 32;

/// One of so many parts.
#[derive(Clone, Copy, Debug)]
pub struct Part {
    pub index: usize,
    pub of: usize,
}

impl Part {
    /// Of as many as are divided equally.
    pub fn range(self, len: usize) -> Range<usize> {
        let at = |index: usize| index * len / self.of;
        at(self.index)..at(self.index + 1)
    }

    /// Of the vocabulary, in whole strips of rows.
    pub fn vocabulary(self, len: usize) -> Range<usize> {
        let strips = self.range(len.div_ceil(STRIP));
        let at = |strip: usize| (strip * STRIP).min(len);
        at(strips.start)..at(strips.end)
    }

    /// A model's configuration with what one device has of it.
    pub fn config(self, config: &Config) -> Config {
        Config {
            heads: config.heads / self.of,
            kv_heads: config.kv_heads / self.of,
            intermediate: config.intermediate / self.of,
            ..config.clone()
        }
    }
}

/// Whether a model can be divided among the devices of these numbers.
pub fn check(config: &Config, numbers: &[u32]) -> Result<()> {
    let refused = |why: String| Err(Error::Request(why));
    let count = numbers.len();
    if count == 0 {
        return refused("there is no device to run on".into());
    }
    if numbers.iter().collect::<HashSet<_>>().len() < count {
        return refused(format!("of devices {numbers:?} one comes twice"));
    }
    if count > 1 && config.experts.is_some() {
        return refused("mixtures of experts run on one GPU only".into());
    }
    for (key, size) in [
        ("num_attention_heads", config.heads),
        ("num_key_value_heads", config.kv_heads),
        ("intermediate_size", config.intermediate),
    ] {
        if !size.is_multiple_of(count) {
            return refused(format!(
                "{key} is {size}, which {count} devices cannot share equally"
            ));
        }
    }
    if config.vocabulary.div_ceil(STRIP) < count {
        let size = config.vocabulary;
        return refused(format!(
            "vocab_size is {size}, too small for {count} devices"
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_all_there_is_in_whole_strips() {
        for (len, of) in [
            (61, 1),
            (61, 2),
            (64, 2),
            (97, 4),
            (128_256, 8),
            (151_936, 4),
        ] {
            let mut end = 0;
            for index in 0..of {
                let part = Part { index, of }.vocabulary(len);
                assert_eq!(part.start, end);
                assert!(!part.is_empty() && part.start.is_multiple_of(STRIP));
                end = part.end;
            }
            assert_eq!(end, len);
        }
    }
}
