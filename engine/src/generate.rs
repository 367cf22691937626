//! From prompts to texts, over any executor.

use crate::{
    Chunk, Error, Executor, Logits, Result, SequenceId,
    perplexity::log_probability,
    sampling::{Sampling, most_probable},
    stop::StopStrings,
    text::{TextStream, Tokenizer},
};

/// What is to be continued, and how.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// At least one token.
    pub prompt: Vec<u32>,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// The most that are generated; else as many as the context has room for.
    pub max_tokens: Option<usize>,
    /// Texts that end the output, and are not part of it.
    pub stop: Vec<String>,
    /// Tokens that end the output, and whose text is not part of it.
    pub end: Vec<u32>,
    /// Log-probabilities of the tokens that are generated, and of so many of the most probable ones beside each.
    pub log_probabilities: Option<usize>,
}

/// A token that was generated.
#[derive(Clone, Debug, PartialEq)]
pub struct Token {
    /// Its number.
    pub id: u32,
    /// The natural logarithm of its probability, before temperature, top-k and top-p, if it was asked for.
    pub log_probability: Option<f64>,
    /// The same of the most probable tokens, in that order.
    pub most_probable: Vec<(u32, f64)>,
}

/// Why a text ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FinishReason {
    /// The model ended it, or a stop string came.
    Stop,
    /// There are as many tokens as were asked for, or as there is room for.
    Length,
    /// [`Listener::is_cancelled`].
    #[default]
    Cancelled,
}

/// What came of a [`Request`].
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Generation {
    /// The text, in whole characters.
    pub text: String,
    /// The tokens, also one that has ended it.
    pub tokens: Vec<Token>,
    /// Why it ends there.
    pub finish_reason: FinishReason,
}

/// Follows what is generated.
pub trait Listener {
    /// A token of a request was generated, and makes so much more text certain, which may be none.
    fn token(&mut self, request: usize, text: &str);

    /// Whether to stop now. Asked between calls of the executor.
    fn is_cancelled(&self) -> bool {
        false
    }
}

/// Listens to nothing.
impl Listener for () {
    fn token(&mut self, _: usize, _: &str) {}
}

/// How much an executor is given at a time.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Tokens of a prompt.
    pub chunk: usize,
    /// Sequences.
    pub batch: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            chunk: 256,
            batch: 64,
        }
    }
}

/// Tokens that an executor chooses by itself before they are looked at.
const STEPS: usize = 8;

/// Generates texts with an executor.
///
/// Prompts are prefilled in chunks beside sequences that are further. A lone request's sequence is kept: if the next
/// prompt begins with it, as in a chat, only the rest is run.
///
/// ```no_run
/// use zipserv_engine::{CpuExecutor, Generator, Request, Sampling, Tokenizer, generate::Limits};
///
/// let tokenizer = Tokenizer::open("folder")?;
/// let mut executor = CpuExecutor::open("folder")?;
/// let request = Request {
///     prompt: tokenizer.encode("The capital of France is", true)?,
///     sampling: Sampling { temperature: 0.7, seed: 1, ..Sampling::default() },
///     max_tokens: Some(20),
///     ..Request::default()
/// };
/// let mut generator = Generator::new(&mut executor, &tokenizer, Limits::default());
/// let generations = generator.generate(&[request], &mut ())?;
/// println!("{}", generations[0].text);
/// # Ok::<(), zipserv_engine::Error>(())
/// ```
pub struct Generator<'a> {
    executor: &'a mut dyn Executor,
    tokenizer: &'a Tokenizer,
    limits: Limits,
    kept: Option<Sequence>,
}

/// A sequence of the executor.
struct Sequence {
    id: SequenceId,
    /// Those that the executor has.
    tokens: Vec<u32>,
}

/// A request on its way.
struct Running<'a> {
    index: usize,
    request: &'a Request,
    max_tokens: usize,
    sequence: Sequence,
    /// What the executor is to be given next.
    next: Vec<u32>,
    stream: TextStream<'a>,
    stop: StopStrings<'a>,
    generation: Generation,
    is_done: bool,
}

impl<'a> Generator<'a> {
    /// Generates with `executor` what `tokenizer` makes text of.
    pub fn new(executor: &'a mut dyn Executor, tokenizer: &'a Tokenizer, limits: Limits) -> Self {
        Self {
            executor,
            tokenizer,
            limits,
            kept: None,
        }
    }

