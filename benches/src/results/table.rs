//! Reports as text, a line for each row.

use std::fmt;

use super::report::{
    DecompressRow, Decoupled, Dispatch, GemmRow, Invariant, InvariantMean, LayerInfo, MEMORY_BOUND,
    Mean, PublishedMean,
};

/// Room for the name of a launch.
const NAME: usize = 40;
/// Room for what a launch takes of memory's pace.
const MEMORY: usize = 25;

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

/// The layer, then a line for each launch that was timed, with the pace of what holds it up:
/// memory's for few tokens, operations for many. A star marks the plan's kernel, and what takes its
/// place where there is memory for dense weights.
impl fmt::Display for GemmRow {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Self { layer, n, .. } = self;
        let many = *n > MEMORY_BOUND;
        let operations = |us: f64| format!("{:4.0} TFLOP/s", self.tflops(us));
        let wrong = |correct: bool, deviation: f64| match correct {
            true => String::new(),
            false => format!("  WRONG by {deviation:.1e}"),
        };
        write!(f, "{layer}  N={n:<2}")?;
        if !many {
            write!(f, "  limit {:.3}x", self.limit())?;
        }
        let (choice, us) = (&self.cublas_choice, self.cublas_us);
        write!(f, "\n    {choice:NAME$}  {us:8.1} us")?;
        if many {
            write!(f, "  {}", operations(us))?;
        }
        let both = [
            ("decompress", &self.decoupled),
            ("published_decompress", &self.published_decoupled),
        ];
        for (first, decoupled) in both {
            let Some(decoupled) = decoupled else { continue };
            let name = format!("{first}, {}", decoupled.cublas_choice);
            let Decoupled {
                us,
                correct,
                deviation,
                ..
            } = *decoupled;
            let speedup = self.speedup(us);
            let pace = match many {
                true => operations(us),
                // It moves other bytes than those that the others are measured by.
                false => " ".repeat(MEMORY),
            };
            let wrong = wrong(correct, deviation);
            write!(
                f,
                "\n    {name:NAME$}  {us:8.1} us  {pace}  {speedup:6.3}x{wrong}"
            )?;
        }
        if let Some(published) = &self.published {
            let us = published.us;
            let tbs = published.compressed_bytes as f64 / us / 1e6;
            let of_read = 100.0 * tbs / self.read_tbs;
            let speedup = self.speedup(us);
            let name = format!("{}, {} parts of K", published.kernel, published.split_k);
            let ours = self.kernels.first();
            let ours = ours.map_or(f64::NAN, |ours| us / ours.plain_us);
            let wrong = wrong(published.correct, published.deviation);
            write!(
                f,
                "\n    {name:NAME$}  {us:8.1} us  {tbs:5.2} TB/s  {of_read:3.0} % of read  \
                 {speedup:6.3}x, ours plainly {ours:.3}x of that{wrong}"
            )?;
        }
        // Both ways to launch a kernel of ours.
        let mut lines = |mark, name: &str, plain: f64, pdl: Option<f64>, wrong: &str| {
            let mut line = |us: f64, how: &str| {
                let name = format!("{name}{how}");
                let (tbs, of_read) = (self.tbs(us), 100.0 * self.of_read(us));
                let speedup = self.speedup(us);
                let pace = match many {
                    true => operations(us),
                    false => format!("{tbs:5.2} TB/s  {of_read:3.0} % of read"),
                };
                write!(
                    f,
                    "\n  {mark} {name:NAME$}  {us:8.1} us  {pace}  {speedup:6.3}x{wrong}"
                )
            };
            line(plain, "")?;
            pdl.iter().try_for_each(|&us| line(us, ", pdl"))
        };
        if let Some(invariant) = &self.invariant {
            let mut wrong = wrong(invariant.correct, invariant.deviation);
            if !invariant.same_bits {
                wrong += "  OTHER BITS than with other tokens";
            }
            let Invariant {
                plain_us, pdl_us, ..
            } = *invariant;
            lines(' ', "invariant", plain_us, pdl_us, &wrong)?;
        }
        for kernel in &self.kernels {
            let wrong = wrong(kernel.correct, kernel.deviation);
            let mark = if kernel.planned { '*' } else { ' ' };
            let shared = kernel.shared_tiles.map(|tiles| format!(", {tiles} shared"));
            let shared = shared.unwrap_or_default();
            let name = format!("{} x {}{shared}", kernel.kernel, kernel.blocks);
            lines(mark, &name, kernel.plain_us, kernel.pdl_us, &wrong)?;
        }
        if let Some(Dispatch {
            decoupled: true,
            us,
            deviation,
            correct,
            ..
        }) = self.dispatch
        {
            let (pace, wrong) = (operations(us), wrong(correct, deviation));
            let speedup = self.speedup(us);
            let name = "dispatch: decompress, cublasLt";
            write!(
                f,
                "\n  * {name:NAME$}  {us:8.1} us  {pace}  {speedup:6.3}x{wrong}"
            )?;
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
            pdl,
            worst,
            limit,
            best,
            decoupled,
            published,
            invariant,
        } = self;
        write!(
            f,
            "N={n:<5}  {plain:.3}x plain, {pdl:.3}x pdl (worst {worst:.3}x), \
             {best:.3}x best kernels"
        )?;
        if *n <= MEMORY_BOUND {
            write!(f, ", {limit:.3}x limit")?;
        }
        if let Some(decoupled) = decoupled {
            write!(f, ", {decoupled:.3}x decoupled")?;
        }
        if let Some(PublishedMean {
            speedup,
            plain,
            pdl,
        }) = published
        {
            write!(
                f,
                ", {speedup:.3}x published (ours {plain:.3}x plain, {pdl:.3}x pdl of that)"
            )?;
        }
        if let Some(InvariantMean { plain, pdl, .. }) = invariant {
            write!(f, ", {plain:.3}x invariant plain, {pdl:.3}x invariant pdl")?;
        }
        write!(f, "; {layers} layers")
    }
}

