//! The compressed form of a file, tensor by tensor in one pass over what it is made of.

use std::{cmp::Reverse, fs::File, ops::Range, os::unix::fs::FileExt, path::Path};

use rayon::prelude::*;
use zipserv_gpu::layout::TILE_BYTES;

use super::{
    Error, ErrorKind, Progress,
    checksum::Checksum,
    error::At,
    header::{Header, LENGTH_BYTES, Tensor},
    layout::{elements, strips, unsuited},
    names::{CRC_KEY, HEADER_KEY, SUFFIX_KEY, VERSION_KEY, VERSIONS},
    report::{FileReport, Stack, Storage, TensorReport},
    scan::SMALL_BYTES,
    source::{Bytes, PIECE_BYTES, Source},
};
use crate::{
    HEADER_BYTES, Histogram, Matrix,
    codec::{
        Encoder, Part, TileBuffer, combine_crcs,
        planes::{EncodedChunk, Packer, Recipe, Table, sample},
    },
};

/// Tensors are looked at and then encoded in groups of about so many bytes.
const GROUP_BYTES: u64 = 64 << 20;
/// Jobs for each thread between two writes of what they have made. Bounds what is held in memory.
const JOBS_PER_THREAD: usize = 8;

/// How a file is to be compressed, and where to.
pub(crate) struct Writer<'a> {
    pub source: &'a dyn Source,
    /// What [`suffix`](super::layout::suffix) gives for the tensors of the file, or of all files that belong together.
    pub suffix: &'a str,
    /// All tensors as planes: nothing is for a GPU.
    pub is_archive: bool,
    /// An empty file; nothing if only the report is wanted.
    pub file: Option<&'a File>,
    /// Its name, for errors.
    pub path: &'a Path,
    pub progress: &'a dyn Progress,
}

/// What has been written of a file.
struct Written {
    /// Where the data starts.
    data_at: u64,
    tensors: Vec<Tensor>,
    /// Of each tensor of the original file, once it is known.
    reports: Vec<Option<TensorReport>>,
    checksum: Checksum,
}

/// A tensor of a group, and what it is to become.
struct Item<'a> {
    /// Index in the original file.
    tensor: usize,
    bytes: Bytes<'a>,
    exponents: Option<Box<Histogram>>,
    form: Form,
}

enum Form {
    Matrix(Encoder),
    Planes(Recipe),
    Raw,
}

/// A tensor that stays as it is.
struct Kept {
    tensor: usize,
    exponents: Option<Box<Histogram>>,
    /// Whether its bytes are in the checksum already.
    is_summed: bool,
}

