//! Sizes as people write them.

/// Reads `64MB`, `1.5GiB` or a plain number of bytes.
pub fn parse(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match text[digits.len()..].to_ascii_lowercase().as_str() {
        "" | "b" => 1.0,
        "kb" => 1e3,
        "mb" => 1e6,
        "gb" => 1e9,
        "kib" => 1024.0,
        "mib" => 1048576.0,
        "gib" => 1073741824.0,
        unit => {
            return Err(format!(
                "unknown unit `{unit}`; try kB, MB, GB, KiB, MiB or GiB"
            ));
        }
    };
    match digits.trim().parse::<f64>() {
        Ok(number) if (0.0..1e15).contains(&(number * unit)) => Ok((number * unit) as u64),
        _ => Err("not a size, such as 64MB".into()),
    }
}
