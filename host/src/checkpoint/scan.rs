use std::sync::Mutex;

use super::{Error, checksum::Checksum, error::At, options::Progress, source::Source};
use crate::Histogram;

/// What one pass over an original file tells.
pub(crate) struct Scan {
    /// CRC-32 of the file.
    pub crc: u32,
    /// The exponents of each tensor, if it is BF16.
    pub exponents: Vec<Option<Box<Histogram>>>,
}

impl Scan {
    pub fn of(source: &dyn Source, progress: &dyn Progress) -> Result<Self, Error> {
        let checksum = Checksum::default();
        checksum.add(0, &source.header_bytes());
        let is_bf16 = |dtype: &str| dtype == "BF16";
        let exponents: Vec<_> = source
            .header()
            .tensors
            .iter()
            .map(|tensor| is_bf16(&tensor.dtype).then(|| Mutex::new(Box::new(Histogram::empty()))))
            .collect();
        source.for_each_piece(&|piece| {
            checksum.add_piece(&piece);
            if let Some(exponents) = &exponents[piece.tensor] {
                let more = Histogram::of_piece(piece.bytes);
                **exponents.lock().expect("no panic") += &more;
            }
            progress.step(piece.bytes.len() as u64).at(source.path())
        })?;
        Ok(Self {
            crc: checksum.finish(),
            exponents: exponents
                .into_iter()
                .map(|exponents| Some(exponents?.into_inner().expect("no panic")))
                .collect(),
        })
    }
}
