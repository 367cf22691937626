//! A model's text on the command line.

mod bench;
mod chat;
mod json;
mod printer;
mod session;

use std::{
    error::Error,
    fs,
    io::{self, IsTerminal},
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::ValueEnum;
use serde::Serialize;
use zipserv_engine::{
    ChatTemplate, Config, CpuExecutor, Executor, Generator, Message, Request, Sampling, Tokenizer,
    generate::Limits,
    gpu::{GpuExecutor, GpuOptions},
    perplexity::{Windows, score},
};

use self::session::Session;
use super::{Format, Outcome, console, sentence::of_file, signals, stdio};

/// Run a model: answer or continue a prompt, chat, or score a text
///
/// Runs on the CPU in FP32, or with --device cuda on a GPU. Text goes to standard output as it comes; on a terminal,
/// control characters in it are shown escaped. Without --temperature, --top-k and --top-p it is sampled as the folder's
/// generation_config.json recommends, else the most probable token is taken.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  zipserv run Qwen3-0.6B/
  zipserv run Qwen3-0.6B/ --prompt 'Hello!' --temperature 0
  echo 'def fibonacci(n):' | zipserv run Qwen3-0.6B/ --prompt - --raw --max-tokens 100
  zipserv run Qwen3-0.6B/ --perplexity book.txt --json")]
pub struct Run {
    /// A Hugging Face folder with BF16 weights, compressed or not
    #[arg(value_name = "MODEL")]
    model: PathBuf,
    /// What to answer, or to continue; - is standard input [default: a chat on the terminal]
    #[arg(short, long, value_name = "TEXT")]
    prompt: Option<String>,
    /// Put the prompt into the model's chat template, as is done if there is one; fail if there is none
    #[arg(long, conflicts_with = "raw")]
    chat: bool,
    /// Continue the prompt as it is, without the chat template
    #[arg(long, requires = "prompt")]
    raw: bool,
    /// What the model is told before the chat
    #[arg(long, value_name = "TEXT", conflicts_with = "raw")]
    system: Option<String>,
    /// The most tokens of an answer [default: 512, or as many as there is room for]
    #[arg(long, value_name = "N")]
    max_tokens: Option<usize>,
    /// What logits are divided by; 0 takes the most probable token
    #[arg(long, value_name = "T")]
    temperature: Option<f64>,
    /// Sample among so many most probable tokens; 0 for all
    #[arg(long, value_name = "K")]
    top_k: Option<usize>,
    /// Sample among the most probable tokens that reach this probability together
    #[arg(long, value_name = "P")]
    top_p: Option<f64>,
    /// The same seed gives the same text [default: a random one]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// End the answer before this text; may be given several times
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
    /// Add each token's log-probability, and those of the N most probable ones, to the JSON
    #[arg(long, value_name = "N", requires = "json")]
    logprobs: Option<usize>,
    /// Tell the perplexity of a text file, instead of text; - is standard input
    #[arg(long, value_name = "FILE", conflicts_with_all = ["prompt", "chat", "system", "logprobs", "stop"])]
    perplexity: Option<PathBuf>,
    /// Where to run it
    #[arg(long, value_enum, default_value_t)]
    device: Device,
    /// On a GPU: tokens that a sequence has room for [default: as many as the model knows]
    #[arg(long, value_name = "N")]
    context: Option<usize>,
    /// On a GPU: products may be faster where a text's last bits depend on what runs beside it then
    #[arg(long)]
    fastest: bool,
    /// GPUs, from the first one on, that share the model
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    tensor_parallel_size: u32,
    /// On a GPU: keep weights dense and multiply with cuBLASLt, to compare
    #[arg(long, conflicts_with = "fastest")]
    dense: bool,
    /// Measure prompts and steps on a GPU at several batches, and contexts of up to --context, instead of text
    #[arg(long, conflicts_with_all = ["prompt", "chat", "system", "logprobs", "stop", "perplexity"])]
    bench: bool,
    /// With --bench: sequences at a time, at most
    #[arg(long, value_name = "N", requires = "bench", default_value_t = 32)]
    sequences: usize,
    #[command(flatten)]
    format: Format,
}

/// What runs a model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Device {
    /// The CPU, in FP32
    #[default]
    Cpu,
    /// A GPU of NVIDIA's, from compressed weights
    Cuda,
}

#[derive(Serialize)]
struct PerplexityJson {
    tokens: usize,
    perplexity: f64,
    log_probabilities: Vec<f64>,
}

