//! What is seen of all of a model's devices: one executor.

use std::{panic, path::Path, thread};

use zipserv::gpu::{Device, Graph, Stream};

use super::{
    Batch, GpuOptions, INPUT_WORDS, INPUTS, MOST_LOGITS, MOST_SEQUENCES, MOST_STEPS, MOST_TOKENS,
    Passes, Rank, Room, Steps,
    exchange::Exchange,
    nccl::Communicator,
    part::{self, Part},
    sampling_words,
    stage::{Stage, Wanted},
};
use crate::{
    Chunk, Config, Error, Executor, Logits, Result, Sampling, SequenceId, executor::check,
    weights::Weights,
};

/// Runs a model on a GPU, or on several.
pub struct GpuExecutor {
    config: Config,
    context: usize,
    /// The tokens of each sequence that there is.
    sequences: Vec<Option<usize>>,
    ranks: Vec<Rank>,
}

/// What tells kernels of chunks.
struct Inputs {
    words: Vec<u32>,
    batch: Batch,
    /// Rows of which logits are wanted.
    wanted: usize,
}

/// Calls for each item, in threads of their own if there are several.
fn each<I: Send, T: Send>(
    items: impl ExactSizeIterator<Item = I>,
    call: impl Fn(I) -> Result<T> + Sync,
) -> Result<Vec<T>> {
    if items.len() <= 1 {
        return items.map(call).collect();
    }
    thread::scope(|scope| {
        let call = &call;
        let threads: Vec<_> = items.map(|item| scope.spawn(move || call(item))).collect();
        let results = threads.into_iter().map(|thread| thread.join());
        let results: Vec<_> = results.collect();
        let results = results.into_iter();
        results
            .map(|result| result.unwrap_or_else(|cause| panic::resume_unwind(cause)))
            .collect()
    })
}

impl GpuExecutor {
    /// Loads the model of a Hugging Face folder, compressed by zipserv or not, and takes the memory for all sequences.
    ///
    /// # Errors
    /// Those of [`CpuExecutor::open`](crate::CpuExecutor::open); [`Error::Memory`] before more memory is taken than there
    /// is; [`Error::Request`] for what does not run on a GPU, or not on so many; [`Error::NoNccl`] and [`Error::Nccl`]
    /// for several; [`Error::Gpu`].
    pub fn open(folder: impl AsRef<Path>, options: &GpuOptions) -> Result<Self> {
        let folder = folder.as_ref();
        let config = Config::open(folder)?;
        if options.dense && config.experts.is_some() {
            let why = "mixtures of experts do not run from dense weights on a GPU";
            return Err(Error::Request(why.into()));
        }
        part::check(&config, &options.devices)?;
        let weights = Weights::open(folder, &config)?;
        // What may not be there comes before weights are read, which takes its time.
        let devices = options.devices.iter().map(|&number| Device::new(number));
        let devices: Vec<_> = devices.collect::<std::result::Result<_, _>>()?;
        if options.dense {
            devices.iter().try_for_each(|d| d.cublaslt().map(drop))?;
        }
        let communicators = match &devices[..] {
            [_] => vec![None],
            all => Communicator::all(all)?.into_iter().map(Some).collect(),
        };
        let streams: Vec<_> = devices
            .iter()
            .map(Stream::new)
            .collect::<std::result::Result<_, _>>()?;
        let exchanges = match Exchange::all(&streams, config.hidden)? {
            Some(all) => all.into_iter().map(Some).collect(),
            None => streams.iter().map(|_| None).collect::<Vec<_>>(),
        };
        let context = options.context.unwrap_or(config.context);
        let room = Room {
            sequences: options.sequences.clamp(1, MOST_SEQUENCES),
            context: context.min(config.context),
        };
        let of = devices.len();
        let together = communicators.into_iter().zip(exchanges);
        let ranks = streams.into_iter().zip(together).enumerate();
        let ranks = each(ranks, |(index, (stream, together))| {
            let part = Part { index, of };
            Rank::open(&config, &weights, options, room, part, stream, together)
        });
        Ok(Self {
            context: room.context,
            sequences: vec![None; room.sequences],
            ranks: ranks?,
            config,
        })
    }

    /// Of the model.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Sequences that there is room for.
    pub fn room(&self) -> usize {
        self.sequences.len()
    }

