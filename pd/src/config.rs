//! What a placement driver is told at its start.

use crate::raft::Faults;
use crate::schedule::ScheduleConfig;
use crate::storage::JournalConfig;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// The version that the placement driver announces. That of TiKV's release whose calls it serves, and no later one,
/// so that duties of later protocols are not owed.
pub const ANNOUNCED_VERSION: &str = "v8.1.0";

/// Configuration of one member. The names in parentheses are PD's keys.
#[derive(Clone, Debug)]
pub struct PdConfig {
    /// Where to listen (`client-urls`); port 0 takes a free one.
    pub listen: SocketAddr,
    /// The URL that clients are told, `http://host:port`, with certificates `https://` (`advertise-client-urls`). Clients dial it, so it must be
    /// reachable for them; by default it is the address that was bound, which must not be 0.0.0.0 then.
    pub advertise_url: Option<String>,
    /// The folder of the journal (`data-dir`).
    pub data_dir: PathBuf,
    /// The member's name (`name`).
    pub name: String,
    /// All members by name, with the URLs that clients and the others are told, this one among them
    /// (`initial-cluster`). Empty: this member is the whole group. A folder belongs to the group that it began with, and
    /// knows who its members are since; the URLs here are taken for newer than those that it knows.
    pub initial_cluster: Vec<(String, String)>,
    /// URLs of members of a running group (`join`): with an empty folder this member is added to it. A folder that is not
    /// empty knows its group.
    pub join: Vec<String>,
    /// How long a tick of the group's clock is.
    pub raft_tick: Duration,
    /// Ticks without a leader before a member votes for another. A lease lasts for nine tenths of one less. Members
    /// campaign after two ticks more at the earliest, and before twice as many: with 50 ms and 8, a dead leader has a
    /// successor in 0.5 to 0.8 s, and one that stands still for 0.4 s is replaced.
    pub raft_election_ticks: u32,
    /// Replicas that a region should have (`replication.max-replicas`), unless it was set otherwise over HTTP since.
    pub max_replicas: u32,
    /// What the scheduling goes by, unless it was set otherwise over HTTP since (`schedule`, `replication`).
    pub schedule: ScheduleConfig,
    /// Most bytes of keys and values that clients may keep here (`quota-backend-bytes`). They live in memory.
    pub quota_backend_bytes: usize,
    /// How the journal is kept.
    pub journal: JournalConfig,
    /// Bounds of the server, and its certificates: with them the port speaks TLS alone.
    pub server: net::ServerConfig,
    /// Mistakes that are made on purpose. For tests.
    pub faults: Faults,
}

impl Default for PdConfig {
    fn default() -> Self {
        PdConfig {
            listen: SocketAddr::from(([127, 0, 0, 1], 2379)),
            advertise_url: None,
            data_dir: PathBuf::from("pd"),
            name: String::from("pd"),
            initial_cluster: Vec::new(),
            join: Vec::new(),
            raft_tick: Duration::from_millis(50),
            raft_election_ticks: 8,
            max_replicas: 3,
            schedule: ScheduleConfig::default(),
            quota_backend_bytes: 256 << 20,
            journal: JournalConfig::default(),
            server: net::ServerConfig::default(),
            faults: Faults::default(),
        }
    }
}
