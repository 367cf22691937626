//! `read` reads every byte once.

use rand::{Rng, SeedableRng, rngs::SmallRng};
use zipserv::gpu::{Buffer, GpuError, Operand, Reader};

use crate::lab::{Lab, quick, refused};

#[test]
fn every_word_once() {
    for lab in Lab::each() {
        let mut reader = Reader::new(lab.device).unwrap();
        let sizes = [16, 65_536, 65_552, 1_000_000, 100_000_000];
        let sizes = if quick() { &sizes[..3] } else { &sizes };
        for &bytes in sizes {
            let mut rng = SmallRng::seed_from_u64(bytes as u64);
            let words: Vec<u32> = (0..bytes / 4).map(|_| rng.random()).collect();
            let data = Buffer::<u8>::from_slice(lab.device, bytemuck::cast_slice(&words)).unwrap();
            reader.read(&lab.stream, data.slice(..)).unwrap();
            let read = reader.sink().to_vec(&lab.stream).unwrap();
            let sum = |words: &[u32]| words.iter().fold(0, |sum, word| sum ^ word);
            assert_eq!(sum(&read), sum(&words), "{bytes} bytes");
        }
    }
}

#[test]
fn parts_of_words_are_refused() {
    for lab in Lab::each() {
        let mut reader = Reader::new(lab.device).unwrap();
        let data = Buffer::<u8>::zeroed(lab.device, 64).unwrap();
        for range in [0..8, 8..24, 1..17] {
            refused!(
                reader.read(&lab.stream, data.slice(range.clone())),
                GpuError::Alignment { operand: Operand::Data, align: 16, address, pitch }
                    if (*address, *pitch) == (data.address() + range.start as u64, range.len())
            );
        }
    }
}
