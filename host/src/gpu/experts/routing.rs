use half::bf16;
use zipserv_gpu::{
    args::{CombineArgs, ExpertsOf, Group, NOWHERE, RouteArgs},
    launch::{COMBINE_FEATURES, MAX_EXPERTS, ROUTE_THREADS},
};

use crate::gpu::{
    buffer::{Buffer, View, ViewMut, check_len, same_context},
    device::Device,
    driver::RawStream,
    error::{GpuError, Need, Operand},
    family::Family,
    operands::check_aligned,
    stream::Stream,
};

/// Numbers of the experts of each token, token after token, as a router leaves them. Those of no expert are left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RawExperts {
    /// Address of device memory, aligned to a number's size.
    pub address: u64,
    /// Whether numbers have 64 bits, not 32, with a sign.
    pub is_64_bit: bool,
}

/// Where tokens go, and how many there are: in memory that [`Device::route_raw`] fills, or as the router leaves it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RawRouting {
    /// Address of [`bytes`](Self::bytes) of device memory, aligned to 16.
    pub address: u64,
    /// The experts of a single token, if a plan [takes](super::GroupedPlan::takes_unsorted) them unsorted: nothing is
    /// routed then, and no memory is needed. Places in the order of experts are those of assignments.
    pub unsorted: Option<RawExperts>,
    /// Tokens.
    pub tokens: usize,
    /// Experts of a token.
    pub top_k: usize,
    /// Experts of the layer.
    pub experts: usize,
    /// Tokens that are multiplied at once, [`GroupedPlan::group_tokens`](super::GroupedPlan::group_tokens).
    pub group_tokens: usize,
}

/// Blocks of `route`, each of which counts all assignments.
const ROUTE_BLOCKS: usize = 64;
/// The numbers of groups and of assignments that have an expert have so many bytes to themselves.
const COUNT_BYTES: usize = 16;

impl RawRouting {
    /// Assignments of tokens to experts.
    pub fn assignments(&self) -> usize {
        self.tokens.saturating_mul(self.top_k)
    }

    /// Groups, at most: each expert has one that is not full.
    pub(super) fn groups(&self) -> usize {
        let assignments = self.assignments();
        let full = assignments.checked_div(self.group_tokens).unwrap_or(0);
        full + assignments.min(self.experts)
    }

    /// Bytes of device memory.
    pub fn bytes(&self) -> usize {
        if self.unsorted.is_some() {
            return 0;
        }
        COUNT_BYTES + size_of::<Group>() * self.groups() + 8 * self.assignments()
    }

    pub(super) fn group_count(&self) -> u64 {
        self.address
    }

    /// Where the number of assignments that have an expert is.
    pub(super) fn routed(&self) -> u64 {
        self.address + 4
    }

    pub(super) fn groups_at(&self) -> u64 {
        self.address + COUNT_BYTES as u64
    }

    pub(super) fn rows(&self) -> u64 {
        self.groups_at() + (size_of::<Group>() * self.groups()) as u64
    }

    /// Address of the places of assignments in the order of experts, 32 bits each: the rows of their outputs. All bits
    /// are set where an assignment is left out.
    pub fn places(&self) -> u64 {
        self.rows() + 4 * self.assignments() as u64
    }

    /// The experts of unsorted assignments, for kernels.
    pub(super) fn unsorted(&self) -> ExpertsOf {
        match self.unsorted {
            None => ExpertsOf::SORTED,
            Some(experts) => self.of(experts),
        }
    }

    fn of(&self, experts: RawExperts) -> ExpertsOf {
        ExpertsOf {
            numbers: experts.address as *const u8,
            assignments: self.assignments() as u32,
            experts: self.experts as u32,
            is_64_bit: experts.is_64_bit,
        }
    }

    pub(super) fn check(&self) -> Result<(), GpuError> {
        let assignments = self.tokens.checked_mul(self.top_k);
        let most = i32::MAX as usize;
        let is_too_much = self.experts > MAX_EXPERTS || assignments.is_none_or(|all| all > most);
        if is_too_much || self.group_tokens == 0 {
            return Err(self.too_much());
        }
        match self.unsorted {
            None => check_aligned(Operand::Routing, self.address, 16),
            Some(experts) => experts.check(),
        }
    }

    /// The error that there are too many assignments, or experts.
    pub(super) fn too_much(&self) -> GpuError {
        GpuError::Routing {
            tokens: self.tokens,
            top_k: self.top_k,
            experts: self.experts,
            most: MAX_EXPERTS,
        }
    }
}

impl RawExperts {
    fn check(self) -> Result<(), GpuError> {
        check_aligned(
            Operand::Data,
            self.address,
            if self.is_64_bit { 8 } else { 4 },
        )
    }
}

