//! The `grpc-timeout` header: at most eight digits and a unit.

use std::time::Duration;

/// Reads a `grpc-timeout` value such as `200m`. `None` if it is malformed.
pub(crate) fn parse(value: &[u8]) -> Option<Duration> {
    let (&unit, digits) = value.split_last()?;
    if digits.is_empty() || digits.len() > 8 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let amount = digits.iter().fold(0u64, |sum, digit| sum * 10 + u64::from(digit - b'0'));
    match unit {
        b'H' => Some(Duration::from_secs(amount * 3600)),
        b'M' => Some(Duration::from_secs(amount * 60)),
        b'S' => Some(Duration::from_secs(amount)),
        b'm' => Some(Duration::from_millis(amount)),
        b'u' => Some(Duration::from_micros(amount)),
        b'n' => Some(Duration::from_nanos(amount)),
        _ => None,
    }
}

/// Writes `timeout` as a `grpc-timeout` value, in the finest unit that holds it; rounded up, so that a peer never
/// gives up before we do.
pub(crate) fn format(timeout: Duration) -> String {
    const LARGEST: u128 = 99_999_999;
    let units: [(u128, char); 6] = [
        (1, 'n'),
        (1_000, 'u'),
        (1_000_000, 'm'),
        (1_000_000_000, 'S'),
        (60_000_000_000, 'M'),
        (3_600_000_000_000, 'H'),
    ];
    for (nanos, unit) in units {
        let amount = timeout.as_nanos().div_ceil(nanos);
        if amount <= LARGEST {
            return format!("{amount}{unit}");
        }
    }
    format!("{LARGEST}H")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_unit_is_read() {
        assert_eq!(parse(b"2S"), Some(Duration::from_secs(2)));
        assert_eq!(parse(b"200m"), Some(Duration::from_millis(200)));
        assert_eq!(parse(b"7u"), Some(Duration::from_micros(7)));
        assert_eq!(parse(b"7n"), Some(Duration::from_nanos(7)));
        assert_eq!(parse(b"3M"), Some(Duration::from_secs(180)));
        assert_eq!(parse(b"99999999H"), Some(Duration::from_secs(99_999_999 * 3600)));
    }

    #[test]
    fn malformed_values_are_refused() {
        for bad in ["", "S", "1", "1s", "-1S", "1 S", "123456789S", "1.5S", "é"] {
            assert_eq!(parse(bad.as_bytes()), None, "{bad:?}");
        }
    }

    #[test]
    fn what_is_written_reads_back_no_shorter() {
        for nanos in [0u64, 1, 99_999_999, 100_000_000, 1_500_000_000, 86_400_000_000_000, u64::MAX] {
            let timeout = Duration::from_nanos(nanos);
            let text = format(timeout);
            let back = parse(text.as_bytes()).expect("own format");
            assert!(back >= timeout, "{text}");
            assert!(text.len() <= 9, "{text}");
        }
        assert_eq!(format(Duration::from_secs(2)), "2000000u");
    }
}
