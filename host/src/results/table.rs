//! Reports as text, a line for each row.

use std::fmt;

use super::report::{
    Ceilings, DecompressRow, Decoupled, Dispatch, Figure, GemmRow, Invariant, InvariantMean,
    LayerInfo, MEMORY_BOUND, Mean, PublishedDecompress, PublishedMean,
};

/// Room for the name of a launch.
const NAME: usize = 40;
/// Room for what a launch takes of memory's pace.
const MEMORY: usize = 25;

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

/// The layer, then a line for each launch that was timed, with the pace of what holds it up:
/// memory's for few tokens, operations for many. A star marks the plan's kernel, and what takes its
/// place where there is memory for dense weights.
impl fmt::Display for GemmRow {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Self {
            layer, n, limit, ..
        } = self;
        let many = *n > MEMORY_BOUND;
        let operations = |us: f64| format!("{:4.0} TFLOP/s", layer.tflops(*n, us));
        let wrong = |correct: bool, deviation: f64| match correct {
            true => String::new(),
            false => format!("  WRONG by {deviation:.1e}"),
        };
        write!(f, "{layer}  N={n:<2}")?;
        if !many {
            write!(f, "  limit {limit:.3}x")?;
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
                speedup,
                correct,
                deviation,
                ..
            } = *decoupled;
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
            let Figure {
                us,
                tbs,
                of_read,
                speedup,
                ..
            } = published.figure;
            let name = format!("{}, {} parts of K", published.kernel, published.split);
            let of_read = 100.0 * of_read;
            let ours = self.kernels.first();
            let ours = ours.map_or(f64::NAN, |ours| published.speedup_of(ours.plain.us));
            let wrong = wrong(published.correct, published.deviation);
            write!(
                f,
                "\n    {name:NAME$}  {us:8.1} us  {tbs:5.2} TB/s  {of_read:3.0} % of read  \
                 {speedup:6.3}x, ours plainly {ours:.3}x of that{wrong}"
            )?;
        }
        // Both ways to launch a kernel of ours.
        let mut lines =
            |mark, name: &str, plain: &Figure, dependent: &Option<Figure>, wrong: &str| {
                let mut line = |figure: &Figure, how: &str| {
                    let name = format!("{name}{how}");
                    let Figure {
                        us,
                        tbs,
                        of_read,
                        speedup,
                        ..
                    } = *figure;
                    let pace = match many {
                        true => operations(us),
                        false => format!("{tbs:5.2} TB/s  {:3.0} % of read", 100.0 * of_read),
                    };
                    write!(
                        f,
                        "\n  {mark} {name:NAME$}  {us:8.1} us  {pace}  {speedup:6.3}x{wrong}"
                    )
                };
                line(plain, "")?;
                dependent
                    .iter()
                    .try_for_each(|figure| line(figure, ", dependent"))
            };
        if let Some(invariant) = &self.invariant {
            let mut wrong = wrong(invariant.correct, invariant.deviation);
            if !invariant.same_bits {
                wrong += "  OTHER BITS than with other tokens";
            }
            let Invariant {
                plain, dependent, ..
            } = invariant;
            lines(' ', "invariant", plain, dependent, &wrong)?;
        }
        for kernel in &self.kernels {
            let wrong = wrong(kernel.correct, kernel.deviation);
            let mark = if kernel.planned { '*' } else { ' ' };
            let split = kernel.split.map(|tiles| format!(", split {tiles}"));
            let split = split.unwrap_or_default();
            let name = format!("{} x {}{split}", kernel.kernel, kernel.blocks);
            lines(mark, &name, &kernel.plain, &kernel.dependent, &wrong)?;
        }
        if let Some(Dispatch {
            decoupled: true,
            us,
            speedup,
            deviation,
            correct,
            ..
        }) = self.dispatch
        {
            let (pace, wrong) = (operations(us), wrong(correct, deviation));
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
            dependent,
            worst,
            limit,
            best,
            decoupled,
            published,
            invariant,
        } = self;
        write!(
            f,
            "N={n:<5}  {plain:.3}x plain, {dependent:.3}x dependent (worst {worst:.3}x), \
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
            dependent,
        }) = published
        {
            write!(
                f,
                ", {speedup:.3}x published (ours {plain:.3}x plain, {dependent:.3}x dependent of \
                 that)"
            )?;
        }
        if let Some(InvariantMean { plain, dependent }) = invariant {
            write!(
                f,
                ", {plain:.3}x invariant plain, {dependent:.3}x invariant dependent"
            )?;
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
            published,
        } = self;
        write!(f, "{layer}")?;
        let mut line = |mark: char, name: &str, us: f64, tbs: f64, of_copy: f64, exact: bool| {
            let of_copy = 100.0 * of_copy;
            let wrong = if exact { "" } else { "  NOT EXACT" };
            write!(
                f,
                "\n  {mark} {name:NAME$}  {us:8.1} us  {tbs:5.2} TB/s  {of_copy:3.0} % of copy{wrong}"
            )
        };
        line('*', "decompress", *us, *tbs, *of_copy, *exact)?;
        if let Some(PublishedDecompress {
            us,
            tbs,
            of_copy,
            exact,
            ..
        }) = *published
        {
            line(' ', "published_decompress", us, tbs, of_copy, exact)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::report::{KernelRow, Published};
    use super::*;

    /// A row whose dependent launch is a quarter faster than cuBLAS.
    fn row(n: usize) -> GemmRow {
        let figure = |us: f64, speedup: f64| Figure {
            us,
            tbs: 2.5,
            of_read: 0.75,
            tflops: 0.0,
            speedup,
        };
        GemmRow {
            layer: LayerInfo {
                model: "llama-3-70b".to_owned(),
                name: "gate+up".to_owned(),
                rows: 57344,
                cols: 8192,
                compressed_bytes: 1,
            },
            n,
            cublas_us: 12500.0,
            cublas_tflops: 0.0,
            cublas_choice: "cublasLt 1 of 8".to_owned(),
            limit: 1.5,
            published: None,
            published_decoupled: None,
            invariant: None,
            decoupled: Some(Decoupled {
                cublas_choice: "cublasLt 12 of 12".to_owned(),
                us: 25000.0,
                tflops: 0.0,
                speedup: 0.5,
                deviation: 0.5,
                correct: false,
            }),
            kernels: vec![KernelRow {
                kernel: "prefill_n256".to_owned(),
                blocks: 132,
                split: Some(100),
                planned: true,
                plain: figure(12500.0, 1.0),
                dependent: Some(figure(10000.0, 1.25)),
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
  * prefill_n256 x 132, split 100              12500.0 us   616 TFLOP/s   1.000x
  * prefill_n256 x 132, split 100, dependent   10000.0 us   770 TFLOP/s   1.250x";
        assert_eq!(row(8192).to_string(), many);
        let dispatch = Dispatch {
            plan: String::new(),
            decoupled: true,
            us: 20000.0,
            tflops: 0.0,
            speedup: 0.625,
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
llama-3-70b   gate+up  57344 x 8192   N=8   limit 1.500x
    cublasLt 1 of 8                            12500.0 us
    decompress, cublasLt 12 of 12              25000.0 us                              0.500x  WRONG by 5.0e-1
  * prefill_n256 x 132, split 100              12500.0 us   2.50 TB/s   75 % of read   1.000x
  * prefill_n256 x 132, split 100, dependent   10000.0 us   2.50 TB/s   75 % of read   1.250x";
        assert_eq!(row(8).to_string(), few);
    }

    #[test]
    fn lines_for_the_batch_invariant_plan() {
        let figure = row(8192).kernels[0].plain;
        let mut many = row(8192);
        many.invariant = Some(Invariant {
            plan: "a plan".to_owned(),
            plain: figure,
            dependent: Some(figure),
            deviation: 0.0,
            correct: true,
            same_bits: true,
        });
        let lines = "
    invariant                                  12500.0 us   616 TFLOP/s   1.000x
    invariant, dependent                       12500.0 us   616 TFLOP/s   1.000x
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
            split: 2,
            compressed_bytes: 1,
            figure: Figure {
                us: 25000.0,
                tbs: 1.25,
                of_read: 0.375,
                tflops: 0.0,
                speedup: 0.5,
            },
            deviation: 0.25,
            correct: false,
        };
        few.published = Some(published);
        few.published_decoupled = few.decoupled.clone();
        let line = "
    published_decompress, cublasLt 12 of 12    25000.0 us                              0.500x  WRONG by 5.0e-1
    published_gemm_n8, 2 parts of K            25000.0 us   1.25 TB/s   38 % of read   0.500x, \
                    ours plainly 2.000x of that  WRONG by 2.5e-1
";
        let text = few.to_string();
        assert!(text.contains(line), "{text}");

        let row = DecompressRow {
            layer: few.layer,
            us: 100.0,
            tbs: 2.0,
            of_copy: 0.75,
            exact: true,
            published: Some(PublishedDecompress {
                compressed_bytes: 1,
                us: 200.0,
                tbs: 1.0,
                of_copy: 0.375,
                exact: false,
            }),
        };
        let text = "\
llama-3-70b   gate+up  57344 x 8192\u{20}
  * decompress                                   100.0 us   2.00 TB/s   75 % of copy
    published_decompress                         200.0 us   1.00 TB/s   38 % of copy  NOT EXACT";
        assert_eq!(row.to_string(), text);
    }
}
