//! Runs a model on a GPU: every launch of a token follows the one before without a gap, from compressed weights, or,
//! to be compared with, from dense ones.
//!
//! A token's state is FP32; products take BF16 and add to it in FP32, keys and values are BF16. Products of few tokens are
//! batch-invariant unless the fastest are asked for, so what a sequence gets does not depend on what runs beside it;
//! only whether a token came in a chunk of several changes its last bits. cuBLASLt, which multiplies by dense weights,
//! promises none of that.
//!
//! Several devices work as one: each has a `Rank`, with a part of the weights, of the keys and the values,
//! and does what one alone would do, but that after each product which adds to the state all add up what they have. Of few
//! tokens the norm behind does so, from the memory of all devices where they reach one another's, in the order of ranks;
//! else NCCL does, in an order that more than two may choose by the number of tokens.

mod ahead;
mod dense;
mod exchange;
mod executor;
mod experts;
mod kernels;
mod nccl;
mod part;
mod piece;
mod product;
mod stage;
mod weights;

use std::{collections::HashMap, ops::Range, time::Instant};

use half::bf16;
use zipserv::gpu::{
    Buffer, Device, GatedPlan, GpuError, Graph, PlanOptions, RawGated, RawOperands, Stream,
};
use zipserv_engine_kernels::{
    choose::{AdvanceArgs, LargestArgs},
    sample::{self, Pass, State},
    sampling::Settings,
};

use self::{
    exchange::{Exchange, Turn},
    experts::{Launcher, Mixture},
    kernels::{Addend, Caches, Kernels, Places},
    nccl::{Communicator, Reduction},
    part::Part,
    product::{Matrix, Multiplier, Product, ProductPlan},
    stage::Wanted,
    weights::{DeviceModel, FeedForward, Layer, Mlp},
};
pub use self::{executor::GpuExecutor, stage::Stage};
use crate::{Config, Error, Result, memory, weights::Weights};

/// What a model is to have room for.
#[derive(Clone, Debug)]
pub struct GpuOptions {
    /// The devices, as the driver counts. Several share the model (tensor parallelism); they need NCCL.
    pub devices: Vec<u32>,
    /// Sequences at a time, at most 64.
    pub sequences: usize,
    /// Tokens of a sequence; as many as the model knows, if nothing is said.
    pub context: Option<usize>,
    /// Whether products may be faster where a token's bits depend on the batch then.
    pub fastest: bool,
    /// Whether products are cuBLASLt's, by weights as they were: what compressed ones are compared with. Of each shape
    /// and number of tokens several of its kernels are tried, and the fastest is taken.
    pub dense: bool,
}

impl Default for GpuOptions {
    fn default() -> Self {
        Self {
            devices: vec![0],
            sequences: 1,
            context: None,
            fastest: false,
            dense: false,
        }
    }
}

/// Tokens that go through the layers at a time.
const MOST_TOKENS: usize = 2048;
/// Sequences, at most.
const MOST_SEQUENCES: usize = 64;
/// Rows of logits that are made at a time: a step has one of each sequence.
const MOST_LOGITS: usize = MOST_SEQUENCES;
/// Tokens that are chosen on the device before the host looks at them, at most.
const MOST_STEPS: usize = 1024;

/// A device with its part of a model.
struct Rank {
    /// Recordings go before the communicator that they use.
    graphs: HashMap<Steps, Graph>,
    /// Nothing where there is one device alone.
    communicator: Option<Communicator>,
    /// Nothing where devices do not reach one another's memory either.
    exchange: Option<Exchange>,
    /// The heads and inner elements are those of the part.
    config: Config,
    part: Part,
    /// Entries of the vocabulary of which it makes logits.
    vocabulary: Range<usize>,
    stream: Stream,
    multiplier: Multiplier,
    kernels: Kernels,
    model: DeviceModel,
    /// Cosine and sine of each position and frequency.
    angles: Buffer<f32>,
    cache: Caches,
    memory: Memory,
    mixture: Option<Mixture>,
    plans: HashMap<usize, Plans>,
    heads: HashMap<usize, ProductPlan>,
}

