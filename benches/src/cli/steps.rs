use std::process::ExitCode;

use zipserv::gpu::Device;
use zipserv_bench::{Config, Progress, steps};

use super::{Layers, Outcome, Run, console};

/// Time the plan's kernel on 1 to 1,024 tokens in small steps, and say which is the largest
#[derive(clap::Args)]
pub struct Steps {
    /// [default layers: three of the first model]
    #[command(flatten)]
    layers: Layers,
    #[command(flatten)]
    run: Run,
}

impl Steps {
    pub fn run(&self) -> Outcome {
        let kept = self.run.kept()?;
        let device = Device::new(0)?;
        let config = Config {
            models: self.layers.shapes.clone(),
            layers: self.layers.layers.clone(),
            seed: self.run.seed,
            commit: self.run.commit(true),
            ..Config::default()
        };
        let bar = console::bar("steps");
        let mut printed = Ok(());
        let steps = steps(&device, &config, &mut |progress| match progress {
            Progress::Layers(layers) => bar.set_length(layers as u64),
            Progress::Row(row) => {
                bar.inc(1);
                if !kept.is_printed() && printed.is_ok() {
                    printed = bar.suspend(|| console::print(row));
                }
            }
            Progress::Start { .. } => {}
        });
        bar.finish_and_clear();
        kept.keep(&steps?)?;
        printed?;
        Ok(ExitCode::SUCCESS)
    }
}