    /// Takes memory for so many sequences of so many tokens, in place of what there is. All sequences end.
    ///
    /// # Errors
    /// [`Error::Memory`] if there is not so much; then there is room for none. [`Error::Gpu`].
    pub fn set_room(&mut self, sequences: usize, context: usize) -> Result<()> {
        let room = Room {
            sequences: sequences.clamp(1, MOST_SEQUENCES),
            context: context.min(self.config.context),
        };
        self.sequences.clear();
        self.each(|rank| rank.set_room(room))?;
        self.context = room.context;
        self.sequences = vec![None; room.sequences];
        Ok(())
    }

    /// Times each stage of a step of these sequences by itself, on one device: seconds, and the bytes of weights, keys and
    /// values that it reads where they are known. Sequences end, for what they have is overwritten.
    ///
    /// # Errors
    /// As [`choose`](Self::choose); [`Error::Request`] on several devices.
    pub fn time_stages(
        &mut self,
        sequences: &[SequenceId],
        sampling: &[Sampling],
    ) -> Result<Vec<(Stage, f64, Option<u64>)>> {
        if self.ranks.len() > 1 {
            let why = "stages are timed on one device alone";
            return Err(Error::Request(why.into()));
        }
        let tokens = vec![0; sequences.len()];
        // It takes plans and kernels for itself.
        self.choose(sequences, &tokens, sampling, 1)?;
        let longest = sequences.iter().map(|id| self.sequences[id.0].unwrap_or(0));
        let context = longest.max().unwrap_or(0);
        let batch = Batch {
            tokens: sequences.len(),
            decoding: sequences.len(),
            chunks: 0,
            longest: 0,
        };
        let settings = sampling
            .iter()
            .map(|one| one.settings(self.config.vocabulary));
        let passes = Passes::of(&settings.collect::<Vec<_>>());
        let rank = &mut self.ranks[0];
        let time = |stage: Stage| -> Result<_> {
            let seconds = rank.time(&batch, passes, stage)?;
            Ok((stage, seconds, rank.bytes(stage, sequences.len(), context)))
        };
        let times = Stage::ALL.into_iter().map(time).collect();
        sequences.iter().for_each(|&sequence| self.end(sequence));
        times
    }

    /// Continues sequences by the largest logits: [`choose`](Self::choose) where nothing is sampled.
    ///
    /// # Errors
    /// As that.
    pub fn greedy(
        &mut self,
        sequences: &[SequenceId],
        tokens: &[u32],
        steps: usize,
    ) -> Result<Vec<Vec<u32>>> {
        let greedy = vec![Sampling::default(); sequences.len()];
        self.choose(sequences, tokens, &greedy, steps)
    }

    /// Continues sequences: `tokens` come next in them, and `steps` tokens are chosen after each, as its `sampling` says, a
    /// row for each step. Of those, all but the last are added to the sequence. The host only replays a recording.
    ///
    /// The tokens are those of [`Sampling::sample`] by the same logits, but that logits which are NaN are left out; of none
    /// that is a number, or if the largest is infinite and one is sampled, comes the token `u32::MAX`.
    ///
    /// # Errors
    /// As [`forward`](Executor::forward), if settings mean nothing, and if there are not as many tokens or settings as
    /// sequences; [`Error::Request`] if something is sampled on several devices, of which each has a part of the logits.
    pub fn choose(
        &mut self,
        sequences: &[SequenceId],
        tokens: &[u32],
        sampling: &[Sampling],
        steps: usize,
    ) -> Result<Vec<Vec<u32>>> {
        let n = sequences.len();
        if n == 0 || n != tokens.len() || n != sampling.len() {
            let why = format!(
                "{n} sequences, but {} tokens come next, and there are settings for {}",
                tokens.len(),
                sampling.len()
            );
            return Err(Error::Request(why));
        }
        sampling.iter().try_for_each(Sampling::check)?;
        let settings = sampling
            .iter()
            .map(|one| one.settings(self.config.vocabulary));
        let settings: Vec<_> = settings.collect();
        let recording = Steps {
            sequences: n,
            passes: Passes::of(&settings),
        };
        let is_greedy = recording.passes == Passes::default();
        if !is_greedy && self.ranks.len() > 1 {
            let why = "tokens are sampled on one device alone";
            return Err(Error::Request(why.into()));
        }
        let chunks: Vec<_> = sequences
            .iter()
            .zip(tokens.chunks(1))
            .map(|(&sequence, tokens)| Chunk { sequence, tokens })
            .collect();
        self.check(&chunks, steps)?;
        let Inputs { words, batch, .. } = self.inputs(&chunks, Logits::Last);
        self.each(|rank| {
            rank.put(&words)?;
            rank.prepare(n, n)
        })?;
        let mut all = Vec::new();
        while all.len() < steps {
            let now = (steps - all.len()).min(MOST_STEPS);
            let random = (0..now * n).map(|at| {
                let (step, of) = (all.len() + at / n, at % n);
                let before = self.sequences[sequences[of].0].unwrap_or(0);
                sampling[of].random(before + 1 + step)
            });
            let sampled = match is_greedy {
                true => Vec::new(),
                false => sampling_words(&settings, random),
            };
            self.each(|rank| rank.restart(&sampled))?;
            if !self.ranks[0].graphs.contains_key(&recording) {
                let passes = recording.passes;
                // The first run loads kernels, which a recording cannot.
                self.launch(|rank| rank.choose_next(&batch, passes, Wanted::ALL))?;
                self.launch(|rank| Ok(rank.stream.synchronize()?))?;
                self.launch(|rank| {
                    let launch = || rank.choose_next(&batch, passes, Wanted::ALL);
                    let graph = Graph::record(&rank.stream, launch)?;
                    rank.graphs.insert(recording, graph);
                    Ok(())
                })?;
                self.each(|rank| {
                    rank.restart(&sampled)?;
                    rank.put(&words)
                })?;
            }
            self.launch(|rank| rank.replay(recording, now))?;
            let chosen = self.launch(|rank| rank.chosen(now * n))?;
            all.extend(chosen[0].chunks(n).map(<[u32]>::to_vec));
        }
        for sequence in sequences {
            if let Some(Some(tokens)) = self.sequences.get_mut(sequence.0) {
                *tokens += steps;
            }
        }
        Ok(all)
    }