impl fmt::Display for DecompressRow {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}", self.layer)?;
        let mut line = |mark: char, name: &str, us: f64, tbs: f64, exact: bool| {
            let of_read = 100.0 * tbs / self.read_tbs;
            let wrong = if exact { "" } else { "  NOT EXACT" };
            write!(
                f,
                "\n  {mark} {name:NAME$}  {us:8.1} us  {tbs:5.2} TB/s  {of_read:3.0} % of read{wrong}"
            )
        };
        line('*', "decompress", self.us, self.tbs(), self.exact)?;
        if let (Some(published), Some(tbs)) = (&self.published, self.published_tbs()) {
            let name = "published_decompress";
            line(' ', name, published.us, tbs, published.exact)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::report::{KernelRow, Published, PublishedDecompress};
    use super::*;

    /// A row that is a quarter faster than cuBLAS with programmatic dependent launch.
    fn row(n: usize) -> GemmRow {
        GemmRow {
            layer: LayerInfo {
                model: "llama-3-70b".to_owned(),
                name: "gate+up".to_owned(),
                rows: 57344,
                cols: 8192,
                compressed_bytes: 25_000_000_000,
            },
            n,
            read_tbs: 4.0,
            cublas_us: 12500.0,
            cublas_choice: "cublasLt 1 of 8".to_owned(),
            published: None,
            published_decoupled: None,
            invariant: None,
            decoupled: Some(Decoupled {
                cublas_choice: "cublasLt 12 of 12".to_owned(),
                us: 25000.0,
                deviation: 0.5,
                correct: false,
            }),
            kernels: vec![KernelRow {
                kernel: "prefill_n256".to_owned(),
                blocks: 132,
                shared_tiles: Some(100),
                planned: true,
                plain_us: 12500.0,
                pdl_us: Some(10000.0),
                deviation: 0.0,
                correct: true,
            }],
            dispatch: None,
        }
    }

    #[test]
    fn a_line_for_each_launch() {
        let many = "\
llama-3-70b   gate+up  57344 x 8192   N=8192
    cublasLt 1 of 8                            12500.0 us   616 TFLOP/s
    decompress, cublasLt 12 of 12              25000.0 us   308 TFLOP/s   0.500x  WRONG by 5.0e-1
  * prefill_n256 x 132, 100 shared             12500.0 us   616 TFLOP/s   1.000x
  * prefill_n256 x 132, 100 shared, pdl        10000.0 us   770 TFLOP/s   1.250x";
        assert_eq!(row(8192).to_string(), many);
        let dispatch = Dispatch {
            plan: String::new(),
            decoupled: true,
            us: 20000.0,
            deviation: 0.5,
            correct: false,
        };
        let dispatched = GemmRow {
            dispatch: Some(dispatch),
            ..row(8192)
        };
        let line = "
  * dispatch: decompress, cublasLt             20000.0 us   385 TFLOP/s   0.625x  WRONG by 5.0e-1";
        assert_eq!(dispatched.to_string(), format!("{many}{line}"));
        let few = "\
llama-3-70b   gate+up  57344 x 8192   N=8   limit 2.000x
    cublasLt 1 of 8                            12500.0 us
    decompress, cublasLt 12 of 12              25000.0 us                              0.500x  WRONG by 5.0e-1
  * prefill_n256 x 132, 100 shared             12500.0 us   2.00 TB/s   50 % of read   1.000x
  * prefill_n256 x 132, 100 shared, pdl        10000.0 us   2.50 TB/s   62 % of read   1.250x";
        assert_eq!(row(8).to_string(), few);
    }

    #[test]
    fn lines_for_the_batch_invariant_plan() {
        let mut many = row(8192);
        many.invariant = Some(Invariant {
            plan: "a plan".to_owned(),
            plain_us: 12500.0,
            pdl_us: Some(12500.0),
            deviation: 0.0,
            correct: true,
            same_bits: true,
        });
        let lines = "
    invariant                                  12500.0 us   616 TFLOP/s   1.000x
    invariant, pdl                             12500.0 us   616 TFLOP/s   1.000x
  * prefill_n256";
        let text = many.to_string();
        assert!(text.contains(lines), "{text}");
        many.invariant.as_mut().unwrap().same_bits = false;
        let text = many.to_string();
        assert!(
            text.contains("  1.000x  OTHER BITS than with other tokens\n"),
            "{text}"
        );
    }

    #[test]
    fn a_line_for_what_is_published() {
        let mut few = row(8);
        let published = Published {
            kernel: "published_gemm_n8".to_owned(),
            split_k: 2,
            compressed_bytes: 31_250_000_000,
            us: 25000.0,
            deviation: 0.25,
            correct: false,
        };
        few.published = Some(published);
        few.published_decoupled = few.decoupled.clone();
        let line = "
    published_decompress, cublasLt 12 of 12    25000.0 us                              0.500x  WRONG by 5.0e-1
    published_gemm_n8, 2 parts of K            25000.0 us   1.25 TB/s   31 % of read   0.500x, \
                    ours plainly 2.000x of that  WRONG by 2.5e-1
";
        let text = few.to_string();
        assert!(text.contains(line), "{text}");

        let row = DecompressRow {
            layer: LayerInfo {
                compressed_bytes: 60_475_904,
                ..few.layer
            },
            read_tbs: 4.0,
            us: 500.0,
            exact: true,
            published: Some(PublishedDecompress {
                compressed_bytes: 60_475_904,
                us: 1000.0,
                exact: false,
            }),
        };
        let text = "\
llama-3-70b   gate+up  57344 x 8192\u{20}
  * decompress                                   500.0 us   2.00 TB/s   50 % of read
    published_decompress                        1000.0 us   1.00 TB/s   25 % of read  NOT EXACT";
        assert_eq!(row.to_string(), text);
    }
}
