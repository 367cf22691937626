//! The kernels between products, as launches with types.

use half::bf16;
use zipserv::gpu::{Buffer, CustomKernels, Device, Family, GpuError, Stream};
use zipserv_engine_kernels::{
    Chunk, KERNELS, attend,
    choose::{self, AdvanceArgs, LargestArgs},
    experts,
    norm::{self, MOST_FEATURES},
    norm_parts, norm_wide, place, ptx, sample,
    sampling::MOST_TOKENS,
};

use super::exchange::Parts;
use crate::Config;

/// Addresses of what tells an executor's kernels where tokens are.
#[derive(Clone, Copy)]
pub struct Places {
    /// The place of each token's sequence.
    pub slots: u64,
    /// Its position in it.
    pub positions: u64,
    /// Tokens of prompts.
    pub chunks: u64,
}

/// What is added to states before they are normed.
#[derive(Clone, Copy)]
pub enum Addend {
    /// Rows of BF16 at an address, to what is not there yet: states start as this.
    Start(u64),
    /// Such rows, to what is there.
    Block(u64),
    /// What each device has for all, to what is there.
    Parts(Parts),
    /// Nothing.
    None,
}

/// A layer's keys or values of all sequences.
pub type Cache = Buffer<bf16>;

/// Keys and values of all layers.
pub type Caches = Vec<(Cache, Cache)>;

/// What the kernels of a model have in common.
pub struct Kernels {
    kernels: CustomKernels,
    heads: u32,
    kv_heads: u32,
    features: u32,
    hidden: u32,
    epsilon: f32,
    context: u32,
    /// Splits of keys for decoding, at most.
    splits: u32,
    /// Blocks of decoding that run at a time, where a sequence's bits may depend on its batch. Else all batches have the
    /// same splits.
    resident: Option<u32>,
    /// The kernel for prompts.
    prompt: &'static str,
    /// Rows of queries of its blocks.
    prompt_rows: u32,
}

impl Kernels {
    /// Those of a model, for sequences of up to `context` tokens; nothing if there are none for its sizes.
    pub fn new(
        device: &Device,
        config: &Config,
        context: usize,
        fastest: bool,
    ) -> Result<Self, String> {
        let Config {
            heads,
            kv_heads,
            head_dim,
            hidden,
            ..
        } = *config;
        let fits = |so: bool, why: &str| {
            if so {
                Ok(())
            } else {
                Err(format!("{why} do not run on a GPU"))
            }
        };
        fits(
            [64, 128].contains(&head_dim),
            &format!("heads of {head_dim}"),
        )?;
        fits(
            heads / kv_heads <= attend::ROWS,
            &format!("{heads} heads on {kv_heads}"),
        )?;
        let is_wide = !hidden.is_multiple_of(8) || hidden > MOST_FEATURES;
        fits(!is_wide, &format!("states of {hidden}"))?;
        let vocabulary = config.vocabulary;
        fits(
            vocabulary <= MOST_TOKENS,
            &format!("vocabularies of {vocabulary}"),
        )?;
        if let Some(mixture) = &config.experts {
            let (count, per_token) = (mixture.count, mixture.per_token);
            fits(count <= experts::MOST, &format!("{count} experts"))?;
            fits(
                per_token <= experts::MOST_PER_TOKEN,
                &format!("{per_token} experts a token"),
            )?;
            let inner = mixture.intermediate;
            fits(
                inner.is_multiple_of(experts::ROWS),
                &format!("experts of {inner}, no multiple of {},", experts::ROWS),
            )?;
        }
        let (text, prompts, prompt_rows) = match device.family() {
            Family::Hopper => {
                use attend::prompt::{LAUNCH_64, LAUNCH_128, ROWS};
                (ptx::SM_90A, [LAUNCH_64, LAUNCH_128], ROWS)
            }
            _ => {
                let launches = [attend::PREFILL_64, attend::PREFILL_128];
                (ptx::SM_80, launches, attend::ROWS * attend::WARPS)
            }
        };
        Ok(Self {
            kernels: CustomKernels::new(device, text, KERNELS),
            heads: heads as u32,
            kv_heads: kv_heads as u32,
            features: head_dim as u32,
            hidden: hidden as u32,
            epsilon: config.norm_eps,
            context: context as u32,
            splits: device
                .sms()
                .div_ceil(kv_heads as u32)
                .min(attend::MOST_SPLITS),
            resident: fastest.then(|| device.sms() * attend::DECODE_128.min_blocks as u32),
            prompt: prompts[usize::from(head_dim == 128)].name,
            prompt_rows: prompt_rows as u32,
        })
    }

