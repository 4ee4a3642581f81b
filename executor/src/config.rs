//! What a process asks of the executor, and what it gets.

use std::time::Duration;

/// How the cores shall do I/O.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IoChoice {
    /// io_uring where it works, else epoll, with the reason in [`Io::reason`].
    #[default]
    Auto,
    /// io_uring or an error that tells how to allow it.
    Uring,
    /// epoll, which works in every container.
    Epoll,
}

impl std::str::FromStr for IoChoice {
    type Err = UnknownIo;

    fn from_str(text: &str) -> Result<IoChoice, UnknownIo> {
        match text {
            "auto" => Ok(IoChoice::Auto),
            "uring" => Ok(IoChoice::Uring),
            "epoll" => Ok(IoChoice::Epoll),
            _ => Err(UnknownIo(text.to_owned())),
        }
    }
}

impl std::fmt::Display for IoChoice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            IoChoice::Auto => "auto",
            IoChoice::Uring => "uring",
            IoChoice::Epoll => "epoll",
        })
    }
}

/// A word that names no [`IoChoice`].
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is none of auto, uring, epoll")]
pub struct UnknownIo(String);

/// How the cores do I/O.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IoKind {
    /// io_uring, by glommio.
    Uring,
    /// epoll, by one tokio current-thread runtime per core.
    Epoll,
    /// The deterministic simulator.
    Sim,
}

impl std::fmt::Display for IoKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            IoKind::Uring => "uring",
            IoKind::Epoll => "epoll",
            IoKind::Sim => "sim",
        })
    }
}

/// The outcome of [`preflight`](crate::preflight): the kind of I/O and why it was taken.
#[derive(Clone, Debug)]
pub struct Io {
    /// What the cores run on.
    pub kind: IoKind,
    /// Why, in words for the log and the status page.
    pub reason: String,
    /// Whether files of the data folder bypass the page cache (`O_DIRECT`); true if no folder was given.
    pub direct_files: bool,
}

/// What a task does. Each class has its own share of a core, its own queue at the helpers, and its own metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Class {
    /// Point requests and connections.
    Foreground,
    /// Consensus: turns, log writes, heartbeats.
    Raft,
    /// Long reads, in slices.
    Scan,
    /// Everything that nobody waits for: flushes, statistics, purging.
    Background,
}

impl Class {
    /// How many classes there are.
    pub const COUNT: usize = 4;
    /// Every class, in the order of [`Class::index`].
    pub const ALL: [Class; Class::COUNT] = [Class::Foreground, Class::Raft, Class::Scan, Class::Background];

    /// The position of the class in tables, below [`Class::COUNT`].
    pub const fn index(self) -> usize {
        self as usize
    }

    /// The class's name in logs and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Class::Foreground => "foreground",
            Class::Raft => "raft",
            Class::Scan => "scan",
            Class::Background => "background",
        }
    }

    /// Shares of a core, and of the helpers, when classes compete.
    pub(crate) const fn shares(self) -> u32 {
        match self {
            Class::Foreground | Class::Raft => 1000,
            Class::Scan => 200,
            Class::Background => 100,
        }
    }
}

/// The cores of one process.
#[derive(Clone, Debug)]
pub struct CoresConfig {
    /// How many cores to start; at least 1. More than there are CPUs is allowed: then none is pinned.
    pub cores: usize,
    /// How they do I/O.
    pub io: IoChoice,
    /// Pin each core to a CPU of its own, inside the affinity mask of the process.
    pub pin: bool,
    /// Helper threads for blocking work; `None` means max(8, 2 × cores).
    pub helpers: Option<usize>,
    /// Prefix of the thread names; at most 9 bytes survive in the kernel's names.
    pub name: String,
    /// How long an idle core spins before it sleeps. Only io_uring cores that are pinned do so.
    pub idle_spin: Duration,
    /// Seed of every core's random numbers; 0 takes one from the operating system.
    pub seed: u64,
}

impl Default for CoresConfig {
    fn default() -> CoresConfig {
        CoresConfig {
            cores: 1,
            io: IoChoice::Auto,
            pin: true,
            helpers: None,
            name: "basalt".to_owned(),
            idle_spin: Duration::from_micros(20),
            seed: 0,
        }
    }
}
