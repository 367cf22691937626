//! Many tokens an expert: the launches around a product by `prefill_grouped`, which takes activations in the order of
//! experts, and gates outputs in groups of few tokens alone.

use std::ptr;

use zipserv_gpu::{
    args::{ArrangeArgs, GateArgs, Group, GroupedPrefillArgs, Output, PrefillArgs},
    launch::{ARRANGE_FEATURES, Prefill},
    layout::TILE_COLS,
    sched::schedule::Decomposition,
};

use super::{plan::RawGrouped, routing::RawRouting};
use crate::gpu::{
    device::Device,
    driver::RawStream,
    error::{GpuError, Operand},
    matrix::DeviceMatrix,
    operands::{OutputType, check_aligned},
    plan::can_read,
    tensor_map,
};

/// BF16 to whose multiple rows of arranged activations are rounded up: tensor copies start at multiples of 16 bytes.
const ALIGN: usize = 8;

/// How scratch memory is used: activations in the order of experts, then products that another kernel gates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scratch {
    /// Whether activations have to be arranged: they are tokens', or rows that tensor copies cannot read.
    arranges: bool,
    /// BF16 from one of their rows to the next.
    x_stride: usize,
    /// Where products are that another kernel gates.
    products: Option<usize>,
    /// All of it.
    pub bytes: usize,
}

impl Scratch {
    /// What so many assignments take, of experts of `rows` by `cols`, with a kernel of that shape.
    pub fn new(
        operands: &RawGrouped,
        assignments: usize,
        (rows, cols): (usize, usize),
        shape: Prefill,
    ) -> Self {
        let arranges = !(operands.x_by_expert && can_read(operands.x, operands.x_stride));
        let x_stride = cols.next_multiple_of(ALIGN);
        let bytes = |used: bool, features: usize| match used {
            true => assignments.saturating_mul(2 * features),
            false => 0,
        };
        let gates_after = operands.is_gated && !shape.has_few_tokens();
        let arranged = bytes(arranges, x_stride);
        Self {
            arranges,
            x_stride,
            products: gates_after.then_some(arranged),
            bytes: arranged.saturating_add(bytes(gates_after, rows)),
        }
    }
}

/// A kernel and its launch.
pub struct Kernel {
    pub name: &'static str,
    pub shape: Prefill,
    /// A multiple of a cluster's.
    pub blocks: u32,
    /// Features of an expert.
    pub rows: usize,
    pub pdl: bool,
}