    /// Continues prompts, as many of them at a time as `limits` have. A text depends neither on its neighbours nor on
    /// chunks.
    ///
    /// # Errors
    /// If a request cannot be served, which is found before any is begun; or if the executor fails, or gives logits that
    /// are NaN.
    pub fn generate(
        &mut self,
        requests: &[Request],
        listener: &mut dyn Listener,
    ) -> Result<Vec<Generation>> {
        let room = self.executor.context();
        for request in requests {
            request.room(room)?;
        }
        let (mut running, mut done) = (Vec::new(), Vec::new());
        let result = self.run(requests, &mut running, &mut done, listener);
        // Of an error, or cancelled.
        for Running { sequence, .. } in &running {
            self.executor.end(sequence.id);
        }
        result?;
        let cancelled = running.into_iter().map(|running| {
            let generation = running.generation;
            (running.index, generation)
        });
        let mut generations = vec![Generation::default(); requests.len()];
        for (index, generation) in cancelled.chain(done) {
            generations[index] = generation;
        }
        Ok(generations)
    }

    fn run<'b>(
        &mut self,
        requests: &'b [Request],
        running: &mut Vec<Running<'b>>,
        done: &mut Vec<(usize, Generation)>,
        listener: &mut dyn Listener,
    ) -> Result<()>
    where
        'a: 'b,
    {
        let mut waiting = requests.iter().enumerate();
        loop {
            while running.len() < self.limits.batch.max(1)
                && let Some((index, request)) = waiting.next()
            {
                running.push(self.begin(index, request)?);
            }
            if running.is_empty() || listener.is_cancelled() {
                return Ok(());
            }
            self.step(running, listener)?;
            for ended in running.extract_if(.., |running| running.is_done) {
                done.push((ended.index, ended.generation));
                match requests.len() {
                    1 => self.kept = Some(ended.sequence),
                    _ => self.executor.end(ended.sequence.id),
                }
            }
        }
    }

    fn begin<'b>(&mut self, index: usize, request: &'b Request) -> Result<Running<'b>>
    where
        'a: 'b,
    {
        let sequence = match self.kept.take() {
            Some(kept) if begins_with(&request.prompt, &kept.tokens) => kept,
            other => {
                if let Some(other) = other {
                    self.executor.end(other.id);
                }
                Sequence {
                    id: self.executor.start()?,
                    tokens: Vec::new(),
                }
            }
        };
        Ok(Running {
            index,
            request,
            next: request.prompt[sequence.tokens.len()..].to_vec(),
            sequence,
            max_tokens: request.room(self.executor.context())?,
            stream: self.tokenizer.stream(),
            stop: StopStrings::new(&request.stop),
            generation: Generation::default(),
            is_done: false,
        })
    }

    /// Has the executor choose some tokens by itself, where nothing but them is wanted and it does so.
    fn choose(&mut self, running: &mut [Running], listener: &mut dyn Listener) -> Result<bool> {
        let vocabulary = self.executor.vocabulary();
        if !running.iter().all(Running::wants_tokens) {
            return Ok(false);
        }
        let left = |running: &Running| running.max_tokens - running.generation.tokens.len();
        let steps = running.iter().map(left).min().unwrap_or(0).min(STEPS);
        let sequences: Vec<_> = running.iter().map(|running| running.sequence.id).collect();
        let tokens: Vec<_> = running.iter().map(|running| running.next[0]).collect();
        let sampling: Vec<_> = running.iter().map(|one| one.request.sampling).collect();
        let chosen = self
            .executor
            .try_choose(&sequences, &tokens, &sampling, steps)?;
        let Some(rows) = chosen else {
            return Ok(false);
        };
        for (column, running) in running.iter_mut().enumerate() {
            for id in rows.iter().map(|row| row[column]) {
                if id as usize >= vocabulary {
                    return Err(Error::Request("the logits are NaN or infinite".into()));
                }
                running.sequence.tokens.append(&mut running.next);
                running.accept(Token::of(id), listener)?;
                if running.is_done {
                    // The executor may have gone on.
                    let Sequence { id, tokens } = &running.sequence;
                    self.executor.truncate(*id, tokens.len());
                    break;
                }
            }
        }
        Ok(true)
    }

    /// Gives the executor what is next of each sequence, and samples what follows the whole ones.
    fn step(&mut self, running: &mut [Running], listener: &mut dyn Listener) -> Result<()> {
        if self.choose(running, listener)? {
            return Ok(());
        }
        let length = |running: &Running| running.next.len().min(self.limits.chunk.max(1));
        let chunks = running.iter().map(|running| Chunk {
            sequence: running.sequence.id,
            tokens: &running.next[..length(running)],
        });
        let is_whole = |running: &Running| length(running) == running.next.len();
        let wanted = match running.iter().any(is_whole) {
            true => Logits::Last,
            false => Logits::No,
        };
        let logits = self.executor.forward(&chunks.collect::<Vec<_>>(), wanted)?;
        let mut rows = logits.chunks_exact(self.executor.vocabulary());
        for running in running {
            let logits = rows.next();
            let given = running.next.drain(..length(running));
            running.sequence.tokens.extend(given);
            if let Some(logits) = logits
                && running.next.is_empty()
            {
                running.sample(logits, listener)?;
            }
        }
        Ok(())
    }
}

