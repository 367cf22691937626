use std::{fs::File, ops::Range, os::unix::fs::FileExt, path::Path};

use rayon::prelude::*;
use zipserv_gpu::layout::TILE_BYTES;

use super::{
    Error, ErrorKind, Options, Progress, Report,
    container::is_container,
    error::At,
    files::Files,
    header::Header,
    input::Input,
    options::Passes,
    plan::{Item, Plan, suffix},
    report::FileReport,
    scan::Scan,
    source::{Original, Source, pieces},
    transform::{Transform, transform},
};
use crate::{
    HEADER_BYTES, Matrix,
    codec::{Encoder, Part, TileBuffer, combine_crcs},
};

/// Jobs for each thread between two writes of patches. Bounds the patches held in memory.
const JOBS_PER_THREAD: usize = 16;

/// Compresses a `.safetensors` file, or a folder with any number of them, to `output`.
///
/// In a folder the `.safetensors` files and indexes of shards get other names and `config.json` names zipserv, so
/// that loaders which do not know it fail. All other files are copied as they are. `output` appears when it is whole, not
/// before. Runs on the current rayon pool; memory is bounded however large the files are.
///
/// # Errors
/// [`Error`] names the file, and the tensor and offset where there is one. Nothing is left under
/// the name of the output then.
pub fn compress(
    input: impl AsRef<Path>,
    output: impl AsRef<Path>,
    options: &Options,
) -> Result<Report, Error> {
    let mut report = transform::<Compress>(input.as_ref(), output.as_ref(), options)?;
    report.warn_if_larger();
    Ok(report)
}

struct Compress {
    original: Original,
    suffix: String,
}

impl Transform for Compress {
    fn open(path: &Path) -> Result<Self, Error> {
        let input = Input::open(path)?;
        let (header, json) = Header::of_file(&input)?;
        if is_container(&header) {
            return Err(Error::new(path, ErrorKind::AlreadyCompressed));
        }
        Ok(Self {
            suffix: suffix(&header.tensors),
            original: Original::new(input, header, json),
        })
    }

    fn files(root: &Path) -> Result<Files, Error> {
        Files::compressed(root)
    }

    /// One index may have tensors of many files, by the names that they are stored under.
    fn agree(jobs: &mut [Self]) {
        let tensors = jobs.iter().flat_map(|job| &job.original.header().tensors);
        let suffix = suffix(tensors);
        for job in jobs {
            job.suffix.clone_from(&suffix);
        }
    }

    fn finish(files: &mut Files, root: &Path, reports: &[FileReport]) -> Result<(), Error> {
        files.mark(root, reports)
    }

    fn bytes(&self) -> u64 {
        self.original.header().data_bytes()
    }

    fn write(
        &self,
        file: &File,
        path: &Path,
        progress: &dyn Progress,
    ) -> Result<FileReport, Error> {
        let Self { original, suffix } = self;
        // It is scanned, then encoded.
        let progress = &Passes::<2>::new(progress);
        let scan = Scan::of(original, progress)?;
        let plan = Plan::new(original, scan, suffix.clone()).at(original.input().path())?;
        let writer = Writer {
            original,
            plan: &plan,
            file,
            path,
            progress,
        };
        writer.run()?;
        original.input().check_unchanged()?;
        Ok(plan.report)
    }
}

struct Writer<'a> {
    original: &'a Original,
    plan: &'a Plan,
    file: &'a File,
    path: &'a Path,
    progress: &'a dyn Progress,
}

/// Part of a tensor that one thread encodes or copies.
enum Job<'a> {
    /// From bytes of the input to the output at an offset.
    Copy { from: Range<u64>, to: u64 },
    Encode {
        item: &'a Item,
        encoder: &'a Encoder,
        /// Where the stored tensor starts in the output.
        start: u64,
        part: Part,
    },
}

/// What a thread keeps from job to job.
#[derive(Default)]
struct Buffers {
    input: Vec<u8>,
    dense: Vec<u8>,
}

/// What remains of a job on a matrix after its dense bytes are written.
struct Encoded {
    buffer: TileBuffer,
    crc: u32,
    len: u64,
}