impl Writer<'_> {
    /// Writes the whole file; gives the CRC-32 of the original beside the report. Memory is bounded by the threads and by
    /// what the source gives as one tensor.
    pub fn run(&self) -> Result<(FileReport, u32), Error> {
        let tensors = &self.source.header().tensors;
        let mut written = Written {
            data_at: self.reserved()?,
            tensors: Vec::with_capacity(tensors.len()),
            reports: vec![None; tensors.len()],
            checksum: Checksum::default(),
        };
        written.checksum.add(0, &self.source.header_bytes());

        // Matrices first: all that is made ends at a multiple of 16 bytes, so matrices are aligned for an upload. What
        // stays as it was comes last, the widest dtypes before the others, so that it is aligned too.
        let mut order: Vec<_> = (0..tensors.len()).collect();
        order.sort_by_key(|&tensor| !self.may_be_matrix(&tensors[tensor]));
        let mut kept = Vec::new();
        for group in groups(&order, tensors) {
            let items = group
                .par_iter()
                .map(|&tensor| self.look(tensor, &written.checksum))
                .collect::<Result<Vec<_>, _>>()?;
            self.write_matrices(&items, &mut written)?;
            self.write_planes(&items, &mut written, &mut kept)?;
            kept.extend(items.into_iter().filter_map(|item| match item.form {
                Form::Raw => Some(Kept {
                    tensor: item.tensor,
                    is_summed: self.is_counted(&tensors[item.tensor]),
                    exponents: item.exponents,
                }),
                _ => None,
            }));
        }
        kept.sort_by_key(|kept| Reverse(tensors[kept.tensor].dtype_bits().unwrap_or(0)));
        for kept in kept {
            self.keep(kept, &mut written)?;
        }
        self.finish(written)
    }

    /// Where the data is to start: behind a header that is at least as long as that of any outcome.
    fn reserved(&self) -> Result<u64, Error> {
        let original = self.source.header();
        let end = original.data_bytes();
        let longest = |tensor: &Tensor| Tensor {
            name: format!("{}{}", tensor.name, self.suffix),
            dtype: format!("{}U8", tensor.dtype),
            shape: [&tensor.shape[..], &[tensor.bytes()]].concat(),
            data: end..end,
        };
        let mut header = self.header(original.tensors.iter().map(longest).collect(), 0)?;
        header.lay_out(0).at(self.source.path())?;
        Ok(header.data_at)
    }

    fn header(&self, tensors: Vec<Tensor>, crc: u32) -> Result<Header, Error> {
        let json = self.source.header_bytes().split_off(LENGTH_BYTES);
        let json = String::from_utf8(json)
            .map_err(|error| ErrorKind::HeaderUtf8(error.utf8_error()))
            .at(self.source.path())?;
        Ok(Header {
            tensors,
            metadata: self.source.header().metadata.clone(),
            data_at: 0,
        }
        .with_metadata([
            (SUFFIX_KEY, self.suffix.into()),
            (HEADER_KEY, json),
            (CRC_KEY, format!("{crc:08x}")),
            (VERSION_KEY, VERSIONS[0].into()),
        ]))
    }

    fn may_be_matrix(&self, tensor: &Tensor) -> bool {
        !self.is_archive && unsuited(tensor, None).is_none()
    }

    /// Whether a tensor's exponents are counted, and its bytes added to the checksum with them.
    fn is_counted(&self, tensor: &Tensor) -> bool {
        !self.is_archive && tensor.dtype == "BF16"
    }

    /// Decides what a tensor is to become. Reads all of those whose exponents count, and a sample of the others.
    fn look(&self, index: usize, checksum: &Checksum) -> Result<Item<'_>, Error> {
        let header = self.source.header();
        let tensor = &header.tensors[index];
        let bytes = self.source.tensor(index)?;
        let mut exponents = None;
        if self.is_counted(tensor) {
            let start = header.file_range(tensor).start;
            let counted = pieces(bytes.len())
                .map_init(Vec::new, |buffer, piece| {
                    let offset = start + piece.start as u64;
                    let bytes = bytes.get(piece, buffer)?;
                    checksum.add(offset, bytes);
                    self.progress.step(0).at(self.path)?;
                    Ok(Histogram::of_piece(bytes))
                })
                .try_reduce(Histogram::empty, |mut all, more| {
                    all += &more;
                    Ok(all)
                })?;
            exponents = (tensor.bytes() > SMALL_BYTES).then(|| Box::new(counted));
        }
        let matrix = exponents
            .as_deref()
            .filter(|exponents| unsuited(tensor, Some(exponents)).is_none())
            .and_then(|exponents| {
                let (_, cols) = tensor.matrix_shape()?;
                Encoder::new(strips(tensor, exponents)?, cols, exponents).ok()
            });
        let form = match matrix {
            Some(encoder) => Form::Matrix(encoder),
            None => {
                let mut runs = Vec::new();
                for run in sample(bytes.len()) {
                    let start = runs.len();
                    runs.resize(start + run.len(), 0);
                    bytes.read(run.start, &mut runs[start..])?;
                }
                Recipe::choose(
                    bytes.len(),
                    &runs,
                    &elements(tensor),
                    self.is_archive,
                    &mut Packer::default(),
                )
                .map_or(Form::Raw, Form::Planes)
            }
        };
        Ok(Item {
            tensor: index,
            bytes,
            exponents,
            form,
        })
    }

    fn report(
        &self,
        tensor: usize,
        stored_bytes: u64,
        storage: Storage,
        stack: Option<Stack>,
        exponents: Option<Box<Histogram>>,
    ) -> TensorReport {
        let tensor = &self.source.header().tensors[tensor];
        TensorReport {
            name: tensor.name.clone(),
            stored_name: match storage {
                Storage::Raw => tensor.name.clone(),
                _ => format!("{}{}", tensor.name, self.suffix),
            },
            dtype: tensor.dtype.clone(),
            shape: tensor.shape.clone(),
            original_bytes: tensor.bytes(),
            stored_bytes,
            storage,
            stack,
            unsuited: unsuited(tensor, exponents.as_deref()),
            exponents,
        }
    }

    /// Places the matrices of a group and writes them.
    fn write_matrices(&self, items: &[Item], written: &mut Written) -> Result<(), Error> {
        let mut jobs = Vec::new();
        for item in items {
            let Form::Matrix(encoder) = &item.form else {
                continue;
            };
            let bytes = encoder.header().stored_bytes() as u64;
            let start = written.end();
            let exponents = item.exponents.clone();
            let tensor = &self.source.header().tensors[item.tensor];
            let stack = Stack::of(tensor, encoder.strips());
            let report = self.report(item.tensor, bytes, Storage::Matrix, stack, exponents);
            written.add(item.tensor, report);
            let parts = Part::all(encoder.strips(), encoder.header().cols());
            jobs.extend(parts.map(|part| TileJob {
                item,
                encoder,
                start,
                part,
            }));
        }
        let Some(file) = self.file else {
            let bytes = jobs.iter().map(|job| job.part.original_bytes() as u64);
            let bytes = bytes.sum();
            return self.progress.step(bytes).at(self.path);
        };
        let mut tail = None;
        for batch in jobs.chunks(JOBS_PER_THREAD * rayon::current_num_threads()) {
            let done = batch
                .par_iter()
                .map_init(Default::default, |memory, job| {
                    self.encode_tiles(file, job, memory)
                })
                .collect::<Result<Vec<_>, _>>()?;
            for (job, encoded) in batch.iter().zip(done) {
                if job.part.tiles.start == 0 {
                    tail = Some(Tail::new(job.encoder, job.start));
                }
                let tail = tail.as_mut().expect("the first job starts it");
                tail.append(self, file, encoded)?;
            }
        }
        Ok(())
    }

    fn encode_tiles(
        &self,
        file: &File,
        job: &TileJob,
        (input, dense): &mut (Vec<u8>, Vec<u8>),
    ) -> Result<EncodedTiles, Error> {
        let TileJob { part, encoder, .. } = job;
        let bytes = job.item.bytes.part(part, encoder.header().cols(), input)?;
        let matrix = Matrix::from_le_bytes(part.rows.len(), part.cols.len(), bytes)
            .expect("it has been laid out");
        dense.resize(part.tiles.len() * TILE_BYTES, 0);
        let mut buffer = TileBuffer::default();
        let strip_bytes = dense.len() / part.strips.len();
        for (strip, dense) in part.strips.clone().zip(dense.chunks_exact_mut(strip_bytes)) {
            let Range { start, end } = encoder.strips().rows(&(strip..strip + 1));
            let rows = start - part.rows.start..end - part.rows.start;
            encoder.encode(&matrix.rows_of(rows), dense, &mut buffer);
        }
        let at = job.start + (HEADER_BYTES + part.tiles.start * TILE_BYTES) as u64;
        file.write_all_at(dense, at).at(self.path)?;
        self.progress.step(bytes.len() as u64).at(self.path)?;
        Ok(EncodedTiles {
            buffer,
            crc: crc32fast::hash(dense),
            len: dense.len() as u64,
        })
    }

    /// Writes those of a group that are to become planes, or notes that they are not to if they would grow.
    fn write_planes(
        &self,
        items: &[Item],
        written: &mut Written,
        kept: &mut Vec<Kept>,
    ) -> Result<(), Error> {
        let mut jobs = Vec::new();
        for item in items {
            if let Form::Planes(recipe) = &item.form {
                let (len, step) = (item.bytes.len(), recipe.chunk_bytes());
                let chunks = (0..len).step_by(step);
                jobs.extend(chunks.map(|start| ChunkJob {
                    item,
                    recipe,
                    range: start..(start + step).min(len),
                }));
            }
        }
        let mut encoded =
            vec![EncodedChunk::default(); JOBS_PER_THREAD * rayon::current_num_threads()];
        let mut open = None;
        for batch in jobs.chunks(encoded.len()) {
            batch.par_iter().zip(&mut encoded).try_for_each_init(
                Default::default,
                |(packer, buffer): &mut (Packer, Vec<u8>), (job, encoded)| {
                    let bytes = job.item.bytes.get(job.range.clone(), buffer)?;
                    job.recipe.encode_chunk(bytes, packer, encoded);
                    self.progress.step(bytes.len() as u64).at(self.path)
                },
            )?;
            for (job, chunk) in batch.iter().zip(&encoded) {
                if job.range.start == 0 {
                    open = Some(Packed::new(job, written.end()));
                }
                let packed = open.as_mut().expect("the first job starts it");
                packed.append(self, &written.checksum, job, chunk)?;
                if job.range.end < job.item.bytes.len() {
                    continue;
                }
                let (item, exponents) = (job.item, job.item.exponents.clone());
                match packed.finish(self, item.bytes.len())? {
                    Some(bytes) => {
                        let report =
                            self.report(item.tensor, bytes, Storage::Planes, None, exponents);
                        written.add(item.tensor, report);
                    }
                    None => kept.push(Kept {
                        tensor: item.tensor,
                        exponents,
                        is_summed: true,
                    }),
                }
            }
        }
        Ok(())
    }

    /// Writes a tensor as it is.
    fn keep(&self, kept: Kept, written: &mut Written) -> Result<(), Error> {
        let header = self.source.header();
        let tensor = &header.tensors[kept.tensor];
        let (from, to) = (header.file_range(tensor).start, written.end());
        let bytes = self.source.tensor(kept.tensor)?;
        pieces(bytes.len()).try_for_each_init(Vec::new, |buffer, piece| {
            let offset = piece.start as u64;
            let bytes = bytes.get(piece, buffer)?;
            if !kept.is_summed {
                written.checksum.add(from + offset, bytes);
            }
            self.write_at(bytes, to + offset)?;
            self.progress.step(bytes.len() as u64).at(self.path)
        })?;
        let report = self.report(
            kept.tensor,
            tensor.bytes(),
            Storage::Raw,
            None,
            kept.exponents,
        );
        written.add(kept.tensor, report);
        Ok(())
    }

    fn finish(&self, written: Written) -> Result<(FileReport, u32), Error> {
        self.source.check_unchanged()?;
        let reports: Vec<_> = written.reports.into_iter().flatten().collect();
        let needed = reports.iter().map(|report| match report.storage {
            Storage::Planes => 1,
            _ => 2 * usize::from(report.stack.is_some_and(|stack| stack.is_padded())),
        });
        let version = VERSIONS[needed.max().unwrap_or(0)];
        let crc = written.checksum.finish();
        let header = self.header(written.tensors, crc)?;
        let mut header = header.with_metadata([(VERSION_KEY, version.into())]);
        let bytes = header.lay_out(written.data_at).at(self.source.path())?;
        self.write_at(&bytes, 0)?;
        if let Some(file) = self.file {
            // It may end with padding.
            file.set_len(header.file_bytes()).at(self.path)?;
        }
        let report = FileReport {
            path: self.source.path().into(),
            original_bytes: self.source.header().file_bytes(),
            stored_bytes: header.file_bytes(),
            tensors: reports,
        };
        Ok((report, crc))
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> Result<(), Error> {
        match self.file {
            Some(file) => file.write_all_at(bytes, offset).at(self.path),
            None => Ok(()),
        }
    }
}

