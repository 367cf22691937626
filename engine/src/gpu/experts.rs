//! Mixtures of experts: a router's product, the choice of each token's experts, products of tokens by the matrices of
//! theirs, and the sum of what becomes of them. The device alone knows which experts are chosen, so nothing waits for
//! the host, and a recording has all of it.
//!
//! ```text
//! x --product--> logits --choose_experts--> experts, weights --route--> order
//! x, order --grouped product, gated--> inside --grouped product--> parts, FP32 --combine, with weights--> y
//! ```

use std::collections::HashMap;

use half::bf16;
use zipserv::gpu::{
    Buffer, Device, GpuError, GroupedPlan, OutputType, Plan, PlanOptions, RawExperts, RawGrouped,
    RawOperands, RawRouting, Stream, Workspace,
};
use zipserv_engine_kernels::experts::Args;

use super::{MOST_TOKENS, kernels::Kernels, weights::Experts};
use crate::{Config, Result};

/// Assignments of tokens to experts that are worked on at a time: they set the memory between products.
const MOST_ASSIGNMENTS: usize = 1 << 14;

/// How layers of a mixture run, and the memory that they have in common.
pub struct Mixture {
    sizes: Sizes,
    is_batch_invariant: bool,
    memory: Memory,
    plans: HashMap<usize, Plans>,
}

/// Of a layer.
#[derive(Clone, Copy)]
struct Sizes {
    experts: usize,
    per_token: usize,
    normalized: bool,
    hidden: usize,
    inner: usize,
    /// Tokens that are worked on at a time.
    tokens: usize,
}

/// What goes from kernel to kernel.
struct Memory {
    logits: Buffer<f32>,
    experts: Buffer<u32>,
    weights: Buffer<f32>,
    routing: Buffer<u8>,
    inside: Buffer<bf16>,
    parts: Buffer<f32>,
    scratch: Buffer<u8>,
}

/// How so many tokens are worked on, in any layer.
struct Plans {
    router: Plan,
    gate_up: GroupedPlan,
    down: GroupedPlan,
}

/// What launches need besides their operands.
#[derive(Clone, Copy)]
pub struct Launcher<'a> {
    pub stream: &'a Stream,
    pub kernels: &'a Kernels,
    pub workspace: &'a Workspace,
}

impl Sizes {
    /// Nothing if no layer has experts.
    fn new(config: &Config) -> Option<Self> {
        let experts = config.experts.as_ref()?;
        experts.layers.contains(&true).then(|| Self {
            experts: experts.count,
            per_token: experts.per_token,
            normalized: experts.normalized,
            hidden: config.hidden,
            inner: experts.intermediate,
            tokens: (MOST_ASSIGNMENTS / experts.per_token).clamp(1, MOST_TOKENS),
        })
    }

    /// Of so many tokens, in the memory at `address`, or as `unsorted` has it.
    fn routing(
        &self,
        address: u64,
        unsorted: Option<RawExperts>,
        tokens: usize,
        group_tokens: usize,
    ) -> RawRouting {
        RawRouting {
            address,
            unsorted,
            tokens,
            top_k: self.per_token,
            experts: self.experts,
            group_tokens,
        }
    }

    /// Elements of FP32 and words: of logits, of experts and as many weights, of parts.
    fn words(&self) -> [usize; 3] {
        let assignments = self.tokens * self.per_token;
        let logits = self.tokens * self.experts;
        [logits, assignments, assignments * self.hidden]
    }

    fn inside(&self) -> usize {
        self.tokens * self.per_token * self.inner
    }

    /// Bytes of routing, as if each token had a group to itself.
    fn routing_bytes(&self) -> usize {
        self.routing(0, None, self.tokens, 1).bytes()
    }

    /// Bytes of a grouped product's scratch memory: activations in the order of experts, and products that are not
    /// gated yet.
    fn scratch_bytes(&self) -> usize {
        2 * self.tokens * self.per_token * (self.hidden + 2 * self.inner)
    }
}

