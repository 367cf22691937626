/// Holds back text that may be the beginning of a stop string.
///
/// What it gives does not depend on how the text is cut: of several stop strings the one counts that is whole first.
pub(crate) struct StopStrings<'a> {
    stops: &'a [String],
    held: String,
}

impl<'a> StopStrings<'a> {
    pub fn new(stops: &'a [String]) -> Self {
        Self {
            stops,
            held: String::new(),
        }
    }

    /// The text that is certain now, and whether a stop string follows it.
    pub fn push(&mut self, text: &str) -> (String, bool) {
        self.held += text;
        let found = self.stops.iter().filter_map(|stop| {
            let start = self.held.find(stop)?;
            Some((start + stop.len(), start))
        });
        if let Some((_, start)) = found.min() {
            self.held.truncate(start);
            return (self.finish(), true);
        }
        let kept = self.stops.iter().map(|stop| begun(&self.held, stop)).max();
        let certain = self.held.len() - kept.unwrap_or(0);
        let rest = self.held.split_off(certain);
        (std::mem::replace(&mut self.held, rest), false)
    }

    /// What is held back: no more text comes.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

/// Bytes at the end of a text that a stop string begins with.
fn begun(text: &str, stop: &str) -> usize {
    let parts = stop.char_indices().map(|(length, _)| length).rev();
    let mut parts = parts.filter(|&length| text.ends_with(&stop[..length]));
    parts.next().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The text before the stop string that is whole first.
    fn plain(text: &str, stops: &[String]) -> (String, bool) {
        for (end, _) in text.char_indices().chain([(text.len(), ' ')]) {
            let matching = stops.iter().filter(|stop| text[..end].ends_with(*stop));
            if let Some(longest) = matching.max_by_key(|stop| stop.len()) {
                return (text[..end - longest.len()].into(), true);
            }
        }
        (text.into(), false)
    }

    #[test]
    fn cuts_do_not_matter() {
        let stops = ["ab", "bé", "aab", "cc", "abcd", "ü"].map(String::from);
        let letters = ["a", "b", "c", "é", "d", "aa", "ca"];
        let mut state = 1usize;
        let mut next = |below: usize| {
            state = state
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            (state >> 33) % below
        };
        let mut stopped_ones = 0;
        for _ in 0..2000 {
            let count = 1 + next(stops.len());
            let parts: Vec<_> = (0..next(8)).map(|_| letters[next(letters.len())]).collect();
            let mut stop = StopStrings::new(&stops[..count]);
            let (mut text, mut stopped) = (String::new(), false);
            for part in &parts {
                let (certain, is_stopped) = stop.push(part);
                text += &certain;
                // What is certain is never taken back.
                assert!(plain(&parts.concat(), &stops[..count]).0.starts_with(&text));
                if is_stopped {
                    stopped = true;
                    break;
                }
            }
            text += &stop.finish();
            assert_eq!(
                (text, stopped),
                plain(&parts.concat(), &stops[..count]),
                "{parts:?}"
            );
            stopped_ones += usize::from(stopped);
        }
        assert!((200..1800).contains(&stopped_ones), "{stopped_ones}");
    }

    #[test]
    fn only_what_may_begin_a_stop_string_is_held() {
        let stops = ["\n\nUser:".to_string()];
        let mut stop = StopStrings::new(&stops);
        assert_eq!(stop.push("Yes.\n"), ("Yes.".into(), false));
        assert_eq!(stop.push("No.\n\nUse"), ("\nNo.".into(), false));
        assert_eq!(stop.push("d"), ("\n\nUsed".into(), false));
        assert_eq!(stop.finish(), "");
    }
}
