//! From a lane's words to BF16 pairs, scaled weights: 33 instructions for 32 weights.
//!
//! ```text
//! high bytes of a quad = word & 0x83838383 | the rest of them    one logic op; for some a rotation, or
//!                                                                two shifts and one more
//! pair                 = permute(low bytes, high bytes)
//! ```
//!
//! Everything here is pure integer code and compiles for the host, where the CPU codec uses it.

use crate::{
    integer::{interleave, masked_or},
    layout::{LANE_QUADS, LANE_WORDS},
};

/// Where the code of a weight is in its high byte: its sign and two bits of its exponent.
const CODES: u32 = 0x8383_8383;
/// The exponent bits of a code, and its sign.
const EXPONENTS: u32 = 0x0303_0303;
const SIGNS: u32 = 0x8080_8080;

/// The high bytes of quad `Q` (`0..8`) from the lane's three code words and the rest of the bytes:
/// [`window_high`](crate::layout::window_high), or where there is a patch [`Patch::high`](crate::layout::Patch::high).
///
/// Word `w` has the codes of quad `2 w` in their places, those of quad `2 w + 1` rotated left by three bits, and in the
/// two bits left of each byte, 6 and 5, the exponent bits of quad 6 (word 0) and of quad 7 (word 1),
/// or the signs of both (word 2).
#[inline(always)]
pub fn high_bytes<const Q: usize>(words: [u32; LANE_WORDS], rest: u32) -> u32 {
    if Q < 2 * LANE_WORDS {
        let word = words[Q / 2];
        let codes = if Q.is_multiple_of(2) {
            word
        } else {
            word.rotate_right(3)
        };
        return masked_or::<CODES>(codes, rest);
    }
    let last = Q - 2 * LANE_WORDS;
    let without_sign = masked_or::<EXPONENTS>(words[last] >> 5, rest);
    masked_or::<SIGNS>(words[2] << (1 + last), without_sign)
}

/// [`high_bytes`] of a quad that only run time knows.
#[inline(always)]
pub fn high_bytes_of(quad: usize, words: [u32; LANE_WORDS], rest: u32) -> u32 {
    match quad {
        0 => high_bytes::<0>(words, rest),
        1 => high_bytes::<1>(words, rest),
        2 => high_bytes::<2>(words, rest),
        3 => high_bytes::<3>(words, rest),
        4 => high_bytes::<4>(words, rest),
        5 => high_bytes::<5>(words, rest),
        6 => high_bytes::<6>(words, rest),
        _ => high_bytes::<7>(words, rest),
    }
}

/// Both pairs of quad `Q` of a lane: in each the first weight in the low half, as `mma` wants them.
///
/// `low` are the quad's low bytes, word `Q` of the lane's eight; `rest` is as for [`high_bytes`].
#[inline(always)]
pub fn quad<const Q: usize>(low: u32, words: [u32; LANE_WORDS], rest: u32) -> [u32; 2] {
    let high = high_bytes::<Q>(words, rest);
    [
        interleave::<false>(low, high),
        interleave::<true>(low, high),
    ]
}

/// All four fragment registers of k-step `S` (`0..4`), from the step's two words of low bytes and of the
/// rest of the high ones.
#[inline(always)]
pub fn kstep<const S: usize>(low: [u32; 2], words: [u32; LANE_WORDS], rest: [u32; 2]) -> [u32; 4] {
    // `S` is a constant, so one arm survives.
    macro_rules! registers {
        ($q:literal $r:literal) => {{
            let [a, b] = quad::<$q>(low[0], words, rest[0]);
            let [c, d] = quad::<$r>(low[1], words, rest[1]);
            [a, b, c, d]
        }};
    }
    match S {
        0 => registers!(0 1),
        1 => registers!(2 3),
        2 => registers!(4 5),
        _ => registers!(6 7),
    }
}

/// The code words of a lane from the high bytes of its quads: the inverse of [`high_bytes`]. Other
/// bits are dropped.
#[inline(always)]
pub const fn code_words(high: &[u32; LANE_QUADS]) -> [u32; LANE_WORDS] {
    let mut words = [0; LANE_WORDS];
    let mut w = 0;
    while w < LANE_WORDS {
        words[w] = high[2 * w] & CODES | (high[2 * w + 1] & CODES).rotate_left(3);
        w += 1;
    }
    let [c, d] = [high[6], high[7]];
    words[0] |= (c & EXPONENTS) << 5;
    words[1] |= (d & EXPONENTS) << 5;
    words[2] |= (c & SIGNS) >> 1 | (d & SIGNS) >> 2;
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_round_trip_in_every_slot() {
        for quad_index in 0..LANE_QUADS {
            for codes in [0, CODES, 0x8000_0003, 0x0102_0380, 0x0081_0002] {
                for others in [0, CODES] {
                    // None of the others may leak into this quad.
                    let mut all = [others; LANE_QUADS];
                    all[quad_index] = codes;
                    let words = code_words(&all);
                    macro_rules! check {
                        ($($q:literal)*) => {$(
                            if quad_index == $q {
                                assert_eq!(high_bytes::<$q>(words, 0x7C00_0004), codes | 0x7C00_0004);
                                assert_eq!(high_bytes_of($q, words, 0x7C00_0004), codes | 0x7C00_0004);
                            }
                        )*};
                    }
                    check!(0 1 2 3 4 5 6 7);
                }
            }
        }
    }

    #[test]
    fn bytes_go_to_their_places() {
        let [first, second] = quad::<0>(0x4433_2211, [0x0380_8301; 3], 0x7C38_3C04);
        assert_eq!((first, second), (0xBF22_0511, 0x7F44_B833));
    }
}