impl Written {
    /// Where in the file the next tensor starts.
    fn end(&self) -> u64 {
        self.data_at + self.tensors.last().map_or(0, |tensor| tensor.data.end)
    }

    /// Notes that a tensor lies at the end.
    fn add(&mut self, tensor: usize, report: TensorReport) {
        let start = self.end() - self.data_at;
        let (dtype, shape) = match report.storage {
            Storage::Raw => (report.dtype.clone(), report.shape.clone()),
            _ => ("U8".into(), vec![report.stored_bytes]),
        };
        self.tensors.push(Tensor {
            name: report.stored_name.clone(),
            dtype,
            shape,
            data: start..start + report.stored_bytes,
        });
        self.reports[tensor] = Some(report);
    }
}

/// Ranges of [`PIECE_BYTES`], the last of which may be shorter, of so many bytes.
fn pieces(bytes: usize) -> impl IndexedParallelIterator<Item = Range<usize>> {
    let starts = (0..bytes).into_par_iter().step_by(PIECE_BYTES);
    starts.map(move |start| start..(start + PIECE_BYTES).min(bytes))
}

/// Runs of tensors of about [`GROUP_BYTES`] in all, at least one each.
fn groups<'a>(order: &'a [usize], tensors: &[Tensor]) -> Vec<&'a [usize]> {
    let mut groups = Vec::new();
    let (mut start, mut bytes) = (0, 0);
    for (end, &tensor) in order.iter().enumerate() {
        if bytes >= GROUP_BYTES {
            groups.push(&order[start..end]);
            (start, bytes) = (end, 0);
        }
        bytes += tensors[tensor].bytes();
    }
    groups.push(&order[start..]);
    groups
}

