use std::borrow::Cow;

use rayon::prelude::*;

use super::{
    coder::{CONSTANT, Decoder, RAW},
    encode::{EncodedChunk, Packer, Recipe, sample},
    split::Element,
    table::Table,
};
use crate::{Error, codec::memory::try_zeroed};

/// Chunks for each thread that are encoded between two copies. Bounds what is held in memory.
const CHUNKS_PER_THREAD: usize = 8;

/// A tensor of any dtype as byte planes, in the stored form of `docs/FORMAT.md`.
///
/// What exists as a value has had its header and table checked: every plane lies within the bytes, and has a coder that
/// is known. What the planes hold is checked as they are decoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Planes<'a> {
    table: Table,
    bytes: Cow<'a, [u8]>,
}

/// What a thread needs to decode chunks.
#[derive(Default)]
pub(crate) struct Unpacker {
    decoder: Decoder,
    planes: Vec<u8>,
}

impl<'a> Planes<'a> {
    /// Takes the stored bytes of a tensor, owned or borrowed, after checking header and table.
    ///
    /// # Errors
    /// [`Error`] names what is wrong and where.
    pub fn from_bytes(bytes: impl Into<Cow<'a, [u8]>>) -> Result<Self, Error> {
        let bytes = bytes.into();
        let table = Table::parse(&bytes)?;
        Ok(Self { table, bytes })
    }

    /// Compresses the little-endian bytes of a tensor, in parallel on the current rayon pool; nothing if they do not
    /// shrink. Looks for the smallest form, as archives have it.
    ///
    /// ```
    /// use zipserv::{Element, Planes};
    ///
    /// let tensor: Vec<u8> = (0..4096).flat_map(|i| (i as f32).sin().to_le_bytes()).collect();
    /// let planes = Planes::encode(&tensor, Element::float(4).unwrap()).expect("it shrinks");
    /// assert!(planes.stored_bytes() < tensor.len());
    /// let read = Planes::from_bytes(planes.as_bytes())?;
    /// assert_eq!(read.decode()?, tensor);
    /// # Ok::<(), zipserv::Error>(())
    /// ```
    pub fn encode(tensor: &[u8], element: Element) -> Option<Planes<'static>> {
        let runs: Vec<_> = sample(tensor.len()).map(|run| &tensor[run]).collect();
        let packer = &mut Packer::default();
        let recipe = Recipe::choose(tensor.len(), &runs.concat(), &[element], true, packer)?;
        let table_bytes = Table::bytes(recipe.element(), tensor.len(), recipe.chunk());
        let chunks: Vec<_> = tensor.chunks(recipe.chunk_bytes()).collect();
        let mut encoded =
            vec![EncodedChunk::default(); CHUNKS_PER_THREAD * rayon::current_num_threads()];
        let (mut crcs, mut planes) = (Vec::new(), Vec::new());
        let mut bytes = try_zeroed(tensor.len())?;
        let mut end = table_bytes;
        for batch in chunks.chunks(encoded.len()) {
            batch
                .par_iter()
                .zip(&mut encoded)
                .for_each_init(Packer::default, |packer, (chunk, encoded)| {
                    recipe.encode_chunk(chunk, packer, encoded)
                });
            for chunk in &encoded[..batch.len()] {
                let start = end;
                end += chunk.bytes.len();
                bytes.get_mut(start..end)?.copy_from_slice(&chunk.bytes);
                crcs.push(chunk.crc);
                planes.extend_from_slice(&chunk.planes);
            }
        }
        let table = Table::new(
            recipe.element(),
            tensor.len(),
            recipe.chunk(),
            &crcs,
            planes,
        );
        if table.stored_bytes() >= tensor.len() {
            return None;
        }
        bytes[..table_bytes].copy_from_slice(&table.to_bytes());
        bytes.truncate(table.stored_bytes());
        let bytes = bytes.into();
        Some(Planes { table, bytes })
    }

    /// Whether bytes start as those of byte planes do, whatever comes after.
    pub fn is_at(bytes: &[u8]) -> bool {
        Table::is_at(bytes)
    }

    /// How the elements are cut.
    pub fn element(&self) -> Element {
        self.table.element()
    }

    /// Bytes of the tensor before compression.
    pub fn original_bytes(&self) -> usize {
        self.table.original_bytes()
    }

    /// Bytes of the whole: those of [`as_bytes`](Self::as_bytes).
    pub fn stored_bytes(&self) -> usize {
        self.table.stored_bytes()
    }

    /// The whole, as it is stored.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Restores the tensor's bytes, in parallel on the current rayon pool.
    ///
    /// # Errors
    /// As [`decode_into`](Self::decode_into), and [`Error::Memory`].
    pub fn decode(&self) -> Result<Vec<u8>, Error> {
        let bytes = self.original_bytes();
        // A short table may speak of more than there is memory for.
        let mut bytes = try_zeroed(bytes).ok_or(Error::Memory(bytes))?;
        self.decode_into(&mut bytes)?;
        Ok(bytes)
    }

    /// Restores the tensor's bytes into `output`, in parallel on the current rayon pool.
    ///
    /// # Errors
    /// [`Error::OutputSize`] when `output` is not exactly as long as the tensor, [`Error::Plane`] and
    /// [`Error::ChunkChecksum`] when a chunk is damaged. What `output` holds then is not the tensor.
    pub fn decode_into(&self, output: &mut [u8]) -> Result<(), Error> {
        let (expected, found) = (self.original_bytes(), output.len());
        if found != expected {
            return Err(Error::OutputSize { expected, found });
        }
        output
            .par_chunks_mut(self.table.chunk_bytes())
            .enumerate()
            .try_for_each_init(Unpacker::default, |unpacker, (chunk, output)| {
                let stored = &self.bytes[self.table.stored_range(chunk)];
                let crc = self.table.decode_chunk(chunk, stored, output, unpacker);
                crc.map(drop)
            })
    }
}

impl Table {
    /// Restores the bytes of a chunk, as many as `output` has, from its [stored](Self::stored_range) ones, and gives their
    /// CRC-32, which is that in the table.
    pub(crate) fn decode_chunk(
        &self,
        chunk: usize,
        stored: &[u8],
        output: &mut [u8],
        unpacker: &mut Unpacker,
    ) -> Result<u32, Error> {
        let start = self.stored_range(chunk).start;
        let width = self.element().width();
        let elements = output.len() / width;
        let Unpacker { decoder, planes } = unpacker;
        if planes.len() < output.len() {
            planes.resize(output.len(), 0);
        }
        let mut room = planes.chunks_exact_mut(elements.max(1));
        let mut parts = [&[][..]; Element::MAX_WIDTH];
        for (plane, (coder, range)) in self.planes(chunk).enumerate() {
            let stored = &stored[range.start - start..range.end - start];
            parts[plane] = match coder {
                RAW => stored,
                _ => {
                    let to = room.next().expect("room for every plane");
                    if coder == CONSTANT {
                        to.fill(stored[0]);
                    } else {
                        decoder.zstd(stored, to).map_err(|error| Error::Plane {
                            chunk,
                            plane,
                            offset: range.start as u64,
                            why: error.to_string(),
                        })?;
                    }
                    to
                }
            };
        }
        self.element().merge(&parts[..width], output);
        let (expected, found) = (self.crc(chunk), crc32fast::hash(output));
        if expected != found {
            return Err(Error::ChunkChecksum {
                chunk,
                offset: start as u64,
                expected,
                found,
            });
        }
        Ok(found)
    }
}