/// What there is to be room for.
#[derive(Clone, Copy)]
struct Room {
    sequences: usize,
    /// Tokens of each.
    context: usize,
}

impl Room {
    /// Takes memory for the keys and values of each layer, and for cosines and sines, where `kept` bytes more are free.
    fn take(self, device: &Device, config: &Config, kept: u64) -> Result<(Caches, Buffer<f32>)> {
        let Self { sequences, context } = self;
        let free = device.free_bytes()? as u64;
        let cache =
            |tokens: usize| memory::keys_and_values(config, sequences as u64, tokens as u64, 2);
        let needed = kept.saturating_add(cache(context));
        if needed > free {
            let each = cache(1).max(1);
            let fits = (free.saturating_sub(kept) / each) as usize;
            return Err(Error::Memory {
                needed,
                free,
                sequences,
                context,
                fits,
            });
        }
        let half = || Buffer::<bf16>::zeroed(device, sequences * context * config.kv_width());
        let layers = (0..config.layers).map(|_| Ok((half()?, half()?)));
        Ok((
            layers.collect::<Result<_>>()?,
            angles(device, config, context)?,
        ))
    }
}

/// What goes from kernel to kernel.
struct Memory {
    /// For each token its number, place, position; rows of which logits are wanted; chunks of four words.
    inputs: Buffer<u32>,
    h: Buffer<f32>,
    x: Buffer<bf16>,
    qkv: Buffer<bf16>,
    attended: Buffer<bf16>,
    gated: Buffer<bf16>,
    scratch: Buffer<bf16>,
    logits: Buffer<f32>,
    partials: Buffer<f32>,
    counters: Buffer<u32>,
    keys: Buffer<u64>,
    /// What sampling keeps of each sequence.
    states: Buffer<u32>,
    /// Settings of each sequence, then random numbers for steps and sequences.
    sampling: Buffer<u64>,
    step: Buffer<u32>,
    chosen: Buffer<u32>,
}

/// How products of so many tokens are made, in any layer.
#[derive(Clone, Copy)]
struct Plans {
    qkv: ProductPlan,
    output: ProductPlan,
    mlp: Option<MlpPlans>,
}

/// In layers that have no experts.
#[derive(Clone, Copy)]
struct MlpPlans {
    gate_up: ProductPlan,
    /// Of compressed weights without biases, which would be added before outputs are gated.
    gated: Option<GatedPlan>,
    down: ProductPlan,
}

/// Tokens that go through the layers together.
struct Batch {
    tokens: usize,
    /// The first of them, which come alone.
    decoding: usize,
    chunks: usize,
    longest: usize,
}

/// Steps that one recording is for.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Steps {
    sequences: usize,
    passes: Passes,
}

/// Which of [`Pass::ALL`] sequences need; none if all are greedy.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
struct Passes([bool; 3]);

impl Passes {
    fn of(settings: &[Settings]) -> Self {
        Self(Pass::ALL.map(|pass| settings.iter().any(|&settings| pass.is_for(settings))))
    }

    fn wanted(self) -> impl Iterator<Item = Pass> {
        Pass::ALL
            .into_iter()
            .zip(self.0)
            .filter_map(|(pass, so)| so.then_some(pass))
    }
}

/// Where parts of the inputs are, in words: numbers, places, positions, rows, chunks.
const INPUTS: [usize; 5] = [
    0,
    MOST_TOKENS,
    2 * MOST_TOKENS,
    3 * MOST_TOKENS,
    4 * MOST_TOKENS,
];
const INPUT_WORDS: usize = INPUTS[4] + 4 * MOST_SEQUENCES;
/// 64 bits of settings before random numbers.
const SETTINGS: usize = size_of::<Settings>() / 8 * MOST_SEQUENCES;