/// A chunk of a tensor that one thread encodes.
struct ChunkJob<'a> {
    item: &'a Item<'a>,
    recipe: &'a Recipe,
    /// Where it is in the tensor.
    range: Range<usize>,
}

/// A tensor whose planes are being written.
struct Packed<'a> {
    recipe: &'a Recipe,
    /// Where it starts in the file, and how long its header and table are.
    start: u64,
    table_bytes: usize,
    /// Bytes of planes that have been written.
    planes_bytes: usize,
    crcs: Vec<u32>,
    planes: Vec<(u8, u32)>,
}

impl<'a> Packed<'a> {
    fn new(job: &ChunkJob<'a>, start: u64) -> Self {
        let recipe = job.recipe;
        Self {
            recipe,
            start,
            table_bytes: Table::bytes(recipe.element(), job.item.bytes.len(), recipe.chunk()),
            planes_bytes: 0,
            crcs: Vec::new(),
            planes: Vec::new(),
        }
    }

    fn append(
        &mut self,
        writer: &Writer,
        checksum: &Checksum,
        job: &ChunkJob,
        chunk: &EncodedChunk,
    ) -> Result<(), Error> {
        let header = writer.source.header();
        let tensor = &header.tensors[job.item.tensor];
        if !writer.is_counted(tensor) {
            let at = header.file_range(tensor).start + job.range.start as u64;
            checksum.add_crc(at, chunk.crc, job.range.len() as u64);
        }
        let at = self.start + (self.table_bytes + self.planes_bytes) as u64;
        writer.write_at(&chunk.bytes, at)?;
        self.planes_bytes += chunk.bytes.len();
        self.crcs.push(chunk.crc);
        self.planes.extend_from_slice(&chunk.planes);
        Ok(())
    }