/// [`GroupedPlan::run_raw`](super::GroupedPlan::run_raw) with such a kernel.
///
/// # Errors
/// As that.
///
/// # Safety
/// As that; operands are checked but for scratch memory, and there are assignments.
pub unsafe fn run(
    stream: RawStream,
    kernel: &Kernel,
    weights: &DeviceMatrix,
    operands: &RawGrouped,
    routing: &RawRouting,
) -> Result<(), GpuError> {
    let (device, pdl) = (weights.device(), kernel.pdl);
    let (rows, cols, all) = (kernel.rows, weights.cols(), routing.assignments());
    let scratch = Scratch::new(operands, all, (rows, cols), kernel.shape);
    if scratch.bytes > 0 {
        check_aligned(Operand::Data, operands.scratch, 16)?;
    }
    // The kernel counts the k-tiles of all output tiles in 32 bits.
    let row_groups = rows.div_ceil(Prefill::ROWS * kernel.shape.cluster);
    let k_tiles = [row_groups, cols.div_ceil(TILE_COLS)];
    let k_tiles = (k_tiles.into_iter()).try_fold(routing.groups(), usize::checked_mul);
    if k_tiles.is_none_or(|all| all > u32::MAX as usize) {
        return Err(routing.too_much());
    }
    let output = Output {
        y: operands.y as *mut u8,
        bias: ptr::null(),
        pitch: (operands.y_stride * operands.output.bytes()) as u32,
        is_f32: operands.output == OutputType::F32,
        accumulate: false,
    };
    let products = (scratch.products).map(|products| operands.scratch + products as u64);
    let (mut x, mut x_stride, mut follows_routing) =
        (operands.x, operands.x_stride, operands.follows_routing);
    if scratch.arranges {
        let args = ArrangeArgs {
            y: operands.scratch as *mut u16,
            x: x as *const u16,
            rows: match operands.x_by_expert {
                true => ptr::null(),
                false => routing.rows() as *const u32,
            },
            routed: routing.routed() as *const u32,
            x_stride: x_stride as u64,
            y_stride: scratch.x_stride as u64,
            features: cols as u32,
        };
        // SAFETY: the caller's promise, of scratch memory too.
        unsafe { arrange(device, stream, args, routing, pdl)? };
        // It has waited for the kernel that routes before it lets another start.
        (x, x_stride, follows_routing) = (operands.scratch, scratch.x_stride, false);
    }
    let box_tokens = kernel.shape.box_tokens(kernel.shape.tokens);
    let (dense, offsets, patches) = weights.addresses();
    let args = GroupedPrefillArgs {
        prefill: PrefillArgs {
            x: tensor_map::activations(x, x_stride, [all, cols], box_tokens)?,
            tiles: weights.dense_map(),
            output: match products {
                Some(products) => Output {
                    y: products as *mut u8,
                    pitch: 2 * rows as u32,
                    is_f32: false,
                    ..output
                },
                None => output,
            },
            dense,
            offsets,
            patches,
            partials: ptr::null_mut(),
            flags: ptr::null_mut(),
            m: rows as u32,
            n: all as u32,
            k: cols as u32,
            decomposition: Decomposition::WHOLE,
            box_tokens: box_tokens as u32,
            is_gated: operands.is_gated && products.is_none(),
        },
        groups: routing.groups_at() as *const Group,
        group_count: routing.group_count() as *const u32,
        follows_routing,
    };
    // SAFETY: the caller's promise; a plan names a kernel that takes these arguments.
    unsafe { device.launch(kernel.name, kernel.blocks, stream, pdl, args)? };
    if let Some(products) = products {
        let args = GateArgs {
            output,
            x: products as *const u16,
            routed: routing.routed() as *const u32,
            x_stride: rows as u64,
            features: rows as u32 / 2,
        };
        // SAFETY: as above.
        unsafe { device.gate(stream, args, all, pdl)? };
    }
    Ok(())
}

/// Puts activations into the order of experts.
unsafe fn arrange(
    device: &Device,
    stream: RawStream,
    args: ArrangeArgs,
    routing: &RawRouting,
    pdl: bool,
) -> Result<(), GpuError> {
    let columns = (args.features as usize).div_ceil(ARRANGE_FEATURES);
    let blocks = routing.assignments().checked_mul(columns);
    let blocks = blocks.and_then(|blocks| i32::try_from(blocks).ok());
    let blocks = blocks.ok_or_else(|| routing.too_much())?;
    // SAFETY: the caller's promise.
    unsafe { device.launch("arrange", blocks as u32, stream, pdl, args) }
}

#[cfg(test)]
mod tests {
    use zipserv_gpu::launch::GROUPED_PREFILLS;

    use super::*;

    #[test]
    fn scratch_memory_has_room_for_what_is_in_it() {
        let shape = |tokens| {
            let mut shapes = GROUPED_PREFILLS.iter().map(|&(_, shape)| shape);
            shapes.find(|shape| shape.tokens == tokens).unwrap()
        };
        let of = |x: u64, x_stride, x_by_expert, is_gated, tokens| {
            let operands = RawGrouped {
                x,
                x_stride,
                x_by_expert,
                y: 0,
                y_stride: 64,
                output: OutputType::F32,
                is_gated,
                follows_routing: true,
                scratch: 0,
            };
            Scratch::new(&operands, 10, (64, 33), shape(tokens))
        };
        // Rows of 33 start 40 apart.
        let both = of(0, 40, false, true, 144);
        assert_eq!(
            (both.arranges, both.x_stride, both.products, both.bytes),
            (true, 40, Some(800), 800 + 1280)
        );
        for tokens in [16, 32, 64] {
            // The kernel gates.
            let arranged = of(0, 40, false, true, tokens);
            assert_eq!((arranged.products, arranged.bytes), (None, 800));
            assert_eq!(of(0, 40, true, true, tokens).bytes, 0);
        }
        for tokens in [16, 256] {
            assert_eq!(of(0, 40, true, false, tokens).bytes, 0);
            assert_eq!(of(8, 40, true, false, tokens).bytes, 800);
            assert_eq!(of(0, 33, true, false, tokens).bytes, 800);
        }
        assert_eq!(of(0, 40, true, true, 256).bytes, 1280);
    }
}