impl Rank {
    /// Loads its part of a model, and takes the memory for all sequences.
    fn open(
        whole: &Config,
        weights: &Weights,
        options: &GpuOptions,
        room: Room,
        part: Part,
        stream: Stream,
        (communicator, exchange): (Option<Communicator>, Option<Exchange>),
    ) -> Result<Self> {
        if let Some(communicator) = &communicator {
            communicator.connect(&stream, &[whole.hidden, MOST_TOKENS * whole.hidden])?;
        }
        let (device, config) = (stream.device().clone(), part.config(whole));
        let kernels = Kernels::new(&device, &config, room.context, options.fastest);
        let kernels = kernels.map_err(Error::Request)?;
        let model = DeviceModel::load(&stream, whole, weights, part, options.dense)?;
        let products = match options.fastest {
            true => PlanOptions::default(),
            false => PlanOptions::default().batch_invariant(),
        };
        let multiplier = Multiplier::new(stream.clone(), products, options.dense)?;

        let kept = memory_bytes(&config, &kernels) + Mixture::memory_bytes(&config);
        let (cache, angles) = room.take(&device, &config, kept)?;
        Ok(Self {
            memory: Memory::new(&device, &config, &kernels)?,
            mixture: Mixture::new(&device, &config, options.fastest)?,
            vocabulary: part.vocabulary(config.vocabulary),
            multiplier,
            plans: HashMap::new(),
            heads: HashMap::new(),
            graphs: HashMap::new(),
            communicator,
            exchange,
            config,
            part,
            stream,
            kernels,
            model,
            cache,
            angles,
        })
    }

    /// Takes memory for other sequences in place of those.
    fn set_room(&mut self, room: Room) -> Result<()> {
        self.stream.synchronize()?;
        self.graphs.clear();
        self.cache.clear();
        (self.cache, self.angles) = room.take(self.stream.device(), &self.config, 0)?;
        self.kernels.set_context(room.context);
        Ok(())
    }

    /// Makes plans before anything is launched that they are for. Where weights are dense, that overwrites what products
    /// put out.
    fn prepare(&mut self, tokens: usize, rows: usize) -> Result<()> {
        if !self.plans.contains_key(&tokens) {
            let plans = self.plans(tokens)?;
            self.plans.insert(tokens, plans);
        }
        let experts = self.model.layers.iter().find_map(Layer::experts);
        if let (Some(mixture), Some(experts)) = (&mut self.mixture, experts) {
            mixture.prepare(experts, tokens, &self.multiplier.options)?;
        }
        if rows > 0 && !self.heads.contains_key(&rows) {
            let head = [(&self.model.head, self.head_operands(rows))];
            // SAFETY: as for layers.
            let plan = unsafe { self.multiplier.plan(&head)? };
            self.heads.insert(rows, plan);
        }
        Ok(())
    }

    fn plans(&self, tokens: usize) -> Result<Plans> {
        let (memory, layers) = (&self.memory, &self.model.layers);
        let measured = if tokens <= MOST_SEQUENCES { 16 } else { 2 };
        let plan = |products: &[&Product], operands: &dyn Fn(&Product) -> RawOperands| {
            let products = products.iter().take(measured);
            let products: Vec<_> = products.map(|&of| (of, operands(of))).collect();
            // SAFETY: as for layers.
            unsafe { self.multiplier.plan(&products) }
        };
        let of_layers = |of: fn(&Layer) -> &Product| -> Vec<_> { layers.iter().map(of).collect() };
        let mlps: Vec<_> = layers.iter().filter_map(Layer::mlp).collect();
        let of_mlps =
            |of: fn(&Mlp) -> &Product| -> Vec<_> { mlps.iter().map(|mlp| of(mlp)).collect() };
        let product = |x: &Buffer<bf16>, y: &Buffer<bf16>| {
            let (x, y) = (x.address(), y.address());
            move |product: &Product| product.operands(x, tokens, y)
        };
        let add = |x: &Buffer<bf16>, turn| {
            let x = x.address();
            move |product: &Product| self.adding(product, x, tokens, turn)
        };
        Ok(Plans {
            qkv: plan(
                &of_layers(|layer| &layer.qkv),
                &product(&memory.x, &memory.qkv),
            )?,
            output: plan(
                &of_layers(|layer| &layer.output),
                &add(&memory.attended, Turn::Attention),
            )?,
            mlp: match mlps.first() {
                Some(mlp) => Some(MlpPlans {
                    gate_up: plan(
                        &of_mlps(|mlp| &mlp.gate_up),
                        &product(&memory.x, &memory.scratch),
                    )?,
                    gated: match &mlp.gate_up {
                        Product {
                            weights: Matrix::Compressed(weights),
                            bias: None,
                            ..
                        } => Some(GatedPlan::new(weights, tokens, &self.multiplier.options)?),
                        _ => None,
                    },
                    down: plan(
                        &of_mlps(|mlp| &mlp.down),
                        &add(&memory.gated, Turn::FeedForward),
                    )?,
                }),
                None => None,
            },
        })
    }