impl Mixture {
    /// Bytes of the memory that [`new`](Self::new) takes.
    pub fn memory_bytes(config: &Config) -> u64 {
        let Some(sizes) = Sizes::new(config) else {
            return 0;
        };
        let [logits, assignments, parts] = sizes.words();
        let words = logits + 2 * assignments + parts;
        let bytes = sizes.routing_bytes() + sizes.scratch_bytes();
        (4 * words + 2 * sizes.inside() + bytes) as u64
    }

    /// Takes memory for the experts of a model, if it has some.
    pub fn new(device: &Device, config: &Config, fastest: bool) -> Result<Option<Self>> {
        let Some(sizes) = Sizes::new(config) else {
            return Ok(None);
        };
        let [logits, assignments, parts] = sizes.words();
        Ok(Some(Self {
            sizes,
            is_batch_invariant: !fastest,
            memory: Memory {
                logits: Buffer::zeroed(device, logits)?,
                experts: Buffer::zeroed(device, assignments)?,
                weights: Buffer::zeroed(device, assignments)?,
                routing: Buffer::zeroed(device, sizes.routing_bytes())?,
                inside: Buffer::zeroed(device, sizes.inside())?,
                parts: Buffer::zeroed(device, parts)?,
                scratch: Buffer::zeroed(device, sizes.scratch_bytes())?,
            },
            plans: HashMap::new(),
        }))
    }

    /// Makes plans for `tokens` tokens, with the weights of any of the layers, before anything is launched.
    pub fn prepare(
        &mut self,
        weights: &Experts,
        tokens: usize,
        options: &PlanOptions,
    ) -> Result<()> {
        for tokens in [tokens.min(self.sizes.tokens), tokens % self.sizes.tokens] {
            if tokens > 0 && !self.plans.contains_key(&tokens) {
                let plans = self.plans(weights, tokens, options)?;
                self.plans.insert(tokens, plans);
            }
        }
        Ok(())
    }

    fn plans(&self, weights: &Experts, tokens: usize, options: &PlanOptions) -> Result<Plans> {
        let Sizes {
            experts,
            per_token,
            hidden,
            inner,
            ..
        } = self.sizes;
        let grouped = |weights, rows| match self.is_batch_invariant {
            true => GroupedPlan::batch_invariant(weights, experts, rows),
            false => GroupedPlan::new(weights, experts, rows, tokens * per_token),
        };
        let plans = Plans {
            router: Plan::new(&weights.router, tokens, options)?,
            gate_up: grouped(&weights.gate_up, 2 * inner)?,
            down: grouped(&weights.down, hidden)?,
        };
        let routing = self.routing(&plans, tokens);
        let [gate_up, down] = self.operands(0);
        let bytes = [
            plans.gate_up.scratch_bytes(&gate_up, &routing),
            plans.down.scratch_bytes(&down, &routing),
        ];
        let room = self.memory.scratch.len();
        assert!(bytes.iter().all(|&bytes| bytes <= room), "{bytes:?} {room}");
        Ok(plans)
    }

    /// Where so many tokens go.
    fn routing(&self, plans: &Plans, tokens: usize) -> RawRouting {
        let (address, experts) = (self.memory.routing.address(), self.chosen());
        let unsorted = plans.gate_up.takes_unsorted(tokens).then_some(experts);
        let group_tokens = plans.gate_up.group_tokens();
        self.sizes.routing(address, unsorted, tokens, group_tokens)
    }

    /// What `choose_experts` leaves.
    fn chosen(&self) -> RawExperts {
        RawExperts {
            address: self.memory.experts.address(),
            is_64_bit: false,
        }
    }

    /// Of the two grouped products of `x`, which follow one another.
    fn operands(&self, x: u64) -> [RawGrouped; 2] {
        let (sizes, memory) = (&self.sizes, &self.memory);
        let gate_up = RawGrouped {
            x,
            x_stride: sizes.hidden,
            x_by_expert: false,
            y: memory.inside.address(),
            y_stride: sizes.inner,
            output: OutputType::Bf16,
            is_gated: true,
            follows_routing: true,
            scratch: memory.scratch.address(),
        };
        let down = RawGrouped {
            x: memory.inside.address(),
            x_stride: sizes.inner,
            x_by_expert: true,
            y: memory.parts.address(),
            y_stride: sizes.hidden,
            output: OutputType::F32,
            is_gated: false,
            follows_routing: false,
            ..gate_up
        };
        [gate_up, down]
    }

