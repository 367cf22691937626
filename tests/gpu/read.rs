//! `read` reads every byte once.

use cust::{
    context::CurrentContext,
    memory::{CopyDestination, DeviceBuffer},
};
use rand::{Rng, SeedableRng, rngs::SmallRng};
use zipserv::cuda::{read_raw, read_sink_words};

use crate::lab::{Lab, quick};

#[test]
fn every_word_once() {
    for lab in Lab::each() {
        let sink = vec![0u32; read_sink_words(lab.gpu).unwrap()];
        let sink = DeviceBuffer::from_slice(&sink).unwrap();
        let sizes = [16, 65_536, 65_552, 1_000_000, 100_000_000];
        let sizes = if quick() { &sizes[..3] } else { &sizes };
        for &bytes in sizes {
            let mut rng = SmallRng::seed_from_u64(bytes as u64);
            let words: Vec<u32> = (0..bytes / 4).map(|_| rng.random()).collect();
            let data = DeviceBuffer::from_slice(&words).unwrap();
            CurrentContext::synchronize().unwrap();
            let (from, to) = (data.as_device_ptr().as_raw(), sink.as_device_ptr().as_raw());
            // SAFETY: both have the size.
            unsafe { read_raw(lab.gpu, lab.raw(), from, bytes, to).unwrap() };
            lab.stream.synchronize().unwrap();
            let mut read = vec![0; sink.len()];
            sink.copy_to(&mut read).unwrap();
            let sum = |words: &[u32]| words.iter().fold(0, |sum, word| sum ^ word);
            assert_eq!(sum(&read), sum(&words), "{bytes} bytes");
        }
    }
}