    /// Copies to the device what tells kernels of chunks.
    fn put(&mut self, words: &[u32]) -> Result<()> {
        Ok(self.memory.inputs.copy_from_slice(&self.stream, words)?)
    }

    fn input(&self, part: usize) -> u64 {
        self.memory.inputs.address() + 4 * INPUTS[part] as u64
    }

    fn places(&self) -> Places {
        Places {
            slots: self.input(1),
            positions: self.input(2),
            chunks: self.input(4),
        }
    }

    /// Launches all layers, of them the stages that are wanted.
    fn layers(&self, batch: &Batch, wanted: Wanted) -> Result<()> {
        let (stream, n, memory) = (&self.stream, batch.tokens, &self.memory);
        let plans = &self.plans[&n];
        let (h, x) = (memory.h.address(), memory.x.address());
        // What is gathered has the room of what is gated, which comes later; so has what experts add.
        let scratch = memory.scratch.address();
        // SAFETY: all memory is the executor's, has room for the batch, and lives until the stream has been waited for;
        // kernels that may overlap wait for one another.
        unsafe {
            if wanted.has(Stage::Norm) {
                let embedding = &self.model.embedding;
                embedding.gather_raw(stream.raw(), self.input(0), false, n, scratch)?;
            }
            let mut added = Addend::Start(scratch);
            for (layer, (keys, values)) in self.model.layers.iter().zip(&self.cache) {
                let (qkv, attended) = (memory.qkv.address(), memory.attended.address());
                let (cache, places) = ((keys, values), self.places());
                if wanted.has(Stage::Norm) {
                    let gains = &layer.attention_norm;
                    self.kernels.norm(stream, n, gains, (x, h), added, 0)?;
                }
                if wanted.has(Stage::Qkv) {
                    self.product(&plans.qkv, &layer.qkv, x, n, qkv)?;
                }
                if wanted.has(Stage::Place) {
                    let gains = layer.head_norms.as_ref();
                    self.kernels
                        .place(stream, n, qkv, gains, &self.angles, cache, places)?;
                }
                if wanted.has(Stage::Attend) {
                    let partials = (memory.partials.address(), memory.counters.address());
                    self.kernels.attend(
                        stream,
                        batch.decoding,
                        (batch.chunks, batch.longest),
                        (qkv, attended),
                        cache,
                        layer.window,
                        places,
                        partials,
                    )?;
                }
                if wanted.has(Stage::Output) {
                    self.add(&plans.output, &layer.output, attended, n, Turn::Attention)?;
                }
                if wanted.has(Stage::Norm) {
                    let (gains, added) = (&layer.feed_forward_norm, self.left(n, Turn::Attention)?);
                    self.kernels.norm(stream, n, gains, (x, h), added, 0)?;
                }
                if wanted.has(Stage::FeedForward) {
                    self.feed_forward(plans, &layer.feed_forward, n)?;
                }
                added = self.left_by(&layer.feed_forward, n)?;
            }
        }
        Ok(())
    }

