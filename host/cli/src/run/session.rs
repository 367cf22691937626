use std::error::Error;

use zipserv_engine::{
    ChatTemplate, Generator, Message, Request, Tokenizer,
    generate::{FinishReason, Generation},
};

use super::{
    super::{console, signals},
    json::GenerationJson,
    printer::Printer,
};

/// Tokens of an answer where it is not said.
const MAX_TOKENS: usize = 512;

/// A model and what it was told so far.
pub struct Session<'a> {
    pub generator: Generator<'a>,
    pub tokenizer: &'a Tokenizer,
    /// Without one a prompt is continued.
    pub template: Option<&'a ChatTemplate>,
    pub messages: Vec<Message>,
    /// All but the prompt.
    pub request: Request,
    pub max_tokens: Option<usize>,
    /// Tokens that a sequence can have.
    pub context: usize,
    pub json: bool,
}

impl Session<'_> {
    /// Prints what the model says to `prompt`.
    pub fn answer(&mut self, prompt: String) -> Result<(), Box<dyn Error>> {
        let prompt = match self.template {
            Some(template) => {
                self.messages.push(Message::new("user", prompt));
                let text = template.render(&self.messages, true)?;
                self.tokenizer.encode(&text, false)?
            }
            None => self.tokenizer.encode(&prompt, true)?,
        };
        let room = self.context.saturating_sub(prompt.len());
        let max_tokens = self.max_tokens.unwrap_or(MAX_TOKENS.min(room.max(1)));
        self.request.max_tokens = Some(max_tokens);
        self.request.prompt = prompt;

        let mut printer = Printer::new(!self.json);
        let requests = std::slice::from_ref(&self.request);
        let generations = self.generator.generate(requests, &mut printer);
        let times = printer.finish()?;
        let [generation] = <[Generation; 1]>::try_from(generations?).expect("one for each request");
        if signals::received().is_some() {
            return Err("cancelled".into());
        }
        if self.json {
            console::print_json(&GenerationJson::new(
                &self.request,
                &generation,
                &times,
                self.tokenizer,
            )?)?;
        }
        let why = match generation.finish_reason {
            FinishReason::Length => format!(", stopped after {max_tokens}"),
            _ => String::new(),
        };
        let asked = self.request.prompt.len();
        console::note(format_args!("{times}, of a prompt of {asked} tokens{why}"));
        self.messages
            .push(Message::new("assistant", generation.text));
        Ok(())
    }
}
