use serde::Serialize;
use zipserv_engine::{
    Request, Result, Tokenizer,
    generate::{FinishReason, Generation, Token},
};

use super::printer::Times;

/// What was generated.
#[derive(Serialize)]
pub struct GenerationJson<'a> {
    text: &'a str,
    finish_reason: &'static str,
    seed: u64,
    prompt_tokens: usize,
    /// Numbers of the tokens that were generated.
    tokens: Vec<u32>,
    first_token_seconds: f64,
    /// After the first token.
    tokens_per_second: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    log_probabilities: Option<Vec<TokenJson>>,
}

#[derive(Serialize)]
struct TokenJson {
    #[serde(flatten)]
    token: ProbabilityJson,
    most_probable: Vec<ProbabilityJson>,
}

#[derive(Serialize)]
struct ProbabilityJson {
    id: u32,
    token: String,
    log_probability: f64,
}

impl<'a> GenerationJson<'a> {
    pub fn new(
        request: &Request,
        generation: &'a Generation,
        times: &Times,
        tokenizer: &Tokenizer,
    ) -> Result<Self> {
        let tokens = &generation.tokens;
        let log_probabilities = request.log_probabilities.map(|_| {
            let tokens = tokens.iter().map(|token| TokenJson::new(token, tokenizer));
            tokens.collect()
        });
        Ok(Self {
            text: &generation.text,
            finish_reason: match generation.finish_reason {
                FinishReason::Stop => "stop",
                FinishReason::Length => "length",
                FinishReason::Cancelled => "cancelled",
            },
            seed: request.sampling.seed,
            prompt_tokens: request.prompt.len(),
            tokens: tokens.iter().map(|token| token.id).collect(),
            first_token_seconds: times.first.as_secs_f64(),
            tokens_per_second: times.tokens_per_second(),
            log_probabilities: log_probabilities.transpose()?,
        })
    }
}

impl TokenJson {
    fn new(token: &Token, tokenizer: &Tokenizer) -> Result<Self> {
        let of = |&(id, log_probability): &(u32, f64)| {
            Ok(ProbabilityJson {
                id,
                token: tokenizer.decode(&[id], true)?,
                log_probability,
            })
        };
        let chosen = token.log_probability.unwrap_or(f64::NAN);
        Ok(Self {
            token: of(&(token.id, chosen))?,
            most_probable: token.most_probable.iter().map(of).collect::<Result<_>>()?,
        })
    }
}