    /// `y = weights x + bias`.
    unsafe fn product(
        &self,
        plan: &ProductPlan,
        product: &Product,
        x: u64,
        n: usize,
        y: u64,
    ) -> std::result::Result<(), GpuError> {
        let operands = product.operands(x, n, y);
        // SAFETY: the caller's promise.
        unsafe { self.multiplier.run(plan, product, &operands) }
    }

    /// `h += weights x + bias`, of all ranks' weights; or the part of that which is [left](Self::left) to be added.
    unsafe fn add(
        &self,
        plan: &ProductPlan,
        product: &Product,
        x: u64,
        n: usize,
        turn: Turn,
    ) -> Result<()> {
        let operands = self.adding(product, x, n, turn);
        let values = n * self.config.hidden;
        // SAFETY: the caller's promise.
        unsafe {
            self.multiplier.run(plan, product, &operands)?;
            match self.exchange(n) {
                Some(_) => Ok(()),
                None => self.reduce(operands.y, values, Reduction::SumF32),
            }
        }
    }

    /// Each rank has all of the state. It leaves its part where the others find it; or the first adds its part to the
    /// state, and the others put theirs in its place.
    fn adding(&self, product: &Product, x: u64, n: usize, turn: Turn) -> RawOperands {
        match self.exchange(n) {
            Some(exchange) => product.operands(x, n, exchange.own(turn)),
            None => RawOperands {
                accumulate: self.part.index == 0,
                ..product.operands(x, n, self.memory.h.address())
            },
        }
    }

    /// What adds up parts of so many tokens' states, unless NCCL does.
    fn exchange(&self, n: usize) -> Option<&Exchange> {
        let exchange = self.exchange.as_ref();
        exchange.filter(|_| n <= Exchange::MOST_TOKENS)
    }

    /// What is still to be added to h after a product that [adds](Self::add).
    fn left(&self, n: usize, turn: Turn) -> Result<Addend> {
        match self.exchange(n) {
            Some(exchange) => Ok(Addend::Parts(exchange.parts(turn)?)),
            None => Ok(Addend::None),
        }
    }

    /// Makes of all ranks' values what each has then.
    unsafe fn reduce(&self, address: u64, count: usize, reduction: Reduction) -> Result<()> {
        match &self.communicator {
            // SAFETY: the caller's promise.
            Some(all) => unsafe { all.reduce(&self.stream, address, count, reduction) },
            None => Ok(()),
        }
    }

    /// Of rows of the whole vocabulary, of which it writes its own entries.
    fn head_operands(&self, rows: usize) -> RawOperands {
        let own = self.memory.logits.address() + 4 * self.vocabulary.start as u64;
        RawOperands {
            y_stride: self.config.vocabulary,
            ..self.model.head.operands(self.memory.x.address(), rows, own)
        }
    }

    /// What follows attention: adds to h, or leaves what is [to be added](Self::left_by).
    unsafe fn feed_forward(&self, plans: &Plans, block: &FeedForward, n: usize) -> Result<()> {
        let memory = &self.memory;
        // SAFETY: the caller's promise.
        unsafe {
            match block {
                FeedForward::Dense(mlp) => {
                    let plans = plans.mlp.as_ref().expect("a layer has it");
                    self.gate(plans, mlp, n)?;
                    let gated = memory.gated.address();
                    self.add(&plans.down, &mlp.down, gated, n, Turn::FeedForward)
                }
                FeedForward::Experts(experts) => {
                    let mixture = self.mixture.as_ref().expect("a layer has it");
                    let launcher = Launcher {
                        stream: &self.stream,
                        kernels: &self.kernels,
                        workspace: &self.multiplier.workspace,
                    };
                    let (x, y) = (memory.x.address(), memory.scratch.address());
                    Ok(mixture.run(launcher, experts, n, (x, y))?)
                }
            }
        }
    }

    /// What is still to be added to h after it.
    fn left_by(&self, block: &FeedForward, n: usize) -> Result<Addend> {
        match block {
            FeedForward::Dense(_) => self.left(n, Turn::FeedForward),
            FeedForward::Experts(_) => Ok(Addend::Block(self.memory.scratch.address())),
        }
    }

