//! Durations as Go prints and reads them, which is how they stand in PD's configuration.

use std::time::Duration;

/// `1h2m3.5s`, `100ms`, `0s`.
pub fn print(duration: Duration) -> String {
    let nanos = duration.as_nanos();
    let (value, unit) = match nanos {
        0 => return String::from("0s"),
        1..1_000 => return format!("{nanos}ns"),
        1_000..1_000_000 => (decimal(nanos, 1_000), "µs"),
        1_000_000..1_000_000_000 => (decimal(nanos, 1_000_000), "ms"),
        _ => (decimal(nanos % 60_000_000_000, 1_000_000_000), "s"),
    };
    match (duration.as_secs() / 3600, duration.as_secs() / 60 % 60) {
        (0, 0) => format!("{value}{unit}"),
        (0, minutes) => format!("{minutes}m{value}{unit}"),
        (hours, minutes) => format!("{hours}h{minutes}m{value}{unit}"),
    }
}

/// `nanos / unit` with as many digits behind the point as it needs.
fn decimal(nanos: u128, unit: u128) -> String {
    let width = unit.ilog10() as usize;
    let fraction = format!("{:0width$}", nanos % unit);
    match fraction.trim_end_matches('0') {
        "" => (nanos / unit).to_string(),
        fraction => format!("{}.{fraction}", nanos / unit),
    }
}

/// Reads what [`print`] writes, and other mixtures of units such as `1.5h`; `None` for what is no duration.
pub fn parse(text: &str) -> Option<Duration> {
    let mut rest = text.trim();
    if rest == "0" {
        return Some(Duration::ZERO);
    }
    let mut sum = 0.0_f64;
    while !rest.is_empty() || sum == 0.0 {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let value: f64 = rest[..digits].parse().ok()?;
        let tail = &rest[digits..];
        let end = tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len());
        let unit = match &tail[..end] {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" | "µs" => 1e-6,
            "ns" => 1e-9,
            _ => return None,
        };
        sum += value * unit;
        rest = &tail[end..];
        if rest.is_empty() {
            break;
        }
    }
    Duration::try_from_secs_f64(sum).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_written_and_read_as_go_does() {
        for (nanos, text) in [
            (0, "0s"),
            (1_800_000_000_000, "30m0s"),
            (3_600_000_000_000, "1h0m0s"),
            (100_000_000, "100ms"),
            (1_500_000, "1.5ms"),
            (3_723_500_000_000, "1h2m3.5s"),
            (7, "7ns"),
        ] {
            assert_eq!(print(Duration::from_nanos(nanos)), text);
            assert_eq!(parse(text), Some(Duration::from_nanos(nanos)), "{text}");
        }
        assert_eq!(parse("1.5h"), Some(Duration::from_secs(5400)));
        assert_eq!(parse("0"), Some(Duration::ZERO));
        for bad in ["", "5", "h", "1d", "-1s", "1s2", "1..s"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }
}