    /// For sequences of up to so many tokens from now on.
    pub fn set_context(&mut self, context: usize) {
        self.context = context as u32;
    }

    /// Whether small kernels are the wide ones for so many tokens, where bits may depend on that.
    fn is_wide(&self, tokens: usize) -> bool {
        self.resident.is_some() && norm_wide::suits(tokens)
    }

    /// Splits of keys for so many tokens that decode. One alone has the most in either case.
    fn splits(&self, tokens: u32) -> u32 {
        match self.resident {
            Some(resident) => {
                let each = resident / (tokens * self.kv_heads).max(1);
                each.clamp(1, self.splits)
            }
            None => self.splits,
        }
    }

    /// FP32 of partial results, and counters, for so many tokens that decode.
    pub fn scratch(&self, tokens: usize) -> (usize, usize) {
        let heads = tokens * self.kv_heads as usize;
        let words = attend::partial_words(self.features as usize);
        (heads * self.splits as usize * words, heads)
    }

    /// `h += added`, then `x = norm(h) * gains` of `n` rows. Rows of h, and of what is added, are `rows`, or the same.
    ///
    /// # Safety
    /// As [`CustomKernels::launch_dependent`], of all addresses. Parts are those of the product that was launched last.
    pub unsafe fn norm(
        &self,
        stream: &Stream,
        n: usize,
        gains: &Buffer<bf16>,
        (x, h): (u64, u64),
        added: Addend,
        rows: u64,
    ) -> Result<(), GpuError> {
        let (starts, address) = match added {
            Addend::Start(added) => (true, added),
            Addend::Block(added) => (false, added),
            Addend::Parts(_) | Addend::None => (false, 0),
        };
        let args = norm::Args {
            x: x as *mut u16,
            h: h as *mut f32,
            added: address as *const u16,
            gains: gains.address() as *const u16,
            rows: rows as *const u32,
            starts,
            features: self.hidden,
            epsilon: self.epsilon,
        };
        let (features, blocks) = (self.hidden as usize, n as u32);
        // SAFETY: the caller's promise.
        unsafe {
            if let Addend::Parts(parts) = added {
                let name = norm_parts::LAUNCH.name;
                let shared = norm_parts::shared_bytes(features, parts.ranks);
                let args = norm_parts::Args {
                    norm: args,
                    ranks: parts.peers as *const norm_parts::Peer,
                    counts: parts.counts as *mut u32,
                    aborted: parts.aborted as *const u32,
                    count: parts.ranks as u32,
                    rank: parts.rank as u32,
                    fours: norm_parts::fours_at_a_time(features, parts.ranks) as u32,
                };
                return self
                    .kernels
                    .launch_dependent_with(stream, name, blocks, shared, args);
            }
            if self.is_wide(n) {
                let name = norm_wide::LAUNCH.name;
                return self.kernels.launch_dependent(stream, name, blocks, args);
            }
            let shared = norm::shared_bytes(features);
            self.kernels
                .launch_dependent_with(stream, norm::LAUNCH.name, blocks, shared, args)
        }
    }

    /// Queries where they were, keys and values into the cache, of `n` tokens.
    ///
    /// # Safety
    /// As [`norm`](Self::norm).
    #[expect(clippy::too_many_arguments, reason = "each is another operand")]
    pub unsafe fn place(
        &self,
        stream: &Stream,
        n: usize,
        qkv: u64,
        gains: Option<&[Buffer<bf16>; 2]>,
        angles: &Buffer<f32>,
        (keys, values): (&Cache, &Cache),
        places: Places,
    ) -> Result<(), GpuError> {
        let gains = gains.map_or([0; 2], |gains| [gains[0].address(), gains[1].address()]);
        let args = place::Args {
            qkv: qkv as *mut u16,
            keys: keys.address() as *mut u16,
            values: values.address() as *mut u16,
            q_gains: gains[0] as *const u16,
            k_gains: gains[1] as *const u16,
            angles: angles.address() as *const [f32; 2],
            slots: places.slots as *const u32,
            positions: places.positions as *const u32,
            heads: self.heads,
            kv_heads: self.kv_heads,
            features: self.features,
            context: self.context,
            epsilon: self.epsilon,
        };
        let heads = self.heads + 2 * self.kv_heads;
        let (name, each) = match self.is_wide(n) {
            true => (place::WIDE.name, place::WIDE_HEADS),
            false => (place::LAUNCH.name, place::HEADS),
        };
        let blocks = n as u32 * heads.div_ceil(each as u32);
        // SAFETY: the caller's promise.
        unsafe { self.kernels.launch_dependent(stream, name, blocks, args) }
    }

