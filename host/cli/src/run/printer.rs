//! Text as it comes.

use std::{
    fmt::{self, Display, Write as _},
    io::{self, IsTerminal, Write},
    time::{Duration, Instant},
};

use zipserv_engine::generate::Listener;

use super::super::{console, signals};

/// Prints text to standard output as it is generated, and times it.
pub struct Printer {
    /// Nothing is printed if not.
    is_wanted: bool,
    is_terminal: bool,
    start: Instant,
    /// When the first token came, and the last, since the start.
    first: Option<Duration>,
    last: Duration,
    tokens: usize,
    ends_line: bool,
    /// Why there is no use in going on.
    failed: Option<io::Error>,
}

/// How long it took.
pub struct Times {
    pub tokens: usize,
    /// Until the first token.
    pub first: Duration,
    /// From the first token to the last.
    pub rest: Duration,
}

impl Printer {
    pub fn new(is_wanted: bool) -> Self {
        Self {
            is_wanted,
            is_terminal: io::stdout().is_terminal(),
            start: Instant::now(),
            first: None,
            last: Duration::ZERO,
            tokens: 0,
            ends_line: true,
            failed: None,
        }
    }

    /// Ends the line, if it is that of a terminal.
    pub fn finish(mut self) -> io::Result<Times> {
        if self.is_wanted && self.is_terminal && !self.ends_line {
            self.print("\n");
        }
        let first = self.first.unwrap_or_default();
        match self.failed {
            // The reader has seen enough.
            Some(error) if error.kind() != io::ErrorKind::BrokenPipe => {
                Err(console::of_stdout(error))
            }
            _ => Ok(Times {
                tokens: self.tokens,
                first,
                rest: self.last - first,
            }),
        }
    }

    fn print(&mut self, text: &str) {
        let mut stdout = io::stdout().lock();
        let written = match self.is_terminal {
            true => write!(stdout, "{}", Harmless(text)),
            false => stdout.write_all(text.as_bytes()),
        };
        if let Err(error) = written.and_then(|()| stdout.flush()) {
            self.failed = Some(error);
        }
    }
}

impl Listener for Printer {
    fn token(&mut self, _: usize, text: &str) {
        self.last = self.start.elapsed();
        self.first.get_or_insert(self.last);
        self.tokens += 1;
        if self.is_wanted && !text.is_empty() {
            self.print(text);
            self.ends_line = text.ends_with('\n');
        }
    }

    fn is_cancelled(&self) -> bool {
        signals::received().is_some() || self.failed.is_some()
    }
}

impl Times {
    /// Tokens a second after the first one, if there were more.
    pub fn tokens_per_second(&self) -> Option<f64> {
        let tokens = self.tokens.checked_sub(1).filter(|&tokens| tokens > 0)?;
        Some(tokens as f64 / self.rest.as_secs_f64().max(1e-9))
    }
}

impl Display for Times {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self.tokens {
            1 => write!(f, "1 token")?,
            tokens => write!(f, "{tokens} tokens")?,
        }
        if let Some(rate) = self.tokens_per_second() {
            write!(f, ", {rate:.2} tokens a second")?;
        }
        write!(f, "; the first after {:.2} s", self.first.as_secs_f64())
    }
}

/// Text of several lines without what would control a terminal or change the order in which it is read; what joins
/// letters and emojis stays.
struct Harmless<'a>(&'a str);

impl Display for Harmless<'_> {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        for c in self.0.chars() {
            match c {
                '\n' | '\t' => f.write_char(c)?,
                '\u{202A}'..='\u{202E}' | '\u{2066}'..='\u{2069}' => {
                    write!(f, "{}", c.escape_unicode())?
                }
                c if c.is_control() => write!(f, "{}", c.escape_unicode())?,
                c => f.write_char(c)?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_cannot_control_a_terminal() {
        let shown = |text| Harmless(text).to_string();
        for plain in [
            "",
            "a\n\tb",
            "größe 重み",
            "👨\u{200d}👩\u{200d}👧",
            "می\u{200c}خواهم",
        ] {
            assert_eq!(shown(plain), plain);
        }
        assert_eq!(
            shown("\u{1b}[2J\r\u{7}\u{9b}1m\u{202e}"),
            r"\u{1b}[2J\u{d}\u{7}\u{9b}1m\u{202e}"
        );
    }

    #[test]
    fn times_are_told() {
        let mut times = Times {
            tokens: 1,
            first: Duration::from_millis(250),
            rest: Duration::ZERO,
        };
        assert_eq!(times.to_string(), "1 token; the first after 0.25 s");
        times.tokens = 11;
        times.rest = Duration::from_secs(4);
        assert_eq!(
            times.to_string(),
            "11 tokens, 2.50 tokens a second; the first after 0.25 s"
        );
    }
}
