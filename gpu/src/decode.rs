//! From a lane's words to BF16 pairs: about two instructions a weight.
//!
//! ```text
//! exponents = (word & mask) * 2^s + base_pair      one logic op, one multiply-add
//! weights   = (permute(bytes) & 0x807F807F) | exponents   one permute, one logic op
//! ```
//!
//! Everything here is pure integer code and compiles for the host, where the CPU codec uses it.

use crate::{
    integer::{double_bytes, multiply_add},
    layout::{LANE_PAIRS, LANE_WORDS},
};

/// Pairs whose codes sit in five fields of three bits in each 16-bit half of one bitmap word.
const FIELDS: usize = 5;
/// The pair whose codes take the top bit of each half of the three words.
const LAST: usize = LANE_PAIRS - 1;

/// A base exponent in the exponent fields of both weights of a pair.
#[inline(always)]
pub const fn base_pair(base: u8) -> u32 {
    (base as u32) << 7 | (base as u32) << 23
}

/// Adds the codes of pair `P` (`0..16`) to the bases of its two weights.
///
/// `words` are the lane's three bitmap words; `bases` holds each weight's base exponent in its
/// BF16 exponent field, as [`base_pair`] does. Field `f` of word `w` holds pair `5 * w + f`, at
/// bits `3 * f` and `16 + 3 * f`; the last pair has bit `i` of its codes at bits 15 and 31 of
/// word `i`.
#[inline(always)]
pub fn exponents<const P: usize>(words: [u32; LANE_WORDS], bases: u32) -> u32 {
    if P == LAST {
        let top = 0x8000_8000;
        let codes = (words[0] & top) >> 8 | (words[1] & top) >> 7 | (words[2] & top) >> 6;
        return codes.wrapping_add(bases);
    }
    let word = words[P / FIELDS];
    // Fields 3 and 4 lie above the exponent field; one shift of the word, shared by both,
    // brings them below it.
    match P % FIELDS {
        0 => multiply_add::<{ 1 << 7 }>(word & 0x0007_0007, bases),
        1 => multiply_add::<{ 1 << 4 }>(word & 0x0038_0038, bases),
        2 => multiply_add::<{ 1 << 1 }>(word & 0x01C0_01C0, bases),
        3 => multiply_add::<{ 1 << 7 }>(word >> 9 & 0x0007_0007, bases),
        _ => multiply_add::<{ 1 << 4 }>(word >> 9 & 0x0038_0038, bases),
    }
}

/// Spreads two sign/mantissa bytes over the two halves of a word: bytes 0 and 1 of `bytes`, or
/// bytes 2 and 3 with `HIGH`. The exponent fields come out zero.
#[inline(always)]
pub fn sign_mantissa<const HIGH: bool>(bytes: u32) -> u32 {
    double_bytes::<HIGH>(bytes) & 0x807F_807F
}

/// Both weights of pair `P` of a lane: the first in the low half, as `mma` wants them.
///
/// `bytes` is the word of sign/mantissa bytes that holds the pair, word `P / 2` of the lane's
/// eight.
#[inline(always)]
pub fn pair<const P: usize>(bytes: u32, words: [u32; LANE_WORDS], bases: u32) -> u32 {
    let exponents = exponents::<P>(words, bases);
    if P.is_multiple_of(2) {
        sign_mantissa::<false>(bytes) | exponents
    } else {
        sign_mantissa::<true>(bytes) | exponents
    }
}

/// All four fragment registers of k-step `S` (`0..4`), from the step's two words of bytes.
#[inline(always)]
pub fn kstep<const S: usize>(
    bytes: [u32; 2],
    words: [u32; LANE_WORDS],
    bases: [u32; 4],
) -> [u32; 4] {
    // `S` is a constant, so one arm survives.
    macro_rules! registers {
        ($($p:literal)*) => {[
            $(pair::<$p>(bytes[$p / 2 % 2], words, bases[$p % 4])),*
        ]};
    }
    match S {
        0 => registers!(0 1 2 3),
        1 => registers!(4 5 6 7),
        2 => registers!(8 9 10 11),
        _ => registers!(12 13 14 15),
    }
}

/// The bitmap words of a lane from the codes of its pairs: the inverse of [`exponents`]. Each
/// entry has its first weight's code at bit 0 and its second's at bit 16.
#[inline(always)]
pub const fn bitmap_words(codes: &[u32; LANE_PAIRS]) -> [u32; LANE_WORDS] {
    let mut words = [0; LANE_WORDS];
    let mut w = 0;
    while w < LANE_WORDS {
        words[w] = (codes[LAST] >> w & 0x0001_0001) << 15;
        let mut field = 0;
        while field < FIELDS {
            words[w] |= codes[FIELDS * w + field] << (3 * field);
            field += 1;
        }
        w += 1;
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_round_trip_in_every_slot() {
        for pair_index in 0..LANE_PAIRS {
            for codes in [0u32, 0x0007_0000, 0x0000_0007, 0x0005_0002, 0x0002_0005] {
                // Every other slot is full: none may leak into this pair.
                let mut all = [0x0007_0007; LANE_PAIRS];
                all[pair_index] = codes;
                let words = bitmap_words(&all);
                let bases = base_pair(100);
                macro_rules! check {
                    ($($p:literal)*) => {$(
                        if pair_index == $p {
                            assert_eq!(exponents::<$p>(words, bases), bases + (codes << 7));
                        }
                    )*};
                }
                check!(0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15);
            }
        }
    }

    #[test]
    fn sign_and_mantissa_go_to_their_bits() {
        assert_eq!(sign_mantissa::<false>(0xFF00_80FF), 0x8000_807F);
        assert_eq!(sign_mantissa::<true>(0x7F81_0000), 0x007F_8001);
    }
}
