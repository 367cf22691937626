//! CRC-32 in parallel: that of gzip and PNG, as a polynomial over GF(2).
//!
//! A register's bit 31 is the coefficient of `x^0`, bit 0 that of `x^31` (reflected). With `w` the message's words of
//! 32 bits, in order, `n` of them, and `all` the register of 32 ones,
//!
//! ```text
//! crc = all + all x^(32 n) + sum over i of w[i] x^(32 (n - i))       mod P
//! ```
//!
//! so parts of the sum can be worked out apart, each by Horner's rule, and added up by exclusive or.

/// The polynomial without its highest term.
const POLYNOMIAL: u32 = 0xEDB8_8320;
/// The polynomial 1.
const ONE: u32 = 1 << 31;

/// The product of two polynomials.
#[inline(always)]
pub const fn multiply(a: u32, mut b: u32) -> u32 {
    let (mut product, mut bit) = (0, ONE);
    while bit != 0 {
        // `b` is its first value times the power of x that `bit` stands for.
        product ^= if a & bit != 0 { b } else { 0 };
        b = (b >> 1) ^ if b & 1 == 1 { POLYNOMIAL } else { 0 };
        bit >>= 1;
    }
    product
}

/// `x^(32 words)`.
#[inline(always)]
pub const fn shift(mut words: u64) -> u32 {
    // x^32 is what is left of the polynomial.
    let (mut power, mut square) = (ONE, POLYNOMIAL);
    while words != 0 {
        if words & 1 == 1 {
            power = multiply(power, square);
        }
        square = multiply(square, square);
        words >>= 1;
    }
    power
}

/// The checksum of a message of so many words, from the sum of its words' parts.
#[inline(always)]
pub const fn checksum(sum: u32, words: u64) -> u32 {
    sum ^ multiply(u32::MAX, shift(words)) ^ u32::MAX
}

#[cfg(test)]
mod tests {
    extern crate std;

    use super::*;
    use std::vec::Vec;

    /// As it is defined: bit by bit.
    fn plain(bytes: &[u8]) -> u32 {
        let mut crc = u32::MAX;
        for byte in bytes {
            crc ^= u32::from(*byte);
            for _ in 0..8 {
                crc = (crc >> 1) ^ if crc & 1 == 1 { POLYNOMIAL } else { 0 };
            }
        }
        !crc
    }

    #[test]
    fn sums_of_parts_are_the_checksum() {
        assert_eq!(plain(b"123456789"), 0xCBF4_3926);
        for words in [0u64, 1, 2, 3, 31, 64, 1000] {
            let bytes: Vec<u8> = (0..4 * words).map(|i| (i * i % 251) as u8).collect();
            let sum = bytes.chunks_exact(4).zip(0..).fold(0, |sum, (word, i)| {
                let word = u32::from_le_bytes(word.try_into().unwrap());
                sum ^ multiply(word, shift(words - i))
            });
            assert_eq!(checksum(sum, words), plain(&bytes), "{words} words");
        }
    }

    #[test]
    fn powers_add_up() {
        for (a, b) in [
            (0, 5),
            (1, 1),
            (123, 4567),
            (1 << 33, 77),
            (u64::MAX >> 1, 1),
        ] {
            assert_eq!(multiply(shift(a), shift(b)), shift(a + b));
        }
        assert_eq!(multiply(ONE, 0x1234_5678), 0x1234_5678);
    }
}
