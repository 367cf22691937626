//! Between text and tokens: the tokenizer of a folder, and the template that its chats are written in.

mod template;
mod tokenizer;

pub use template::{ChatTemplate, Message};
pub use tokenizer::{TextStream, Tokenizer};
