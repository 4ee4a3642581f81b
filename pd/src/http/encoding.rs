//! Queries, keys and quantities in the forms that PD's users know.

use crate::schedule::duration;
use base::UnixTime;
use bytes::Bytes;
use std::time::Duration;

/// The arguments behind a path's question mark, decoded.
pub(super) struct Query(Vec<(String, Vec<u8>)>);

impl Query {
    /// Reads `a=1&b=%00`.
    pub(super) fn parse(text: &str) -> Query {
        let pairs = text.split('&').filter(|pair| !pair.is_empty()).map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            (String::from_utf8_lossy(&unescape(name, true)).into_owned(), unescape(value, true))
        });
        Query(pairs.collect())
    }

    /// The bytes of an argument.
    pub(super) fn bytes(&self, name: &str) -> Option<&[u8]> {
        self.all(name).next()
    }

    /// Every value of an argument.
    pub(super) fn all(&self, name: &str) -> impl Iterator<Item = &[u8]> {
        self.0.iter().filter(move |(other, _)| other == name).map(|(_, value)| value.as_slice())
    }

    /// The text of an argument.
    pub(super) fn text(&self, name: &str) -> Option<&str> {
        std::str::from_utf8(self.bytes(name)?).ok()
    }

    /// A key: raw bytes, or hexadecimal digits with `format=hex`.
    pub(super) fn key(&self, name: &str) -> Option<Bytes> {
        let bytes = self.bytes(name).unwrap_or_default();
        if self.text("format") == Some("hex") { unhex(bytes) } else { Some(Bytes::copy_from_slice(bytes)) }
    }
}

/// Decodes percent escapes, and `+` as a space where `plus` says so. What is no escape stays as it is.
pub(super) fn unescape(text: &str, plus: bool) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let escaped = tail.get(..2).filter(|_| *first == b'%').and_then(unhex);
        match escaped {
            Some(byte) => {
                out.extend_from_slice(&byte);
                rest = &tail[2..];
            }
            None => {
                out.push(if plus && *first == b'+' { b' ' } else { *first });
                rest = tail;
            }
        }
    }
    out
}

/// Upper-case hexadecimal digits.
pub(super) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    let mut out = String::with_capacity(2 * bytes.len());
    bytes.iter().for_each(|byte| write!(out, "{byte:02X}").expect("writing to a String cannot fail"));
    out
}

/// Bytes of hexadecimal digits in either case.
pub(super) fn unhex(digits: &[u8]) -> Option<Bytes> {
    let digit = |digit: u8| (digit as char).to_digit(16);
    let pairs = digits.chunks(2).map(|pair| match pair {
        [high, low] => u8::try_from(digit(*high)? << 4 | digit(*low)?).ok(),
        _ => None,
    });
    pairs.collect::<Option<Vec<u8>>>().map(Bytes::from)
}

/// `1.8TiB`, four significant digits.
pub(super) fn byte_size(bytes: u64) -> String {
    const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let (mut value, mut unit) = (bytes as f64, 0);
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    let digits = if value >= 1000.0 {
        0
    } else if value >= 100.0 {
        1
    } else if value >= 10.0 {
        2
    } else {
        3
    };
    let text = format!("{value:.digits$}");
    let text = if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
    format!("{text}{}", UNITS[unit])
}

/// `1h2m3.5s`, as Go prints a duration.
pub(super) fn go_duration(nanos: u64) -> String {
    duration::print(Duration::from_nanos(nanos))
}

/// `2026-08-05T12:00:00.000000001Z`.
///
/// Source: days to a civil date by Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms".
pub(super) fn rfc3339(time: UnixTime) -> String {
    let (days, second) = (time.seconds() / 86_400, time.seconds() % 86_400);
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    let nanos = time.0 % 1_000_000_000;
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{nanos:09}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_look_like_pds() {
        let sizes =
            [(0, "0B"), (1023, "1023B"), (1536, "1.5KiB"), (100 << 30, "100GiB"), (1_979_120_929_996, "1.8TiB")];
        for (bytes, text) in sizes {
            assert_eq!(byte_size(bytes), text);
        }
        assert_eq!(go_duration(3_723_500_000_000), "1h2m3.5s");
        assert_eq!(go_duration(0), "0s");
        assert_eq!(rfc3339(UnixTime(951_782_400_000_000_001)), "2000-02-29T00:00:00.000000001Z");
        assert_eq!(rfc3339(UnixTime(0)), "1970-01-01T00:00:00.000000000Z");
    }

    #[test]
    fn keys_survive_escapes_of_every_kind() {
        let query = Query::parse("key=%00a+%2B%zz&format=&empty&n=12");
        assert_eq!(query.bytes("key"), Some(&b"\0a +%zz"[..]));
        assert_eq!((query.text("n"), query.bytes("empty"), query.bytes("none")), (Some("12"), Some(&b""[..]), None));
        assert_eq!(Query::parse("format=hex&key=7A00fF").key("key"), Some(Bytes::from_static(b"z\0\xff")));
        assert_eq!(Query::parse("format=hex&key=7A0").key("key"), None);
        assert_eq!(unescape("a+b%", false), b"a+b%");
        assert_eq!(hex(b"z\xff"), "7AFF");
    }
}
