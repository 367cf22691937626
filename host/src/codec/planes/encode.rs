use std::ops::Range;

use super::{
    coder::{Effort, Encoder},
    split::Element,
    table::{MAX_CHUNK_BYTES, Table},
};

/// Bytes of a run of the sample, and the most runs: short enough that small tensors are not slowed down.
const RUN_BYTES: usize = 32 << 10;
const RUNS: usize = 4;
/// A plane is coded if that saves at least this share of the sample.
const WORTH: usize = 256;
/// Looking for matches, or for better ones, has to save this share of what the cheaper effort takes.
const WORTH_MORE: usize = 64;
/// What zstd does by default.
const LEVEL: i32 = 3;
/// What is tried beside it where size is all that counts: some 80 and 20 MB/s.
const ARCHIVE_LEVELS: [i32; 2] = [9, 15];
/// Elements of a chunk whose planes have no matches: a block of zstd, so that what is worked on stays in the cache.
const ENTROPY_CHUNK: usize = 128 << 10;

/// How a tensor is to be coded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Recipe {
    element: Element,
    /// Elements of a chunk.
    chunk: usize,
    /// Of each plane.
    efforts: Vec<Effort>,
}

/// A chunk in its stored form, whose memory is used again for others: fresh memory takes longer than the coder.
#[derive(Clone, Default)]
pub(crate) struct EncodedChunk {
    /// CRC-32 of the original bytes.
    pub crc: u32,
    /// Coder and stored bytes of each plane.
    pub planes: Vec<(u8, u32)>,
    /// The planes, one behind the other.
    pub bytes: Vec<u8>,
}

/// What a thread needs to encode chunks.
#[derive(Default)]
pub(crate) struct Packer {
    coder: Encoder,
    planes: Vec<u8>,
    stored: Vec<u8>,
}

impl Recipe {
    /// Chooses among the ways to cut a tensor those of `elements` and plain bytes, and among efforts, by trying them on
    /// its [`sample`]; nothing if nothing shrinks it. `is_archive` looks harder for matches.
    pub fn choose(
        original_bytes: usize,
        sample: &[u8],
        elements: &[Element],
        is_archive: bool,
        packer: &mut Packer,
    ) -> Option<Self> {
        let plain = Element::integer(1).expect("a byte is an integer");
        let elements = elements.iter().copied().chain([plain]);
        let elements = elements.filter(|element| original_bytes.is_multiple_of(element.width()));
        let tried = elements.map(|element| try_on(sample, element, is_archive, packer));
        let (stored, recipe) = tried.min_by_key(|&(stored, _)| stored)?;
        // Where the sample is everything, this is how it ends.
        let whole = sample.len() == original_bytes;
        let table = Table::bytes(recipe.element, original_bytes, recipe.chunk);
        let stored = if whole {
            Table::stored_bytes_of(table, stored)
        } else {
            stored
        };
        (stored < sample.len()).then_some(recipe)
    }

    /// How the elements are cut.
    pub fn element(&self) -> Element {
        self.element
    }

    /// Elements of a chunk.
    pub fn chunk(&self) -> usize {
        self.chunk
    }

    /// Bytes of a chunk.
    pub fn chunk_bytes(&self) -> usize {
        self.chunk * self.element.width()
    }

    /// Encodes the bytes of a chunk in place of what `chunk` was.
    pub fn encode_chunk(&self, bytes: &[u8], packer: &mut Packer, chunk: &mut EncodedChunk) {
        let Packer { coder, planes, .. } = packer;
        chunk.crc = crc32fast::hash(bytes);
        chunk.planes.clear();
        chunk.bytes.clear();
        for (plane, effort) in split(self.element, bytes, planes).zip(&self.efforts) {
            let start = chunk.bytes.len();
            let coder = coder.encode(plane, *effort, &mut chunk.bytes);
            let stored = (chunk.bytes.len() - start) as u32;
            chunk.planes.push((coder, stored));
        }
    }
}

/// Stored bytes of a sample whose elements are cut in this way, and how.
fn try_on(
    sample: &[u8],
    element: Element,
    is_archive: bool,
    packer: &mut Packer,
) -> (usize, Recipe) {
    let Packer {
        coder,
        planes,
        stored,
    } = packer;
    let mut total = 0;
    let mut efforts = Vec::with_capacity(element.width());
    for plane in split(element, sample, planes) {
        let mut bytes_at = |effort| {
            stored.clear();
            coder.encode(plane, effort, stored);
            stored.len()
        };
        let mut best = (plane.len(), Effort::Raw);
        let entropy = bytes_at(Effort::Entropy);
        if entropy + plane.len() / WORTH < plane.len() {
            best = (entropy, Effort::Entropy);
        }
        let levels = if is_archive { &ARCHIVE_LEVELS[..] } else { &[] };
        for &level in [LEVEL].iter().chain(levels) {
            let found = bytes_at(Effort::Matches(level));
            if found + best.0 / WORTH_MORE >= best.0 {
                break;
            }
            best = (found, Effort::Matches(level));
        }
        total += best.0;
        efforts.push(best.1);
    }
    let has_matches = efforts
        .iter()
        .any(|effort| matches!(effort, Effort::Matches(_)));
    let chunk = match has_matches {
        true => MAX_CHUNK_BYTES / element.width(),
        false if element.width() == 1 => 8 * ENTROPY_CHUNK,
        false => ENTROPY_CHUNK,
    };
    let recipe = Recipe {
        element,
        chunk,
        efforts,
    };
    (total, recipe)
}

/// The planes of whole elements, in the order in which they are stored.
fn split<'a>(
    element: Element,
    bytes: &'a [u8],
    planes: &'a mut Vec<u8>,
) -> impl Iterator<Item = &'a [u8]> {
    let planes = match element.width() {
        1 if !element.is_rotated() => bytes,
        _ => {
            if planes.len() < bytes.len() {
                planes.resize(bytes.len(), 0);
            }
            let planes = &mut planes[..bytes.len()];
            element.split(bytes, planes);
            planes
        }
    };
    planes.chunks_exact((bytes.len() / element.width()).max(1))
}

/// Where runs of whole elements lie all over a tensor of so many bytes, or all of them.
pub(crate) fn sample(bytes: usize) -> impl Iterator<Item = Range<usize>> {
    let (runs, run_bytes) = match bytes <= RUNS * RUN_BYTES {
        true => (1, bytes),
        false => (RUNS, RUN_BYTES),
    };
    // Of every width.
    let last = (bytes - run_bytes) / Element::MAX_WIDTH;
    (0..runs).map(move |run| {
        let start = last * run / (runs - 1).max(1) * Element::MAX_WIDTH;
        start..start + run_bytes
    })
}
