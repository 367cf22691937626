//! A chat on the terminal.

use std::error::Error;

use rustyline::{Config, Editor, error::ReadlineError, history::MemHistory};

use super::{super::console, session::Session};

/// Answers line after line, until there is no more.
pub fn chat(session: &mut Session) -> Result<(), Box<dyn Error>> {
    console::note("a line is a message; Ctrl-D ends the chat");
    let history = MemHistory::new();
    let mut editor: Editor<(), _> = Editor::with_history(Config::default(), history)?;
    loop {
        let line = match editor.readline("> ") {
            Ok(line) => line,
            Err(ReadlineError::Eof | ReadlineError::Interrupted) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        if line.trim().is_empty() {
            continue;
        }
        editor.add_history_entry(&line)?;
        session.answer(line)?;
    }
}