impl Drop for Generator<'_> {
    fn drop(&mut self) {
        if let Some(kept) = self.kept.take() {
            self.executor.end(kept.id);
        }
    }
}

/// Whether a prompt is longer than a sequence, and begins with it.
fn begins_with(prompt: &[u32], sequence: &[u32]) -> bool {
    prompt.len() > sequence.len() && prompt.starts_with(sequence)
}

impl Request {
    /// How many tokens may be generated where a sequence can have `context`.
    fn room(&self, context: usize) -> Result<usize> {
        self.sampling.check()?;
        let refused = |reason: &str| Err(Error::Request(reason.into()));
        if self.prompt.is_empty() {
            return refused("the prompt has no tokens");
        }
        if self.max_tokens == Some(0) {
            return refused("no tokens are asked for");
        }
        if self.stop.iter().any(String::is_empty) {
            return refused("a stop string is empty");
        }
        let tokens = self
            .prompt
            .len()
            .saturating_add(self.max_tokens.unwrap_or(1));
        match tokens > context {
            true => Err(Error::Context {
                tokens,
                room: context,
            }),
            false => Ok(self.max_tokens.unwrap_or(context - self.prompt.len())),
        }
    }
}

impl Token {
    fn of(id: u32) -> Self {
        Self {
            id,
            log_probability: None,
            most_probable: Vec::new(),
        }
    }
}

impl Running<'_> {
    /// Whether the token after the next one is all that is wanted.
    fn wants_tokens(&self) -> bool {
        self.next.len() == 1 && self.request.log_probabilities.is_none()
    }

    /// Takes the token that follows.
    fn sample(&mut self, logits: &[f32], listener: &mut dyn Listener) -> Result<()> {
        let Request {
            sampling,
            log_probabilities,
            ..
        } = self.request;
        let id = sampling.sample(logits, self.sequence.tokens.len())?;
        let of = |id| log_probability(logits, id);
        let most_probable = most_probable(logits, log_probabilities.unwrap_or(0));
        let token = Token {
            log_probability: log_probabilities.map(|_| of(id)),
            most_probable: most_probable.into_iter().map(|id| (id, of(id))).collect(),
            ..Token::of(id)
        };
        self.accept(token, listener)
    }

    /// Adds a token that was chosen.
    fn accept(&mut self, token: Token, listener: &mut dyn Listener) -> Result<()> {
        let (id, end) = (token.id, &self.request.end);
        let tokens = &mut self.generation.tokens;
        tokens.push(token);
        let (text, finish_reason) = if end.contains(&id) {
            (self.stop.finish(), Some(FinishReason::Stop))
        } else {
            let (mut text, is_stopped) = self.stop.push(&self.stream.push(id)?);
            let finish_reason = match (is_stopped, tokens.len() == self.max_tokens) {
                (true, _) => Some(FinishReason::Stop),
                (false, true) => {
                    text += &self.stop.finish();
                    Some(FinishReason::Length)
                }
                (false, false) => None,
            };
            (text, finish_reason)
        };
        self.generation.text += &text;
        listener.token(self.index, &text);
        self.next = vec![id];
        if let Some(reason) = finish_reason {
            self.generation.finish_reason = reason;
            self.is_done = true;
        }
        Ok(())
    }
}