    fn each<T: Send>(&mut self, call: impl Fn(&mut Rank) -> Result<T> + Sync) -> Result<Vec<T>> {
        each(self.ranks.iter_mut(), call)
    }

    /// Launches on each rank what all do together, or waits for it. If one cannot, the others are not left to wait for it.
    fn launch<T: Send>(&mut self, call: impl Fn(&mut Rank) -> Result<T> + Sync) -> Result<Vec<T>> {
        let exchange = self.ranks[0].exchange.as_ref().map(Exchange::shared);
        let launched = self.each(|rank| {
            call(rank).inspect_err(|_| {
                // At once: another rank's thread may wait for its kernels here.
                exchange.iter().for_each(|all| all.abort());
            })
        });
        if launched.is_err() {
            self.ranks.iter_mut().for_each(Rank::abort);
        }
        launched
    }

    fn check(&self, chunks: &[Chunk], steps: usize) -> Result<()> {
        let tokens = |id: SequenceId| self.sequences.get(id.0).copied().flatten();
        check(
            chunks,
            self.config.vocabulary,
            self.context + 1 - steps.max(1).min(self.context),
            tokens,
        )
    }

    /// Chunks as kernels want them, those of single tokens first.
    fn inputs(&self, chunks: &[Chunk], logits: Logits) -> Inputs {
        let mut words = vec![0u32; INPUT_WORDS];
        let mut batch = Batch {
            tokens: 0,
            decoding: 0,
            chunks: 0,
            longest: 0,
        };
        let mut order: Vec<usize> = (0..chunks.len()).collect();
        order.sort_by_key(|&index| chunks[index].tokens.len() > 1);
        let mut rows_of = vec![0..0; chunks.len()];
        for index in order {
            let Chunk { sequence, tokens } = chunks[index];
            let row = batch.tokens;
            let start = self.sequences[sequence.0].unwrap_or(0);
            for (at, &token) in tokens.iter().enumerate() {
                let values = [token, sequence.0 as u32, (start + at) as u32];
                for (from, value) in INPUTS.into_iter().zip(values) {
                    words[from + row + at] = value;
                }
            }
            batch.tokens += tokens.len();
            rows_of[index] = row..batch.tokens;
            if tokens.len() == 1 {
                batch.decoding += 1;
            } else {
                let chunk = [row, tokens.len(), sequence.0, start].map(|word| word as u32);
                let at = INPUTS[4] + 4 * batch.chunks;
                words[at..at + 4].copy_from_slice(&chunk);
                batch.chunks += 1;
                batch.longest = batch.longest.max(tokens.len());
            }
        }
        let wanted: Vec<usize> = match logits {
            Logits::No => Vec::new(),
            Logits::Last => rows_of.into_iter().map(|rows| rows.end - 1).collect(),
            Logits::All => rows_of.into_iter().flatten().collect(),
        };
        for (to, &row) in words[INPUTS[3]..].iter_mut().zip(&wanted) {
            *to = row as u32;
        }
        Inputs {
            words,
            batch,
            wanted: wanted.len(),
        }
    }
}