impl Device {
    /// Sorts assignments by expert: `experts_of` has the numbers of each token's `top_k` experts. It is one launch, which
    /// can be captured.
    ///
    /// # Errors
    /// [`GpuError::Routing`] when there are too many, [`GpuError::Alignment`], [`GpuError::Load`], [`GpuError::Driver`].
    ///
    /// # Safety
    /// When the kernel runs, the numbers and the memory of `routing` are there, in the device's context, which
    /// `stream` is of too, and nothing else uses that memory.
    pub unsafe fn route_raw(
        &self,
        stream: RawStream,
        experts_of: RawExperts,
        routing: &RawRouting,
    ) -> Result<(), GpuError> {
        routing.check()?;
        experts_of.check()?;
        if routing.unsorted.is_some() {
            return Err(GpuError::mismatch("routing that is sorted:", 1, 0));
        }
        let args = RouteArgs {
            of: routing.of(experts_of),
            rows: routing.rows() as *mut u32,
            places: routing.places() as *mut u32,
            groups: routing.groups_at() as *mut Group,
            group_count: routing.group_count() as *mut u32,
            routed: routing.routed() as *mut u32,
            top_k: routing.top_k as u32,
            group_tokens: routing.group_tokens as u32,
        };
        let pdl = self.family() == Family::Hopper;
        let blocks = routing.assignments().div_ceil(ROUTE_THREADS);
        let blocks = blocks.clamp(1, ROUTE_BLOCKS) as u32;
        // SAFETY: the caller's promise.
        unsafe { self.launch("route", blocks, stream, pdl, args) }
    }

    /// `Y[t]` = sum over a token's experts of weight x outputs: `parts` are FP32, a row of `features` for each assignment
    /// in the order of experts, `weights` FP32, one for each assignment, and Y BF16. Sums are FP32, in the order of
    /// assignments.
    ///
    /// # Errors
    /// [`GpuError::Routing`], [`GpuError::Alignment`], [`GpuError::Columns`] for features that are no multiple of 4;
    /// [`GpuError::Load`], [`GpuError::Driver`].
    ///
    /// # Safety
    /// - As [`route_raw`](Self::route_raw), which has been called for `routing` before on this stream, of all operands.
    /// - The kernel ahead in the stream is one of a [`GroupedPlan`](super::GroupedPlan), launched behind `route_raw` and
    ///   behind what has written the weights: both are read before that kernel has ended.
    pub unsafe fn combine_raw(
        &self,
        stream: RawStream,
        parts: u64,
        weights: u64,
        y: u64,
        features: usize,
        routing: &RawRouting,
    ) -> Result<(), GpuError> {
        let pdl = self.family() == Family::Hopper;
        // SAFETY: the caller's promise.
        unsafe { self.combine_with(stream, [parts, weights, y], features, routing, pdl) }
    }

    /// With `pdl`, it starts before the kernel ahead has ended, and as [`combine_raw`](Self::combine_raw) says.
    unsafe fn combine_with(
        &self,
        stream: RawStream,
        [parts, weights, y]: [u64; 3],
        features: usize,
        routing: &RawRouting,
        pdl: bool,
    ) -> Result<(), GpuError> {
        const KERNEL: &str = "combine";
        routing.check()?;
        check_aligned(Operand::Data, parts, 16)?;
        check_aligned(Operand::Data, weights, 4)?;
        check_aligned(Operand::Outputs, y, 8)?;
        if !features.is_multiple_of(4) {
            return Err(GpuError::Columns {
                kernel: KERNEL,
                cols: features,
            });
        }
        if routing.tokens == 0 || features == 0 {
            return Ok(());
        }
        let args = CombineArgs {
            y: y as *mut u16,
            parts: parts as *const f32,
            places: match routing.unsorted {
                None => routing.places() as *const u32,
                Some(_) => std::ptr::null(),
            },
            unsorted: routing.unsorted(),
            weights: weights as *const f32,
            tokens: routing.tokens as u32,
            top_k: routing.top_k as u32,
            features: features as u32,
        };
        let blocks = routing.tokens * features.div_ceil(COMBINE_FEATURES);
        // SAFETY: the caller's promise.
        unsafe { self.launch(KERNEL, blocks as u32, stream, pdl, args) }
    }
}

/// Where the tokens of a call go, on the device.
#[derive(Debug)]
pub struct Routing {
    memory: Buffer<u8>,
    raw: RawRouting,
}