    /// Writes the table. Gives the bytes of the whole; nothing if they are no fewer than `original_bytes`.
    fn finish(&mut self, writer: &Writer, original_bytes: usize) -> Result<Option<u64>, Error> {
        let stored = Table::stored_bytes_of(self.table_bytes, self.planes_bytes);
        if stored >= original_bytes {
            // What comes next finds nothing but zeros where it leaves out its padding.
            if let Some(file) = writer.file {
                file.set_len(self.start).at(writer.path)?;
            }
            return Ok(None);
        }
        let table = Table::new(
            self.recipe.element(),
            original_bytes,
            self.recipe.chunk(),
            &self.crcs,
            std::mem::take(&mut self.planes),
        );
        writer.write_at(&table.to_bytes(), self.start)?;
        Ok(Some(stored as u64))
    }
}

/// Tiles of a matrix that one thread encodes.
struct TileJob<'a> {
    item: &'a Item<'a>,
    encoder: &'a Encoder,
    /// Where the stored matrix starts in the file.
    start: u64,
    part: Part,
}

/// What remains of a job on a matrix after its dense bytes are written.
struct EncodedTiles {
    buffer: TileBuffer,
    crc: u32,
    len: u64,
}

/// Writes what follows the dense part of a matrix, run after run, and its header at last.
struct Tail<'a> {
    encoder: &'a Encoder,
    start: u64,
    tiles: usize,
    patches: u32,
    dense_crcs: Vec<(u32, u64)>,
    offsets_crc: crc32fast::Hasher,
    patches_crc: crc32fast::Hasher,
}

