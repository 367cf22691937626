use multiversion::multiversion;

/// How the elements of a tensor are cut into planes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Element {
    width: usize,
    is_rotated: bool,
}

impl Element {
    /// The widest element, in bytes.
    pub const MAX_WIDTH: usize = 8;

    /// Numbers without a sign in front of an exponent, of 1, 2, 4 or 8 bytes.
    pub fn integer(width: usize) -> Option<Self> {
        Self::new(width, false)
    }

    /// Floating-point numbers of 1, 2, 4 or 8 bytes. The sign moves behind the mantissa, so that the exponents of BF16
    /// and F32 are whole bytes.
    pub fn float(width: usize) -> Option<Self> {
        Self::new(width, true)
    }

    pub(super) fn new(width: usize, is_rotated: bool) -> Option<Self> {
        matches!(width, 1 | 2 | 4 | 8).then_some(Self { width, is_rotated })
    }

    /// Bytes of an element, and so planes.
    pub fn width(self) -> usize {
        self.width
    }

    /// Whether elements are rotated left by one bit before they are cut.
    pub fn is_rotated(self) -> bool {
        self.is_rotated
    }

    /// Cuts whole elements into planes, which follow each other in `planes`, the one of the least significant bytes
    /// first.
    pub(super) fn split(self, elements: &[u8], planes: &mut [u8]) {
        debug_assert_eq!(elements.len(), planes.len());
        let rotation = u32::from(self.is_rotated);
        match self.width {
            1 => split_1(elements, planes, rotation),
            2 => split_2(elements, planes, rotation),
            4 => split_4(elements, planes, rotation),
            _ => split_8(elements, planes, rotation),
        }
    }

    /// Puts elements together from their planes, of one length each.
    pub(super) fn merge(self, planes: &[&[u8]], elements: &mut [u8]) {
        let rotation = u32::from(self.is_rotated);
        match *planes {
            [a] => merge_1([a], elements, rotation),
            [a, b] => merge_2([a, b], elements, rotation),
            [a, b, c, d] => merge_4([a, b, c, d], elements, rotation),
            [a, b, c, d, e, f, g, h] => merge_8([a, b, c, d, e, f, g, h], elements, rotation),
            _ => unreachable!("an element has a width that is allowed"),
        }
    }
}

/// Both ways for one width. The compiler makes vectors of the elements.
macro_rules! of_width {
    ($split:ident, $merge:ident, $element:ty, $width:literal) => {
        #[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl", "x86_64+avx2"))]
        fn $split(elements: &[u8], planes: &mut [u8], rotation: u32) {
            let elements = elements.as_chunks::<$width>().0;
            let mut planes = planes.chunks_exact_mut(elements.len().max(1));
            let mut planes: [_; $width] =
                std::array::from_fn(|_| planes.next().unwrap_or_default());
            for (i, element) in elements.iter().enumerate() {
                let element = <$element>::from_le_bytes(*element).rotate_left(rotation);
                for (plane, byte) in planes.iter_mut().zip(element.to_le_bytes()) {
                    plane[i] = byte;
                }
            }
        }

        #[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl", "x86_64+avx2"))]
        fn $merge(planes: [&[u8]; $width], elements: &mut [u8], rotation: u32) {
            let elements = elements.as_chunks_mut::<$width>().0;
            let planes = planes.map(|plane| &plane[..elements.len()]);
            for (i, to) in elements.iter_mut().enumerate() {
                let element = <$element>::from_le_bytes(planes.map(|plane| plane[i]));
                *to = element.rotate_right(rotation).to_le_bytes();
            }
        }
    };
}

of_width!(split_1, merge_1, u8, 1);
of_width!(split_2, merge_2, u16, 2);
of_width!(split_4, merge_4, u32, 4);
of_width!(split_8, merge_8, u64, 8);

#[cfg(test)]
mod tests {
    use super::*;

    /// Beside a plain one, for every width and odd counts.
    #[test]
    fn planes_are_bytes_of_elements() {
        for (width, is_rotated) in [1, 2, 4, 8].map(|w| [(w, false), (w, true)]).concat() {
            let element = Element::new(width, is_rotated).unwrap();
            for count in [0, 1, 3, 31, 64, 1000] {
                let bytes: Vec<u8> = (0..count * width)
                    .map(|i| (i * 167 + i / 7) as u8)
                    .collect();
                let mut expected = vec![0; bytes.len()];
                for (i, bytes) in bytes.chunks(width).enumerate() {
                    let mut bits: Vec<bool> = (0..8 * width)
                        .map(|bit| bytes[bit / 8] >> (bit % 8) & 1 == 1)
                        .collect();
                    bits.rotate_right(usize::from(is_rotated));
                    for (bit, set) in bits.into_iter().enumerate() {
                        expected[bit / 8 * count + i] |= u8::from(set) << (bit % 8);
                    }
                }
                let mut planes = vec![0xA5; bytes.len()];
                element.split(&bytes, &mut planes);
                assert_eq!(planes, expected, "{width} {is_rotated} {count}");
                let planes: Vec<_> = match count {
                    0 => vec![&[][..]; width],
                    _ => planes.chunks(count).collect(),
                };
                let mut merged = vec![0x5A; bytes.len()];
                element.merge(&planes, &mut merged);
                assert_eq!(merged, bytes);
            }
        }
    }
}