impl Executor for GpuExecutor {
    fn vocabulary(&self) -> usize {
        self.config.vocabulary
    }

    fn context(&self) -> usize {
        self.context
    }

    fn start(&mut self) -> Result<SequenceId> {
        let free = self.sequences.iter().position(Option::is_none);
        let Some(free) = free else {
            let why = format!(
                "there is room for {} sequences at a time",
                self.sequences.len()
            );
            return Err(Error::Request(why));
        };
        self.sequences[free] = Some(0);
        Ok(SequenceId(free))
    }

    fn try_choose(
        &mut self,
        sequences: &[SequenceId],
        tokens: &[u32],
        sampling: &[Sampling],
        steps: usize,
    ) -> Result<Option<Vec<Vec<u32>>>> {
        // Where several devices have parts of the logits, the host samples.
        let is_sampled = sampling.iter().any(|one| one.temperature != 0.0);
        if is_sampled && self.ranks.len() > 1 {
            return Ok(None);
        }
        self.choose(sequences, tokens, sampling, steps).map(Some)
    }

    fn truncate(&mut self, sequence: SequenceId, tokens: usize) {
        if let Some(Some(there)) = self.sequences.get_mut(sequence.0) {
            *there = tokens.min(*there);
        }
    }

    fn end(&mut self, sequence: SequenceId) {
        if let Some(sequence) = self.sequences.get_mut(sequence.0) {
            *sequence = None;
        }
    }

    fn forward(&mut self, chunks: &[Chunk], logits: Logits) -> Result<Vec<f32>> {
        self.check(chunks, 1)?;
        let mut all = vec![Vec::new(); chunks.len()];
        let mut left: Vec<_> = chunks.iter().copied().enumerate().collect();
        while !left.is_empty() {
            // As many tokens as go through at a time.
            let (mut now, mut later, mut room) = (Vec::new(), Vec::new(), MOST_TOKENS);
            for (index, Chunk { sequence, tokens }) in left {
                let (first, rest) = tokens.split_at(tokens.len().min(room));
                room -= first.len();
                if !first.is_empty() {
                    now.push((
                        index,
                        rest.is_empty(),
                        Chunk {
                            sequence,
                            tokens: first,
                        },
                    ));
                }
                if !rest.is_empty() {
                    later.push((
                        index,
                        Chunk {
                            sequence,
                            tokens: rest,
                        },
                    ));
                }
            }
            self.some(&now, logits, &mut all)?;
            left = later;
        }
        Ok(all.concat())
    }
}

impl GpuExecutor {
    /// Adds chunks, of which it is said whether they are the last of theirs, and appends their logits.
    fn some(
        &mut self,
        now: &[(usize, bool, Chunk)],
        logits: Logits,
        all: &mut [Vec<f32>],
    ) -> Result<()> {
        let chunks: Vec<_> = now.iter().map(|&(_, _, chunk)| chunk).collect();
        let Inputs {
            words,
            batch,
            wanted,
        } = self.inputs(&chunks, logits);
        self.each(|rank| {
            rank.put(&words)?;
            rank.prepare(batch.tokens, wanted.min(MOST_LOGITS))?;
            rank.prepare(batch.tokens, wanted % MOST_LOGITS)
        })?;
        self.launch(|rank| rank.layers(&batch, Wanted::ALL))?;
        let parts = self.launch(|rank| rank.read_logits(batch.tokens, wanted))?;
        let mut parts = parts.into_iter();
        let mut made = parts.next().unwrap_or_default();
        let width = self.config.vocabulary;
        for (rank, part) in self.ranks[1..].iter().zip(parts) {
            let rows = made.chunks_exact_mut(width).zip(part.chunks_exact(width));
            for (row, part) in rows {
                let own = rank.vocabulary.clone();
                row[own.clone()].copy_from_slice(&part[own]);
            }
        }
        let mut made = made.as_slice();
        for &(index, is_last, Chunk { sequence, tokens }) in now {
            let rows = match logits {
                Logits::No => 0,
                Logits::Last => 1,
                Logits::All => tokens.len(),
            };
            let (own, rest) = made.split_at(rows * width);
            made = rest;
            if is_last || logits == Logits::All {
                all[index].extend(own);
            }
            if let Some(Some(there)) = self.sequences.get_mut(sequence.0) {
                *there += tokens.len();
            }
        }
        Ok(())
    }
}