impl Writer<'_> {
    fn run(&self) -> Result<(), Error> {
        let Plan {
            header,
            header_bytes,
            ..
        } = self.plan;
        // What is not written, the padding, is zeros.
        self.file.set_len(header.file_bytes()).at(self.path)?;
        self.write_at(header_bytes, 0)?;

        let mut jobs = self.jobs().peekable();
        let mut tail = None;
        while jobs.peek().is_some() {
            let count = JOBS_PER_THREAD * rayon::current_num_threads();
            let batch: Vec<_> = jobs.by_ref().take(count).collect();
            let done = batch
                .par_iter()
                .map_init(Buffers::default, |buffers, job| self.run_job(job, buffers))
                .collect::<Result<Vec<_>, _>>()?;
            for (job, encoded) in batch.iter().zip(done) {
                let (
                    Job::Encode {
                        encoder,
                        start,
                        part,
                        ..
                    },
                    Some(encoded),
                ) = (job, encoded)
                else {
                    continue;
                };
                if part.tiles.start == 0 {
                    tail = Some(Tail::new(encoder, *start));
                }
                let tail = tail.as_mut().expect("the first job starts it");
                tail.append(self, encoded)?;
            }
        }
        Ok(())
    }

    fn jobs(&self) -> impl Iterator<Item = Job<'_>> {
        let Plan { header, items, .. } = self.plan;
        let original = self.original.header();
        let items = items.iter().zip(&header.tensors);
        items.flat_map(move |(item, tensor)| {
            let start = header.file_range(tensor).start;
            let from = original.file_range(&original.tensors[item.tensor]);
            let (parts, copies) = match &item.encoder {
                Some(encoder) => {
                    let matrix = encoder.header();
                    let parts = Part::all(matrix.rows(), matrix.cols());
                    let parts = parts.map(move |part| Job::Encode {
                        item,
                        encoder,
                        start,
                        part,
                    });
                    (Some(parts), None)
                }
                None => {
                    let copies = pieces(from.clone()).map(move |piece| Job::Copy {
                        to: start + (piece.start - from.start),
                        from: piece,
                    });
                    (None, Some(copies))
                }
            };
            parts
                .into_iter()
                .flatten()
                .chain(copies.into_iter().flatten())
        })
    }

    fn run_job(&self, job: &Job, buffers: &mut Buffers) -> Result<Option<Encoded>, Error> {
        let Buffers { input, dense } = buffers;
        let (item, encoder, start, part) = match job {
            Job::Copy { from, to } => {
                input.resize((from.end - from.start) as usize, 0);
                self.original.input().read_at(from.start, input)?;
                self.write_at(input, *to)?;
                self.progress.step(input.len() as u64).at(self.path)?;
                return Ok(None);
            }
            Job::Encode {
                item,
                encoder,
                start,
                part,
            } => (item, encoder, start, part),
        };
        let cols = encoder.header().cols();
        self.original.read_part(item.tensor, cols, part, input)?;
        let matrix = Matrix::from_le_bytes(part.rows.len(), part.cols.len(), input);
        let matrix = matrix.expect("a part of a matrix");
        dense.resize(part.tiles.len() * TILE_BYTES, 0);
        let mut buffer = TileBuffer::default();
        encoder.encode(&matrix, dense, &mut buffer);
        self.write_at(
            dense,
            start + (HEADER_BYTES + part.tiles.start * TILE_BYTES) as u64,
        )?;
        self.progress.step(input.len() as u64).at(self.path)?;
        Ok(Some(Encoded {
            buffer,
            crc: crc32fast::hash(dense),
            len: dense.len() as u64,
        }))
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> Result<(), Error> {
        self.file.write_all_at(bytes, offset).at(self.path)
    }
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

    fn append(&mut self, writer: &Writer, run: Encoded) -> Result<(), Error> {
        let header = self.encoder.header();
        let changed = || Error::new(writer.original.input().path(), ErrorKind::Changed);
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
        let (offsets_at, patches_at) = (header.patch_offsets().start, header.patches().start);
        writer.write_at(&offsets, at(offsets_at + 4 * (self.tiles + 1)))?;
        writer.write_at(patches, at(patches_at + 2 * patches_before))?;
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
        writer.write_at(&header.to_bytes(), self.start)
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
