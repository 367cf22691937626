//! Reports as text, a line for each row.

use std::fmt;

use super::report::{Ceilings, DecompressRow, Figure, GemmRow, LayerInfo, Mean};

/// Room for the name of a launch.
const NAME: usize = 40;
/// Tokens, at most, of which memory sets the pace; that of more are floating-point operations.
const MEMORY_BOUND: usize = 64;

impl fmt::Display for Ceilings {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Self { copy, read } = self;
        write!(f, "copy {copy:.3} TB/s, read {read:.3} TB/s")
    }
}

impl fmt::Display for LayerInfo {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Self {
            model,
            name,
            rows,
            cols,
            ..
        } = self;
        write!(f, "{model:12}  {name:7}  {rows:5} x {cols:<5}")
    }
}

impl fmt::Display for Figure {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let of_read = 100.0 * self.of_read;
        let Self {
            us, tbs, speedup, ..
        } = self;
        write!(
            f,
            "{us:8.1} us  {tbs:5.2} TB/s  {of_read:3.0} % of read  {speedup:6.3}x"
        )
    }
}

/// The layer, then a line for each launch that was timed; a star marks the plan's kernel.
impl fmt::Display for GemmRow {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Self {
            layer, n, limit, ..
        } = self;
        let many = *n > MEMORY_BOUND;
        write!(f, "{layer}  N={n:<2}")?;
        if !many {
            write!(f, "  limit {limit:.3}x")?;
        }
        let (choice, us) = (&self.cublas_choice, self.cublas_us);
        write!(f, "\n    {choice:NAME$}  {us:8.1} us")?;
        if many {
            write!(f, "  {:4.0} TFLOP/s", layer.tflops(*n, us))?;
        }
        for kernel in &self.kernels {
            let mark = if kernel.planned { '*' } else { ' ' };
            let mut line = |figure: &Figure, how: &str| {
                let split = kernel.split.map(|tiles| format!(", split {tiles}"));
                let split = split.unwrap_or_default();
                let name = format!("{} x {}{split}{how}", kernel.kernel, kernel.blocks);
                write!(f, "\n  {mark} {name:NAME$}  {figure}")?;
                if many {
                    write!(f, "  {:4.0} TFLOP/s", figure.tflops)?;
                }
                match kernel.correct {
                    true => Ok(()),
                    false => write!(f, "  WRONG by {:.1e}", kernel.deviation),
                }
            };
            line(&kernel.plain, "")?;
            if let Some(figure) = &kernel.dependent {
                line(figure, ", dependent")?;
            }
        }
        Ok(())
    }
}

impl fmt::Display for Mean {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Self {
            n,
            layers,
            plain,
            dependent,
            worst,
            limit,
            best,
        } = self;
        write!(
            f,
            "N={n:<5}  {plain:.3}x plain, {dependent:.3}x dependent (worst {worst:.3}x), \
             {best:.3}x best kernels"
        )?;
        if *n <= MEMORY_BOUND {
            write!(f, ", {limit:.3}x limit")?;
        }
        write!(f, "; {layers} layers")
    }
}

impl fmt::Display for DecompressRow {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Self {
            layer,
            us,
            tbs,
            of_copy,
            exact,
        } = self;
        let (of_copy, name) = (100.0 * of_copy, "decompress");
        write!(
            f,
            "{layer}\n  * {name:NAME$}  {us:8.1} us  {tbs:5.2} TB/s  {of_copy:3.0} % of copy"
        )?;
        match exact {
            true => Ok(()),
            false => write!(f, "  NOT EXACT"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::report::KernelRow;
    use super::*;

    #[test]
    fn a_line_for_each_launch() {
        let figure = Figure {
            us: 1e4,
            tbs: 2.5,
            of_read: 0.75,
            tflops: 600.0,
            speedup: 1.25,
        };
        let row = GemmRow {
            layer: LayerInfo {
                model: "llama-3-70b".to_owned(),
                name: "gate+up".to_owned(),
                rows: 57344,
                cols: 8192,
                compressed_bytes: 1,
            },
            n: 8192,
            cublas_us: 12500.0,
            cublas_choice: "cublasLt 1 of 8".to_owned(),
            limit: 1.5,
            kernels: vec![KernelRow {
                kernel: "prefill_n256".to_owned(),
                blocks: 132,
                split: Some(100),
                planned: true,
                plain: figure,
                dependent: Some(figure),
                deviation: 0.5,
                correct: false,
            }],
        };
        let text = "\
llama-3-70b   gate+up  57344 x 8192   N=8192
    cublasLt 1 of 8                            12500.0 us   616 TFLOP/s
  * prefill_n256 x 132, split 100              10000.0 us   2.50 TB/s   75 % of read   1.250x   600 TFLOP/s  WRONG by 5.0e-1
  * prefill_n256 x 132, split 100, dependent   10000.0 us   2.50 TB/s   75 % of read   1.250x   600 TFLOP/s  WRONG by 5.0e-1";
        assert_eq!(row.to_string(), text);
    }
}