    /// `gated = silu(gate x) * up x`.
    unsafe fn gate(
        &self,
        plans: &MlpPlans,
        mlp: &Mlp,
        n: usize,
    ) -> std::result::Result<(), GpuError> {
        let (stream, memory) = (&self.stream, &self.memory);
        let (x, y, scratch) = (
            memory.x.address(),
            memory.gated.address(),
            memory.scratch.address(),
        );
        let product = &mlp.gate_up;
        // SAFETY: the caller's promise.
        unsafe {
            if let (Some(plan), Matrix::Compressed(weights)) = (&plans.gated, &product.weights) {
                let operands = RawGated {
                    x,
                    x_stride: weights.cols(),
                    n,
                    y,
                    scratch,
                };
                let workspace = &self.multiplier.workspace;
                return plan.run_raw(stream.raw(), weights, &operands, workspace);
            }
            self.product(&plans.gate_up, product, x, n, scratch)?;
            let features = self.config.intermediate;
            let pdl = plans.gate_up.is_pdl();
            stream
                .device()
                .gate_raw(stream.raw(), scratch, y, n, features, pdl)
        }
    }

    /// Launches what makes logits of `count` rows, from the `first` wanted one on, of the `n` tokens that went through the
    /// layers last.
    fn logits(&self, n: usize, first: usize, count: usize, wanted: Wanted) -> Result<()> {
        let memory = &self.memory;
        let (h, x) = (memory.h.address(), memory.x.address());
        let rows = self.input(3) + 4 * first as u64;
        let last = self.model.layers.last().expect("there is one");
        let added = self.left_by(&last.feed_forward, n)?;
        // SAFETY: as for layers.
        unsafe {
            if wanted.has(Stage::Norm) {
                self.kernels
                    .norm(&self.stream, count, &self.model.norm, (x, h), added, rows)?;
            }
            if wanted.has(Stage::Head) {
                let operands = self.head_operands(count);
                self.multiplier
                    .run(&self.heads[&count], &self.model.head, &operands)?;
            }
        }
        Ok(())
    }

    /// Launches a step of tokens that come alone, to the next token of each, or of it the stages that are wanted.
    fn choose_next(&self, batch: &Batch, passes: Passes, wanted: Wanted) -> Result<()> {
        let (memory, sequences) = (&self.memory, batch.tokens);
        self.layers(batch, wanted)?;
        self.logits(sequences, 0, sequences, wanted)?;
        if !wanted.has(Stage::Choose) {
            return Ok(());
        }
        let largest = LargestArgs {
            logits: memory.logits.address() as *const f32,
            keys: memory.keys.address() as *mut u64,
            vocabulary: self.config.vocabulary as u32,
        };
        let advance = AdvanceArgs {
            keys: memory.keys.address() as *mut u64,
            tokens: self.input(0) as *mut u32,
            positions: self.input(2) as *mut u32,
            output: memory.chosen.address() as *mut u32,
            step: memory.step.address() as *mut u32,
            sequences: sequences as u32,
            steps: MOST_STEPS as u32,
        };
        // SAFETY: as for layers.
        unsafe {
            self.kernels.largest(&self.stream, sequences, largest)?;
            self.reduce(memory.keys.address(), sequences, Reduction::MaxU64)?;
            for pass in passes.wanted() {
                let args = self.sample_args(sequences, pass);
                self.kernels.sample(&self.stream, sequences, args)?;
            }
            self.kernels.advance(&self.stream, advance)?;
        }
        Ok(())
    }
}

/// What kernels are told of sequences that sample: their settings, then a row of random numbers for each step.
fn sampling_words(settings: &[Settings], random: impl Iterator<Item = u64>) -> Vec<u64> {
    let words = settings.iter().flat_map(|settings| {
        let [a, b, c, d] = settings.words().map(u64::from);
        [b << 32 | a, d << 32 | c]
    });
    let mut words: Vec<_> = words.collect();
    words.resize(SETTINGS, 0);
    words.extend(random);
    words
}

