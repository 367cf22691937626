use std::{
    path::{Path, PathBuf},
    str::FromStr,
};

use crate::{Error, Result, files};

/// `tokenizer.json` of a folder.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    path: PathBuf,
}

impl Tokenizer {
    /// Reads the tokenizer of a folder.
    ///
    /// # Errors
    /// If there is none, or it cannot be understood.
    pub fn open(folder: impl AsRef<Path>) -> Result<Self> {
        let path = folder.as_ref().join("tokenizer.json");
        let mut inner = tokenizers::Tokenizer::from_str(&files::read(&path)?)
            .map_err(|error| files::wrong(&path, error))?;
        // Left by training. A prompt is neither cut nor filled up.
        inner.with_padding(None);
        let untruncated = inner.with_truncation(None);
        untruncated.map_err(|error| files::wrong(&path, error))?;
        Ok(Self { inner, path })
    }

    /// The tokens of a text.
    ///
    /// `special` puts those around it that the tokenizer has for it, such as the beginning of a sequence. A chat's
    /// template has written them already.
    ///
    /// # Errors
    /// If the tokenizer finds no tokens for a part of the text.
    pub fn encode(&self, text: &str, special: bool) -> Result<Vec<u32>> {
        let encoding = self.inner.encode_fast(text, special);
        Ok(encoding
            .map_err(|error| self.wrong(error))?
            .get_ids()
            .into())
    }

    /// The text of tokens, also of special ones if they are wanted. Bytes that are no character are `\u{fffd}`.
    ///
    /// # Errors
    /// If the tokenizer cannot put them together.
    pub fn decode(&self, tokens: &[u32], special: bool) -> Result<String> {
        let text = self.inner.decode(tokens, !special);
        text.map_err(|error| self.wrong(error))
    }

    /// Text token by token.
    pub fn stream(&self) -> TextStream<'_> {
        TextStream {
            inner: self.inner.decode_stream(true),
            tokenizer: self,
        }
    }

    fn wrong(&self, error: impl ToString) -> Error {
        files::wrong(&self.path, error)
    }
}

type DecodeStream<'a> = tokenizers::tokenizer::DecodeStream<
    'a,
    tokenizers::ModelWrapper,
    tokenizers::NormalizerWrapper,
    tokenizers::PreTokenizerWrapper,
    tokenizers::PostProcessorWrapper,
    tokenizers::DecoderWrapper,
>;

/// Turns tokens into text as they come, in whole characters. Special tokens are left out.
pub struct TextStream<'a> {
    inner: DecodeStream<'a>,
    tokenizer: &'a Tokenizer,
}

impl TextStream<'_> {
    /// The text that a token completes. It is empty while the last character is not whole.
    ///
    /// # Errors
    /// If the tokenizer cannot put the tokens together.
    pub fn push(&mut self, token: u32) -> Result<String> {
        let text = self.inner.step(token);
        let text = text.map_err(|error| self.tokenizer.wrong(error))?;
        Ok(text.unwrap_or_default())
    }
}
