//! A server's own counters, from its `/metrics` page.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

/// How long a page may take. A core that serves 256 requests at once answers within milliseconds.
const PAGE_TIME: Duration = Duration::from_secs(10);

/// Counters by name, summed over cores and all other labels.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Counters(BTreeMap<String, f64>);

impl Counters {
    /// Reads the Prometheus text format; comments and what it does not understand are left out.
    pub(crate) fn parse(text: &str) -> Counters {
        let mut sums = BTreeMap::new();
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            if let Some((name, value)) = parse_line(line) {
                *sums.entry(name.to_owned()).or_insert(0.0) += value;
            }
        }
        Counters(sums)
    }

    /// The counter `name`; 0 if the server does not have it.
    pub(crate) fn value(&self, name: &str) -> f64 {
        self.0.get(name).copied().unwrap_or(0.0)
    }

    /// How far `name` has come since `earlier`.
    pub(crate) fn since(&self, earlier: &Counters, name: &str) -> f64 {
        (self.value(name) - earlier.value(name)).max(0.0)
    }

    /// Asks the server for its page.
    ///
    /// # Errors
    /// In words, if it does not answer 200 in time.
    pub(crate) async fn fetch(address: SocketAddr, tls: Option<&net::Tls>) -> Result<Counters, String> {
        let page = net::fetch(&address.to_string(), tls, ("GET", "/metrics"), b"", PAGE_TIME).await;
        let page = page.map_err(|error| format!("{address}/metrics: {error}"))?;
        match page.status {
            200 => Ok(Counters::parse(&String::from_utf8_lossy(&page.body))),
            status => Err(format!("{address}/metrics answers {status}")),
        }
    }
}

/// `name{labels} value`, where the labels may be missing and may hold spaces.
fn parse_line(line: &str) -> Option<(&str, f64)> {
    let (name, value) = match line.split_once('{') {
        Some((name, rest)) => (name, rest.rsplit_once('}')?.1),
        None => line.split_once(' ')?,
    };
    let value = value.split_ascii_whitespace().next()?.parse().ok()?;
    Some((name.trim(), value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_summed_over_their_labels() {
        let page =
            "# HELP x y\nx{core=\"0\"} 3\nx{core=\"1\",class=\"a b } c\"} 4\ny 2.5\nz{core=\"0\"} oops\n\nw 1 1700\n";
        let counters = Counters::parse(page);
        assert_eq!(counters.value("x"), 7.0);
        assert_eq!(counters.value("y"), 2.5);
        assert_eq!(counters.value("z"), 0.0);
        assert_eq!(counters.value("w"), 1.0);
        assert_eq!(counters.value("missing"), 0.0);
    }

    #[test]
    fn a_counter_that_began_anew_is_no_negative_number() {
        let (before, after) = (Counters::parse("x 9"), Counters::parse("x 3\ny 4"));
        assert_eq!(after.since(&before, "x"), 0.0);
        assert_eq!(after.since(&before, "y"), 4.0);
    }
}
