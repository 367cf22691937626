//! What a report says about where and when it was made.

use jiff::Timestamp;
pub use zipserv::gpu::driver;

/// Now, as in `2026-01-31T12:00:00Z`.
pub fn date() -> String {
    format!("{:.0}", Timestamp::now())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_of_utc_and_have_no_fractions_of_seconds() {
        let date = date();
        assert_eq!(date.len(), "2026-01-31T12:00:00Z".len(), "{date}");
        assert!(
            date.ends_with('Z') && date.parse::<Timestamp>().is_ok(),
            "{date}"
        );
    }
}