impl<'a> Tail<'a> {
    fn new(encoder: &'a Encoder, start: u64) -> Self {
        let mut offsets_crc = crc32fast::Hasher::new();
        offsets_crc.update(&0u32.to_le_bytes());
        Self {
            encoder,
            start,
            tiles: 0,
            patches: 0,
            dense_crcs: Vec::new(),
            offsets_crc,
            patches_crc: crc32fast::Hasher::new(),
        }
    }

    fn append(&mut self, writer: &Writer, file: &File, run: EncodedTiles) -> Result<(), Error> {
        let header = self.encoder.header();
        let changed = || Error::new(writer.source.path(), ErrorKind::Changed);
        let patches_before = self.patches as usize;
        // The file may have changed since its exponents were counted.
        if patches_before + run.buffer.patches.len() > header.outliers() {
            return Err(changed());
        }
        let mut offsets = Vec::with_capacity(4 * run.buffer.counts.len());
        for count in &run.buffer.counts {
            self.patches += count;
            offsets.extend_from_slice(&self.patches.to_le_bytes());
        }
        let patches = bytemuck::cast_slice(&run.buffer.patches);
        let at = |offset: usize| self.start + offset as u64;
        let write = |bytes: &[u8], offset| file.write_all_at(bytes, offset).at(writer.path);
        let (offsets_at, patches_at) = (header.patch_offsets().start, header.patches().start);
        write(&offsets, at(offsets_at + 4 * (self.tiles + 1)))?;
        write(patches, at(patches_at + 2 * patches_before))?;
        self.dense_crcs.push((run.crc, run.len));
        self.offsets_crc.update(&offsets);
        self.patches_crc.update(patches);
        self.tiles += run.buffer.counts.len();
        if self.tiles < header.tiles() {
            return Ok(());
        }
        if self.patches as usize != header.outliers() {
            return Err(changed());
        }
        let header = header.with_payload_crc(self.payload_crc());
        write(&header.to_bytes(), self.start)
    }

    fn payload_crc(&mut self) -> u32 {
        let header = self.encoder.header();
        let offsets = 4 * (header.tiles() + 1);
        let patches = 2 * header.outliers();
        let mut dense_crcs = std::mem::take(&mut self.dense_crcs);
        for (crc, used, len) in [
            (&mut self.offsets_crc, offsets, header.patch_offsets().len()),
            (&mut self.patches_crc, patches, header.patches().len()),
        ] {
            crc.update(&[0; 16][..len - used]);
            dense_crcs.push((crc.clone().finalize(), len as u64));
        }
        combine_crcs(dense_crcs)
    }
}