impl Rank {
    fn sample_args(&self, sequences: usize, pass: Pass) -> sample::Args {
        let memory = &self.memory;
        let settings = memory.sampling.address();
        sample::Args {
            logits: memory.logits.address() as *const f32,
            keys: memory.keys.address() as *mut u64,
            states: memory.states.address() as *mut State,
            settings: settings as *const Settings,
            random: (settings + 8 * SETTINGS as u64) as *const u64,
            step: memory.step.address() as *const u32,
            vocabulary: self.config.vocabulary as u32,
            sequences: sequences as u32,
            steps: MOST_STEPS as u32,
            pass,
        }
    }

    /// Before steps to the next token, with [words](sampling_words) for those that sample.
    fn restart(&mut self, sampling: &[u64]) -> Result<()> {
        let Memory {
            step, sampling: to, ..
        } = &mut self.memory;
        to.slice_mut(..sampling.len())
            .copy_from_slice(&self.stream, sampling)?;
        Ok(step.copy_from_slice(&self.stream, &[0])?)
    }

    /// Launches such steps, which have been recorded, so many times.
    fn replay(&mut self, steps: Steps, times: usize) -> Result<()> {
        let graph = self.graphs.get(&steps);
        let graph = graph.expect("it has been recorded");
        for _ in 0..times {
            // SAFETY: all that it uses is this rank's, and lives until the output has been read.
            unsafe { graph.replay()? };
        }
        Ok(())
    }

    /// The tokens of all steps since the start.
    fn chosen(&mut self, tokens: usize) -> Result<Vec<u32>> {
        Ok(self.memory.chosen.slice(..tokens).to_vec(&self.stream)?)
    }

    /// Rows of logits, when the layers have run for `n` tokens: those of its part of the vocabulary are the model's.
    fn read_logits(&mut self, n: usize, wanted: usize) -> Result<Vec<f32>> {
        let mut rows = Vec::with_capacity(wanted * self.config.vocabulary);
        for first in (0..wanted).step_by(MOST_LOGITS) {
            let count = (wanted - first).min(MOST_LOGITS);
            self.logits(n, first, count, Wanted::ALL)?;
            let values = self.memory.logits.slice(..count * self.config.vocabulary);
            rows.extend(values.to_vec(&self.stream)?);
        }
        // Also where no logits are wanted: what is copied next must not be ahead of the kernels, nor a rank that leaves
        // parts ahead of one that still reads older ones.
        self.stream.synchronize()?;
        Ok(rows)
    }

    /// Seconds of a stage alone in a step, the mean of several steps. What it works on is not what a model has there.
    fn time(&mut self, batch: &Batch, passes: Passes, stage: Stage) -> Result<f64> {
        const STEPS: u32 = 20;
        let wanted = Wanted(Some(stage));
        let graph = Graph::record(&self.stream, || self.choose_next(batch, passes, wanted))?;
        let mut start = Instant::now();
        for step in 0..=STEPS {
            // SAFETY: all that it uses is this rank's, and lives until it has run.
            unsafe { graph.replay()? };
            if step == 0 {
                self.stream.synchronize()?;
                start = Instant::now();
            }
        }
        self.stream.synchronize()?;
        Ok(start.elapsed().as_secs_f64() / f64::from(STEPS))
    }

    /// Bytes of weights, keys and values that a stage of a step reads, of sequences of so many tokens; nothing where that
    /// depends on the tokens, or is little.
    fn bytes(&self, stage: Stage, sequences: usize, context: usize) -> Option<u64> {
        let layers = &self.model.layers;
        let weights = |of: fn(&Layer) -> &Product| -> usize {
            let products = layers.iter().map(of);
            products.map(|product| product.weights.bytes()).sum()
        };
        let mlps = || layers.iter().map(Layer::mlp);
        Some(match stage {
            Stage::Norm | Stage::Place | Stage::Choose => return None,
            Stage::Qkv => weights(|layer| &layer.qkv) as u64,
            Stage::Attend => {
                memory::keys_and_values(&self.config, sequences as u64, context as u64, 2)
            }
            Stage::Output => weights(|layer| &layer.output) as u64,
            Stage::FeedForward => mlps()
                .map(|mlp| mlp.map(|mlp| mlp.gate_up.weights.bytes() + mlp.down.weights.bytes()))
                .sum::<Option<usize>>()? as u64,
            Stage::Head => self.model.head.weights.bytes() as u64,
        })
    }