    /// Attention of the first `decoding` tokens, each the last of its sequence, and of chunks of prompts, of which the
    /// longest has `longest` tokens.
    ///
    /// # Safety
    /// As [`norm`](Self::norm).
    #[expect(clippy::too_many_arguments, reason = "each is another operand")]
    pub unsafe fn attend(
        &self,
        stream: &Stream,
        decoding: usize,
        (chunks, longest): (usize, usize),
        (q, y): (u64, u64),
        (keys, values): (&Cache, &Cache),
        window: Option<usize>,
        places: Places,
        (partials, counters): (u64, u64),
    ) -> Result<(), GpuError> {
        let args = attend::Args {
            q: q as *const u16,
            y: y as *mut u16,
            keys: keys.address() as *const u16,
            values: values.address() as *const u16,
            slots: places.slots as *const u32,
            positions: places.positions as *const u32,
            chunks: places.chunks as *const Chunk,
            partials: partials as *mut f32,
            counters: counters as *mut u32,
            q_stride: (self.heads + 2 * self.kv_heads) * self.features,
            heads: self.heads,
            kv_heads: self.kv_heads,
            context: self.context,
            window: window.unwrap_or(0) as u32,
            splits: self.splits(decoding as u32),
            scale: std::f32::consts::LOG2_E / (self.features as f32).sqrt(),
        };
        if decoding > 0 {
            let name = match self.features {
                64 => attend::DECODE_64.name,
                _ => attend::DECODE_128.name,
            };
            let blocks = decoding as u32 * self.kv_heads * args.splits;
            // SAFETY: the caller's promise.
            unsafe { self.kernels.launch_dependent(stream, name, blocks, args)? };
        }
        if chunks > 0 {
            let rows = longest as u32 * (self.heads / self.kv_heads);
            let splits = rows.div_ceil(self.prompt_rows);
            let blocks = chunks as u32 * self.kv_heads * splits;
            // SAFETY: as above.
            unsafe {
                let args = attend::Args { splits, ..args };
                self.kernels
                    .launch_dependent(stream, self.prompt, blocks, args)?;
            }
        }
        Ok(())
    }

    /// The experts of each of `n` tokens.
    ///
    /// # Safety
    /// As [`norm`](Self::norm).
    pub unsafe fn choose_experts(
        &self,
        stream: &Stream,
        n: usize,
        args: experts::Args,
    ) -> Result<(), GpuError> {
        // SAFETY: the caller's promise.
        unsafe {
            self.kernels
                .launch_dependent(stream, experts::LAUNCH.name, n as u32, args)
        }
    }

    /// The largest logit of each of `n` rows.
    ///
    /// # Safety
    /// As [`norm`](Self::norm).
    pub unsafe fn largest(
        &self,
        stream: &Stream,
        n: usize,
        args: LargestArgs,
    ) -> Result<(), GpuError> {
        let blocks = (n * choose::BLOCKS) as u32;
        // SAFETY: the caller's promise.
        unsafe {
            self.kernels
                .launch_dependent(stream, choose::LARGEST.name, blocks, args)
        }
    }

    /// A pass of sampling over `n` rows, after [`largest`](Self::largest).
    ///
    /// # Safety
    /// As [`norm`](Self::norm).
    pub unsafe fn sample(
        &self,
        stream: &Stream,
        n: usize,
        args: sample::Args,
    ) -> Result<(), GpuError> {
        let blocks = (n * sample::BLOCKS) as u32;
        for kernel in [sample::TALLY, sample::SETTLE] {
            // SAFETY: the caller's promise.
            unsafe {
                self.kernels
                    .launch_dependent(stream, kernel.name, blocks, args)?;
            }
        }
        Ok(())
    }

    /// The step to the token of the key of each row.
    ///
    /// # Safety
    /// As [`norm`](Self::norm).
    pub unsafe fn advance(&self, stream: &Stream, args: AdvanceArgs) -> Result<(), GpuError> {
        // SAFETY: the caller's promise.
        unsafe {
            self.kernels
                .launch_dependent(stream, choose::ADVANCE.name, 1, args)
        }
    }
}
