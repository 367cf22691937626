use std::fmt::{self, Display, Write};

/// Text from a file or a path as it is shown to people: what would control a terminal, end the line, or change the
/// order in which text is read, is escaped, as `\u{1b}` is.
///
/// ```
/// use zipserv::checkpoint::shown;
///
/// assert_eq!(shown("w\u{1b}[2J\nequal").to_string(), "w\\u{1b}[2J\\nequal");
/// ```
pub fn shown(text: impl Display) -> impl Display {
    Shown(text)
}

struct Shown<T>(T);

impl<T: Display> Display for Shown<T> {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(Escaping(f), "{}", self.0)
    }
}

struct Escaping<'a, 'b>(&'a mut fmt::Formatter<'b>);

impl Write for Escaping<'_, '_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for part in text.split_inclusive(is_unsafe) {
            let last = part.chars().next_back().filter(|&c| is_unsafe(c));
            let plain = last.map_or(part, |c| &part[..part.len() - c.len_utf8()]);
            self.0.write_str(plain)?;
            if let Some(c) = last {
                match c {
                    '\n' | '\r' | '\t' => write!(self.0, "{}", c.escape_default())?,
                    c => write!(self.0, "{}", c.escape_unicode())?,
                }
            }
        }
        Ok(())
    }
}

/// Control characters, separators of lines and paragraphs, and what overrides the direction of text or is not seen.
fn is_unsafe(c: char) -> bool {
    c.is_control()
        || matches!(
            c,
            '\u{61C}' | '\u{200B}'..='\u{200F}' | '\u{2028}'..='\u{202E}' | '\u{2060}'..='\u{206F}' | '\u{FEFF}'
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_text_stays_and_the_rest_is_escaped() {
        for plain in [
            "",
            "model.layers.0.weight",
            "größe",
            "重み",
            "a\\nb",
            "👍 %s",
        ] {
            assert_eq!(shown(plain).to_string(), plain);
        }
        let odd = "\u{1b}]0;x\u{7}\r\n\t\u{9b}1m\u{7f}\u{202e}\u{2066}\u{2028}\u{feff}e";
        let text = shown(odd).to_string();
        assert_eq!(
            text,
            "\\u{1b}]0;x\\u{7}\\r\\n\\t\\u{9b}1m\\u{7f}\\u{202e}\\u{2066}\\u{2028}\\u{feff}e"
        );
        assert!(!text.contains(is_unsafe));
    }
}
