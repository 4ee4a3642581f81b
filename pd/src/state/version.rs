//! Versions of stores, as far as PD compares them.

/// A semantic version without its build part.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// Breaking changes.
    pub major: u64,
    /// Features.
    pub minor: u64,
    /// Repairs.
    pub patch: u64,
    /// Whether it is a release: a pre-release sorts before it.
    pub released: bool,
    /// The name of the pre-release, such as `beta.2`.
    pub pre: String,
}

impl Version {
    /// What a store that tells no version counts as.
    pub const BASE: Version = Version::new(1, 0, 0);

    /// A released version.
    pub const fn new(major: u64, minor: u64, patch: u64) -> Version {
        Version { major, minor, patch, released: true, pre: String::new() }
    }

    /// Reads `8.5.0`, `v8.5.0`, `9.0.0-beta.2`; empty counts as 1.0.0. `None` for anything else.
    pub fn parse(text: &str) -> Option<Version> {
        if text.is_empty() {
            return Some(Version::BASE);
        }
        let text = text.strip_prefix('v').unwrap_or(text);
        let text = text.split_once('+').map_or(text, |(version, _)| version);
        let (numbers, pre) = text.split_once('-').unwrap_or((text, ""));
        let mut numbers = numbers.split('.').map(|number| number.parse::<u64>());
        let (major, minor, patch) = (numbers.next()?.ok()?, numbers.next()?.ok()?, numbers.next()?.ok()?);
        let version = Version { major, minor, patch, released: pre.is_empty(), pre: pre.to_owned() };
        numbers.next().is_none().then_some(version)
    }

    /// Whether a store of this version may join a cluster of version `cluster`.
    pub fn joins(&self, cluster: &Version) -> bool {
        cluster < self || (cluster.major, cluster.minor) == (self.major, self.minor)
    }
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)?;
        if self.released { Ok(()) } else { write!(f, "-{}", self.pre) }
    }
}

#[cfg(test)]
mod tests {
    use super::Version;

    #[test]
    fn versions_order_and_print() {
        let parse = |text: &str| Version::parse(text).expect(text);
        assert!(parse("8.5.0") < parse("9.0.0-beta.2") && parse("9.0.0-beta.2") < parse("9.0.0"));
        assert_eq!(parse("v8.5.0+build").to_string(), "8.5.0");
        assert_eq!(parse(""), Version::BASE);
        assert_eq!(parse("9.0.0-beta.2").to_string(), "9.0.0-beta.2");
        for wrong in ["8", "8.5", "8.5.x", "8.5.0.1", "-"] {
            assert_eq!(Version::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn an_older_minor_version_may_not_join() {
        let joins = |store: &str, cluster: &str| {
            Version::parse(store).expect(store).joins(&Version::parse(cluster).expect(cluster))
        };
        assert!(joins("8.5.1", "8.5.0") && joins("8.5.0", "8.5.1") && joins("9.0.0", "8.5.0"));
        assert!(!joins("8.1.0", "8.5.0") && !joins("7.5.0", "8.5.0"));
    }
}