    /// `y = sum of weight * down(silu(gate x) * up x)` over the experts of each of `n` tokens, rounded once, to BF16.
    ///
    /// # Safety
    /// As [`Kernels::norm`], of `n` rows of the model's state at `x` and `y`, BF16 and aligned to 16 bytes. Plans are
    /// [prepared](Self::prepare).
    pub unsafe fn run(
        &self,
        launcher: Launcher,
        weights: &Experts,
        n: usize,
        (x, y): (u64, u64),
    ) -> std::result::Result<(), GpuError> {
        for first in (0..n).step_by(self.sizes.tokens) {
            let tokens = (n - first).min(self.sizes.tokens);
            let from = (2 * first * self.sizes.hidden) as u64;
            // SAFETY: the caller's promise, for some of the tokens; launches follow one another.
            unsafe { self.some(launcher, weights, tokens, (x + from, y + from))? };
        }
        Ok(())
    }

    /// The same, of as many tokens as there is memory for.
    unsafe fn some(
        &self,
        launcher: Launcher,
        weights: &Experts,
        tokens: usize,
        (x, y): (u64, u64),
    ) -> std::result::Result<(), GpuError> {
        let Launcher {
            stream,
            kernels,
            workspace,
        } = launcher;
        let (memory, sizes, plans) = (&self.memory, &self.sizes, &self.plans[&tokens]);
        let (device, raw) = (stream.device(), stream.raw());
        let router = RawOperands {
            output: OutputType::F32,
            ..RawOperands::new(&weights.router, x, tokens, memory.logits.address())
        };
        let choice = Args {
            logits: memory.logits.address() as *const f32,
            experts: memory.experts.address() as *mut u32,
            weights: memory.weights.address() as *mut f32,
            count: sizes.experts as u32,
            per_token: sizes.per_token as u32,
            normalized: sizes.normalized,
        };
        let routing = self.routing(plans, tokens);
        let [gate_up, down] = self.operands(x);
        let (parts, shares) = (memory.parts.address(), memory.weights.address());
        // SAFETY: the caller's promise; memory has room for so many tokens, and kernels that may overlap wait for one
        // another: what the grouped products find of the routing, all of them find once it has ended.
        unsafe {
            plans
                .router
                .run_raw(raw, &weights.router, &router, workspace)?;
            kernels.choose_experts(stream, tokens, choice)?;
            if routing.unsorted.is_none() {
                device.route_raw(raw, self.chosen(), &routing)?;
            }
            plans
                .gate_up
                .run_raw(raw, &weights.gate_up, &gate_up, &routing, workspace)?;
            plans
                .down
                .run_raw(raw, &weights.down, &down, &routing, workspace)?;
            device.combine_raw(raw, parts, shares, y, sizes.hidden, &routing)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn memory_is_that_of_as_many_assignments_as_are_worked_on_at_a_time() {
        let config = |per_token: usize, dense: &str| {
            let json = format!(
                r#"{{"architectures": ["Qwen3MoeForCausalLM"], "vocab_size": 61, "hidden_size": 2048,
                "intermediate_size": 6144, "num_hidden_layers": 1, "num_attention_heads": 32,
                "max_position_embeddings": 4096, "num_experts": 128, "num_experts_per_tok": {per_token},
                "moe_intermediate_size": 768, "mlp_only_layers": [{dense}]}}"#
            );
            Config::parse(Path::new("config.json"), &json).unwrap()
        };
        // 16384 rows of activations and products, in BF16 and FP32, and little more.
        let rows = 16_384 * (2 * 768 + 4 * 2048 + 2 * 2048 + 4 * 768);
        for (per_token, tokens) in [(1, 2048), (8, 2048), (32, 512), (100, 163)] {
            let config = config(per_token, "");
            let sizes = Sizes::new(&config).unwrap();
            assert_eq!(sizes.tokens, tokens);
            let bytes = Mixture::memory_bytes(&config);
            assert!(bytes < rows + (2 << 20));
            assert!(per_token < 8 || bytes > rows / 100 * 99);
        }
        assert_eq!(Mixture::memory_bytes(&config(8, "0")), 0);
    }
}