    /// Lets go of what other ranks do together.
    fn abort(&mut self) {
        self.graphs.clear();
        if let Some(communicator) = &mut self.communicator {
            communicator.abort();
        }
    }
}

/// Cosines and sines, position after position.
fn angles(device: &Device, config: &Config, context: usize) -> Result<Buffer<f32>> {
    let frequencies = config.rope.frequencies(config.head_dim);
    let mut angles = Vec::with_capacity(2 * context * frequencies.len());
    for position in 0..context {
        for &frequency in &frequencies {
            let (sin, cos) = (position as f32 * frequency).sin_cos();
            angles.extend([cos, sin]);
        }
    }
    Ok(Buffer::from_slice(device, &angles)?)
}

/// Elements of what goes from kernel to kernel, in the order of [`Memory`], from the state on.
fn sizes(config: &Config) -> [usize; 7] {
    let width = config.heads * config.head_dim;
    let qkv = width + 2 * config.kv_width();
    let experts = config.experts.as_ref();
    let is_dense_somewhere = experts.is_none_or(|experts| experts.layers.contains(&false));
    let inner = if is_dense_somewhere {
        config.intermediate
    } else {
        0
    };
    // Gathered embeddings use it too, and what experts add.
    let scratch = (2 * inner).max(config.hidden);
    let logits = MOST_LOGITS * config.vocabulary;
    let rows = [config.hidden, config.hidden, qkv, width, inner, scratch];
    let [h, x, qkv, attended, gated, scratch] = rows.map(|row| MOST_TOKENS * row);
    [h, x, qkv, attended, gated, scratch, logits]
}

/// Bytes of all memory but weights, keys and values.
fn memory_bytes(config: &Config, kernels: &Kernels) -> u64 {
    let [h, rest @ .., logits] = sizes(config);
    let (partials, counters) = kernels.scratch(MOST_SEQUENCES);
    let words = h + logits + partials + counters + INPUT_WORDS;
    (4 * words + 2 * rest.iter().sum::<usize>()) as u64 + (64 << 20)
}

impl Memory {
    fn new(device: &Device, config: &Config, kernels: &Kernels) -> Result<Self> {
        let [h, x, qkv, attended, gated, scratch, logits] = sizes(config);
        let (partials, counters) = kernels.scratch(MOST_SEQUENCES);
        Ok(Self {
            inputs: Buffer::zeroed(device, INPUT_WORDS)?,
            h: Buffer::zeroed(device, h)?,
            x: Buffer::zeroed(device, x)?,
            qkv: Buffer::zeroed(device, qkv)?,
            attended: Buffer::zeroed(device, attended)?,
            gated: Buffer::zeroed(device, gated)?,
            scratch: Buffer::zeroed(device, scratch)?,
            // What other ranks make stays so, which is never the largest.
            logits: Buffer::from_slice(device, &vec![f32::NAN; logits])?,
            partials: Buffer::zeroed(device, partials)?,
            counters: Buffer::zeroed(device, counters)?,
            keys: Buffer::zeroed(device, MOST_SEQUENCES)?,
            states: Buffer::zeroed(device, size_of::<State>() / 4 * MOST_SEQUENCES)?,
            sampling: Buffer::zeroed(device, SETTINGS + MOST_STEPS * MOST_SEQUENCES)?,
            step: Buffer::zeroed(device, 1)?,
            chosen: Buffer::zeroed(device, MOST_STEPS * MOST_SEQUENCES)?,
        })
    }
}
