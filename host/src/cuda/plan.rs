use std::fmt;

use zipserv_gpu::{
    launch::{GEMMS, Gemm},
    layout::TILE_COLS,
};

use super::{CudaError, DeviceMatrix, Family, Gpu};

/// What a call of [`zipgemm`](super::zipgemm) launches. [`zipgemm_plan`] chooses one; its
/// `Display` says what and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    kernel: &'static str,
    shape: Gemm,
    blocks: u32,
    columns: usize,
    dependent: bool,
    choice: Choice,
}

/// Who chose a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Choice {
    /// A row of [`MEASURED`].
    Measured,
    /// The first that takes as many tokens and multiplies no more than it must.
    First,
    /// The caller.
    Asked,
}

/// A kernel that was measured to be the fastest for some problems.
struct Measured {
    /// Tokens, at most.
    tokens: usize,
    /// Weights, at least.
    weights: usize,
    /// The kernel.
    kernel: &'static str,
}

/// What measurements say; the first row that fits counts, if the device has its kernel. Where
/// none fits, the order of [`GEMMS`] decides.
const MEASURED: &[Measured] = &[
    Measured {
        tokens: 8,
        weights: 0,
        kernel: "zipgemm_n8_2x4x2",
    },
    Measured {
        tokens: 16,
        weights: 0,
        kernel: "zipgemm_n16_2x4x2",
    },
    Measured {
        tokens: 32,
        weights: 0,
        kernel: "zipgemm_n32_2x2x2",
    },
    Measured {
        tokens: 64,
        weights: 80_000_000,
        kernel: "zipgemm_n64_4x2x1",
    },
    Measured {
        tokens: 64,
        weights: 0,
        kernel: "zipgemm_n64_4x2x1",
    },
];

/// Chooses kernel and launch for `n` tokens.
///
/// # Errors
/// [`CudaError::Argument`] when `n` is 0 or too large, or the device has no kernel.
pub fn zipgemm_plan(gpu: &Gpu, weights: &DeviceMatrix, n: usize) -> Result<Plan, CudaError> {
    let kernels = || GEMMS.iter().filter(|(name, _)| gpu.has(name));
    let most = kernels().map(|(_, shape)| tokens(shape)).max();
    let most = most.ok_or_else(|| {
        CudaError::Argument(format!(
            "there is no ZipGEMM kernel for this device ({}) yet; `decompress` works on it",
            gpu.family()
        ))
    })?;
    if n == 0 || n > most {
        return Err(CudaError::Argument(format!(
            "{n} tokens: ZipGEMM takes 1 to {most} at a time"
        )));
    }
    let fits = |row: &&Measured| {
        n <= row.tokens && weights.rows() * weights.cols() >= row.weights && gpu.has(row.kernel)
    };
    if let Some(row) = MEASURED.iter().find(fits) {
        let plan = Plan::with_kernel(gpu, weights, row.kernel)?;
        return Ok(Plan {
            choice: Choice::Measured,
            ..plan
        });
    }
    // Of equals, the first is the minimum.
    let (name, _) = kernels()
        .filter(|(_, shape)| n <= tokens(shape))
        .min_by_key(|(_, shape)| shape.n_tiles)
        .expect("one takes the most tokens");
    let plan = Plan::with_kernel(gpu, weights, name)?;
    Ok(Plan {
        choice: Choice::First,
        ..plan
    })
}

/// Tokens that a kernel takes at most.
fn tokens(shape: &Gemm) -> usize {
    8 * shape.n_tiles
}

/// Tile columns of all row blocks, which the kernel deals out to thread blocks.
pub(super) fn columns(shape: &Gemm, weights: &DeviceMatrix) -> usize {
    weights.rows().div_ceil(shape.rows()) * weights.cols().div_ceil(TILE_COLS)
}

impl Plan {
    /// The launch of a named kernel: as many thread blocks as the device holds at a time, each
    /// with an equal share of the tile columns (stream-K).
    ///
    /// # Errors
    /// [`CudaError::Argument`] when the device has no such kernel.
    pub fn with_kernel(gpu: &Gpu, weights: &DeviceMatrix, kernel: &str) -> Result<Self, CudaError> {
        let (kernel, shape) = GEMMS
            .iter()
            .find(|(name, _)| *name == kernel && gpu.has(name))
            .ok_or_else(|| {
                let family = gpu.family();
                CudaError::Argument(format!(
                    "no ZipGEMM kernel {kernel} for this device ({family})"
                ))
            })?;
        let columns = columns(shape, weights);
        let blocks = columns.min(gpu.resident_blocks(kernel)? as usize);
        Ok(Self {
            kernel,
            shape: *shape,
            blocks: blocks.max(1) as u32,
            columns,
            // The portable kernels know of no kernel before them.
            dependent: gpu.family() == Family::Hopper,
            choice: Choice::Asked,
        })
    }

    /// The same on another number of thread blocks, at least one and at most as many as there
    /// are tile columns.
    #[must_use]
    pub fn with_blocks(self, blocks: u32) -> Self {
        let most = u32::try_from(self.columns).unwrap_or(u32::MAX);
        Self {
            blocks: blocks.min(most).max(1),
            ..self
        }
    }

    /// The same with or without programmatic dependent launch.
    #[must_use]
    pub fn with_dependent(self, dependent: bool) -> Self {
        Self { dependent, ..self }
    }

    /// The kernel's name.
    pub fn kernel(&self) -> &'static str {
        self.kernel
    }

    /// The kernel's shape.
    pub fn shape(&self) -> Gemm {
        self.shape
    }

    /// Thread blocks.
    pub fn blocks(&self) -> u32 {
        self.blocks
    }

    /// Whether the kernel overlaps the end of the one before it in the stream (programmatic
    /// dependent launch).
    pub fn is_dependent(&self) -> bool {
        self.dependent
    }

    /// Tokens at most.
    pub fn tokens(&self) -> usize {
        tokens(&self.shape)
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let why = match self.choice {
            Choice::Measured => "measured to be the fastest here",
            Choice::First => "the first for so many tokens",
            Choice::Asked => "as asked for",
        };
        write!(
            f,
            "{} ({why}): up to {} tokens; {} tile columns of {} rows over {} blocks",
            self.kernel,
            self.tokens(),
            self.columns,
            self.shape.rows(),
            self.blocks,
        )?;
        if self.dependent {
            f.write_str(", dependent launch")?;
        }
        Ok(())
    }
}