impl Run {
    pub fn run(&self) -> Outcome {
        let on_gpu = self.bench || self.device == Device::Cuda;
        if !on_gpu && (self.dense || self.tensor_parallel_size > 1) {
            return Err("--dense and --tensor-parallel-size need --device cuda".into());
        }
        if self.bench {
            // Room is taken for each of what is measured.
            let options = GpuOptions {
                context: Some(1),
                ..self.gpu(1)
            };
            let most = (self.sequences, self.context);
            let sampling = Sampling {
                temperature: self.temperature.unwrap_or(0.0),
                top_k: self.top_k.filter(|&k| k > 0),
                top_p: self.top_p.unwrap_or(1.0),
                seed: self.seed.unwrap_or(0),
            };
            sampling.check()?;
            if self.format.json && sampling.temperature > 0.0 {
                return Err("--bench --json measures steps at a temperature of 0".into());
            }
            return bench::bench(&self.model, &options, most, sampling, &self.format);
        }
        let config = Config::open(&self.model)?;
        let tokenizer = Tokenizer::open(&self.model)?;
        if let Some(path) = &self.perplexity {
            let text = read(path)?;
            let mut executor = self.executor()?;
            return self.score(&mut *executor, &tokenizer.encode(&text, true)?);
        }
        let prompt = self.prompt()?;
        // All that can be refused comes before the weights, which take their time.
        let template = match self.raw {
            true => None,
            false => ChatTemplate::open(&self.model)?,
        };
        if template.is_none() && (self.chat || self.system.is_some() || prompt.is_none()) {
            let model = stdio::name(&self.model);
            let why = "there is no chat template; --prompt TEXT --raw continues a text";
            return Err(format!("{model}: {why}").into());
        }
        let request = Request {
            sampling: self.sampling()?,
            stop: self.stop.clone(),
            end: config.eos,
            log_probabilities: self.logprobs,
            ..Request::default()
        };
        let mut executor = self.executor()?;
        signals::catch();
        let system = self.system.iter();
        let mut session = Session {
            context: executor.context(),
            generator: Generator::new(&mut *executor, &tokenizer, self.limits()),
            tokenizer: &tokenizer,
            template: template.as_ref(),
            messages: system.map(|text| Message::new("system", text)).collect(),
            request,
            max_tokens: self.max_tokens,
            json: self.format.json,
        };
        match prompt {
            Some(prompt) => session.answer(prompt)?,
            None => chat::chat(&mut session)?,
        }
        Ok(ExitCode::SUCCESS)
    }

    fn executor(&self) -> Result<Box<dyn Executor>, Box<dyn Error>> {
        Ok(match self.device {
            Device::Cpu => Box::new(CpuExecutor::open(&self.model)?),
            Device::Cuda => Box::new(GpuExecutor::open(&self.model, &self.gpu(1))?),
        })
    }

    fn limits(&self) -> Limits {
        let limits = Limits::default();
        match self.device {
            Device::Cpu => limits,
            // Weights are read once for all tokens of a chunk.
            Device::Cuda => Limits {
                chunk: 2048,
                ..limits
            },
        }
    }

    fn gpu(&self, sequences: usize) -> GpuOptions {
        GpuOptions {
            devices: (0..self.tensor_parallel_size).collect(),
            sequences,
            context: self.context,
            fastest: self.fastest,
            dense: self.dense,
        }
    }

    /// What is to be answered, if it is not typed into a chat.
    fn prompt(&self) -> Result<Option<String>, Box<dyn Error>> {
        match &self.prompt {
            Some(dash) if dash == "-" => read(Path::new(dash)).map(Some),
            Some(prompt) => Ok(Some(prompt.clone())),
            None if self.format.json => {
                Err("--json needs --prompt TEXT or --perplexity FILE".into())
            }
            None if io::stdin().is_terminal() => Ok(None),
            None => Err(
                "there is no terminal to chat on; --prompt - reads the prompt from standard input"
                    .into(),
            ),
        }
    }

    fn sampling(&self) -> Result<Sampling, Box<dyn Error>> {
        let recommended = Sampling::open(&self.model)?;
        let sampling = Sampling {
            temperature: self.temperature.unwrap_or(recommended.temperature),
            top_k: match self.top_k {
                Some(0) => None,
                given => given.or(recommended.top_k),
            },
            top_p: self.top_p.unwrap_or(recommended.top_p),
            seed: self.seed.unwrap_or_else(|| rand::random::<u32>().into()),
        };
        sampling.check()?;
        if sampling.temperature == 0.0 && (self.top_k.is_some() || self.top_p.is_some()) {
            console::note("--top-k and --top-p change nothing at a temperature of 0");
        }
        Ok(sampling)
    }

    fn score(&self, executor: &mut dyn Executor, tokens: &[u32]) -> Outcome {
        let windows = Windows::of(executor);
        let score = score(executor, tokens, windows)?;
        let (tokens, perplexity) = (tokens.len(), score.perplexity());
        match self.format.json {
            true => console::print_json(&PerplexityJson {
                tokens,
                perplexity,
                log_probabilities: score.log_probabilities,
            })?,
            false => console::print(format_args!(
                "perplexity {perplexity:.4} of {tokens} tokens"
            ))?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// A text file, or what comes from standard input.
fn read(path: &Path) -> Result<String, Box<dyn Error>> {
    let text = match stdio::is_dash(path) {
        true => io::read_to_string(io::stdin()),
        false => fs::read_to_string(path),
    };
    text.map_err(|error| of_file(path, &error).into())
}