impl Routing {
    /// Room for `tokens` tokens of `top_k` experts each, of `experts`, and groups of a
    /// [plan's](super::GroupedPlan::group_tokens) size.
    ///
    /// # Errors
    /// [`GpuError::Routing`] and [`GpuError::Driver`].
    pub fn new(
        device: &Device,
        tokens: usize,
        top_k: usize,
        experts: usize,
        group_tokens: usize,
    ) -> Result<Self, GpuError> {
        let mut raw = RawRouting {
            address: 0,
            unsorted: None,
            tokens,
            top_k,
            experts,
            group_tokens,
        };
        raw.check()?;
        let memory = Buffer::zeroed(device, raw.bytes())?;
        raw.address = memory.address();
        Ok(Self { memory, raw })
    }

    /// Sorts by the numbers of each token's experts, token after token; see [`Device::route_raw`].
    ///
    /// # Errors
    /// As that; [`GpuError::Length`] and [`GpuError::Context`].
    pub fn route<'a>(
        &mut self,
        stream: &Stream,
        experts_of: impl Into<View<'a, i32>>,
    ) -> Result<(), GpuError> {
        let experts_of = experts_of.into();
        let expected = Need::Exactly(self.raw.assignments());
        check_len(Operand::Data, expected, experts_of.len())?;
        let device = self.memory.device();
        same_context(device, stream.device(), Operand::Stream)?;
        same_context(device, experts_of.device(), Operand::Data)?;
        let from = RawExperts {
            address: experts_of.address(),
            is_64_bit: false,
        };
        // SAFETY: lengths and context are right; memory that is freed waits for kernels that use it.
        unsafe { device.route_raw(stream.raw(), from, &self.raw) }
    }

    /// Adds up what a token's experts made of it; see [`Device::combine_raw`].
    ///
    /// # Errors
    /// As that; [`GpuError::Length`] and [`GpuError::Context`].
    pub fn combine<'a>(
        &self,
        stream: &Stream,
        parts: impl Into<View<'a, f32>>,
        weights: impl Into<View<'a, f32>>,
        y: impl Into<ViewMut<'a, bf16>>,
    ) -> Result<(), GpuError> {
        let (parts, weights, y) = (parts.into(), weights.into(), y.into());
        let RawRouting { tokens, .. } = self.raw;
        let assignments = self.raw.assignments();
        let features = y.as_view().len().checked_div(tokens).unwrap_or(0);
        let outputs = Need::Exactly(tokens * features);
        check_len(Operand::Outputs, outputs, y.as_view().len())?;
        let needed = (assignments.checked_mul(features)).map_or(Need::Overflow, Need::Exactly);
        check_len(Operand::Data, needed, parts.len())?;
        check_len(Operand::Data, Need::Exactly(assignments), weights.len())?;
        let device = self.memory.device();
        same_context(device, stream.device(), Operand::Stream)?;
        same_context(device, parts.device(), Operand::Data)?;
        same_context(device, weights.device(), Operand::Data)?;
        same_context(device, y.device(), Operand::Outputs)?;
        let operands = [parts.address(), weights.address(), y.as_view().address()];
        // SAFETY: lengths and context are right; the output is borrowed alone. Whatever is ahead has ended.
        unsafe { device.combine_with(stream.raw(), operands, features, &self.raw, false) }
    }

    /// The place of each assignment in the order of experts, which is its row in the outputs of a
    /// [`GroupedLinear`](super::GroupedLinear); none of those that are left out. It waits for `stream`.
    ///
    /// # Errors
    /// [`GpuError::Driver`].
    pub fn places(&self, stream: &Stream) -> Result<Vec<Option<u32>>, GpuError> {
        let bytes = self.memory.to_vec(stream)?;
        let from = (self.raw.places() - self.raw.address) as usize;
        let words = bytes[from..].chunks_exact(4).map(|word| {
            let place = u32::from_le_bytes(word.try_into().expect("four bytes"));
            (place != NOWHERE).then_some(place)
        });
        Ok(words.collect())
    }

    /// Where it is, for calls on pointers.
    pub fn raw(&self) -> &RawRouting {
        &self.raw
    }

    /// The device.
    pub fn device(&self) -> &Device {
        self.memory.device()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_room_for_all_groups_there_can_be() {
        for (tokens, top_k, experts, group_tokens) in [
            (1, 1, 1, 8),
            (1, 8, 128, 8),
            (1, 8, 4, 64),
            (33, 8, 128, 16),
            (4096, 2, 8, 64),
            (0, 8, 128, 8),
        ] {
            let routing = RawRouting {
                address: 0,
                unsorted: None,
                tokens,
                top_k,
                experts,
                group_tokens,
            };
            let all = tokens * top_k;
            // All to one, one to each, and as many as can be that are not full.
            let uneven = |full: usize| {
                let others = (experts - 1).min(all - full);
                full.div_ceil(group_tokens) + others
            };
            let most = (0..=all).map(uneven).max().unwrap().min(all);
            assert!(routing.groups() >= most, "{routing:?}");
            assert_eq!(routing.places() + 4 * all as u64, routing.bytes() as u64);
        }
    }
}
