//! Reports as text, a line for each row.

use std::fmt;

use super::report::{Ceilings, DecompressRow, Figure, GemmRow, Mean};

impl fmt::Display for Ceilings {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Self { copy, read } = self;
        write!(f, "copy {copy:.3} TB/s, read {read:.3} TB/s")
    }
}

impl fmt::Display for Figure {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let of_read = 100.0 * self.of_read;
        let Self {
            us, tbs, speedup, ..
        } = self;
        write!(f, "{us:6.1} us {tbs:.2} TB/s {of_read:3.0} % {speedup:.3}x")
    }
}

impl fmt::Display for GemmRow {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let info = &self.layer;
        write!(
            f,
            "{:13} {:8} {:5} x {:<5} N={:<2} cuBLAS {:6.1} us ({}), limit {:.3}x",
            info.model,
            info.name,
            info.rows,
            info.cols,
            self.n,
            self.cublas_us,
            self.cublas_choice,
            self.limit,
        )?;
        for kernel in &self.kernels {
            let mark = if kernel.planned { '*' } else { ' ' };
            write!(
                f,
                "\n  {mark} {:18} {:4} blocks | plain {}",
                kernel.kernel, kernel.blocks, kernel.plain
            )?;
            if let Some(dependent) = kernel.dependent {
                write!(f, " | dependent {dependent}")?;
            }
            if !kernel.correct {
                write!(f, " | WRONG by {:.1e}", kernel.deviation)?;
            }
        }
        Ok(())
    }
}

impl fmt::Display for Mean {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(
            f,
            "N={:<2} {} layers: plain {:.3}x, dependent {:.3}x (worst {:.3}x), best kernels {:.3}x, limit {:.3}x",
            self.n, self.layers, self.plain, self.dependent, self.worst, self.best, self.limit
        )
    }
}

impl fmt::Display for DecompressRow {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let info = &self.layer;
        write!(
            f,
            "{:13} {:8} {:5} x {:<5} decompress {:6.1} us {:.2} TB/s {:3.0} % of copy{}",
            info.model,
            info.name,
            info.rows,
            info.cols,
            self.us,
            self.tbs,
            100.0 * self.of_copy,
            if self.exact { "" } else { " | NOT EXACT" },
        )
    }
}
