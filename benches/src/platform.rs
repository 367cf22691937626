//! What a report says about where and when it was made.

use std::time::{SystemTime, UNIX_EPOCH};

pub use zipserv::gpu::driver;

/// Now, as in `2026-01-31T12:00:00Z`.
pub fn date() -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    format_date(now.map_or(0, |elapsed| elapsed.as_secs()))
}

fn format_date(seconds: u64) -> String {
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    // Years begin in March here, so that leap days come last; an era is 400 of them. 1970 is
    // 719,468 days after the first.
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (year, month) = match month {
        0..10 => (400 * era + year, month + 3),
        _ => (400 * era + year + 1, month - 9),
    };
    let (hour, minute, second) = (second / 3_600, second / 60 % 60, second % 60);
    format!("{year}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::format_date;

    #[test]
    fn dates() {
        assert_eq!(format_date(0), "1970-01-01T00:00:00Z");
        assert_eq!(format_date(951_782_399), "2000-02-28T23:59:59Z");
        assert_eq!(format_date(951_782_400), "2000-02-29T00:00:00Z");
        assert_eq!(format_date(1_767_225_599), "2025-12-31T23:59:59Z");
    }
}
