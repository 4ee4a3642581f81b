//! Real processes: how one is started and waited for, and a `basalt dev` cluster of its own folder and ports, ended with
//! the value that holds it.

use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::certificates::{self, Certificates};
use crate::http;

/// Where a process logs to.
#[derive(Clone, Debug)]
pub enum Log {
    /// The test's own standard error.
    Inherited,
    /// The end of a file.
    File(PathBuf),
}

/// Starts a process of which nothing is read but its line `{"ready":…}`; `None` if it ends without one.
///
/// # Panics
/// If it cannot be started.
pub fn start(mut command: Command, log: Log) -> Option<(Child, Value)> {
    let log = match log {
        Log::Inherited => Stdio::inherit(),
        Log::File(path) => File::options().create(true).append(true).open(path).expect("a log file").into(),
    };
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log).spawn().expect("basalt starts");
    let mut line = String::new();
    let stdout = child.stdout.take().expect("standard output is piped");
    BufReader::new(stdout).read_line(&mut line).expect("its first line");
    match serde_json::from_str::<Value>(&line) {
        Ok(value) => Some((child, value["ready"].clone())),
        Err(_) => {
            child.wait().expect("it ends");
            None
        }
    }
}

/// A value that must be text.
pub(crate) fn text(value: &Value) -> String {
    value.as_str().expect("text").to_string()
}

/// Sends a signal, by its name without `SIG`, to a process.
///
/// # Panics
/// If it does not run.
pub fn signal(name: &str, pid: u32) {
    let sent = Command::new("kill").args([&format!("-{name}"), &pid.to_string()]).status();
    assert!(sent.is_ok_and(|status| status.success()), "process {pid} was running");
}

/// Memory of a process that is resident, in bytes.
///
/// # Panics
/// If it does not run.
pub fn resident_bytes(pid: u32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("the process runs");
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("its memory");
    let kib = line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number");
    kib << 10
}

/// A running cluster.
pub struct Cluster {
    dev: Child,
    /// The placement driver's address.
    pub pd: String,
    /// Process id of the placement driver.
    pub pd_pid: u32,
    /// Process id of the node.
    pub node_pid: u32,
    /// The node's store id.
    pub store_id: u64,
    /// The node's address for clients.
    pub address: SocketAddr,
    /// The node's status page.
    pub status: String,
    /// The node's I/O backend, and why it was chosen.
    pub io: String,
}

/// How a cluster is started.
#[derive(Clone, Debug, Default)]
pub struct Start {
    /// Where it keeps its data.
    pub data_dir: PathBuf,
    /// Cores of the node.
    pub cores: usize,
    /// `auto`, `uring` or `epoll`.
    pub io: String,
    /// Configuration file, if there is one.
    pub config: Option<PathBuf>,
    /// More flags of `basalt dev`.
    pub flags: Vec<String>,
}

/// The binary: beside the test's own, where `make test` has built it.
///
/// # Panics
/// If it is not there.
pub fn binary() -> PathBuf {
    let own = std::env::current_exe().expect("the path of this program");
    let is_below = |folder: &Path| folder.ends_with("deps") || folder.ends_with("examples");
    let folder = own.parent().and_then(|folder| if is_below(folder) { folder.parent() } else { Some(folder) });
    let binary = folder.expect("a folder").join("basalt");
    assert!(binary.exists(), "{} is missing: run `cargo build --release --bin basalt` first", binary.display());
    binary
}

/// The binary as a command, under `BASALT_TLS=1` with the shared certificates in its environment.
pub fn command() -> Command {
    let mut command = Command::new(binary());
    command.envs(certificates::shared().into_iter().flat_map(Certificates::environment));
    command
}

impl Start {
    /// The command that starts the cluster.
    pub fn command(&self) -> Command {
        let mut command = command();
        command
            .args(["dev", "--die-with-parent", "--nodes", "1", "--pd-port", "0", "--allow-buffered"])
            .args(["--cores", &self.cores.to_string(), "--io", &self.io])
            .args(&self.flags)
            .arg("--data-dir")
            .arg(&self.data_dir);
        if let Some(config) = &self.config {
            command.arg("--config").arg(config);
        }
        command
    }
}

impl Cluster {
    /// Starts a cluster of one node and waits until clients can connect.
    ///
    /// # Panics
    /// If it does not start.
    pub fn start(start: &Start) -> Cluster {
        Cluster::launch(start.command())
    }

    /// Runs [`Start::command`] and waits until clients can connect.
    ///
    /// # Panics
    /// If it does not start.
    pub fn launch(command: Command) -> Cluster {
        let (dev, ready) = start(command, Log::Inherited).expect("one line of JSON when it is ready");
        let pid = |value: &Value| value.as_u64().and_then(|pid| u32::try_from(pid).ok()).expect("a pid");
        let node = &ready["nodes"][0];
        Cluster {
            pd: text(&ready["pd"]),
            pd_pid: pid(&ready["pd_pid"]),
            node_pid: pid(&node["pid"]),
            store_id: node["store_id"].as_u64().expect("a store id"),
            address: text(&node["address"]).parse().expect("an address"),
            status: text(&node["status"]),
            io: text(&node["io"]),
            dev,
        }
    }

    /// What the node's status port answers to a GET of `path`.
    ///
    /// # Panics
    /// If it does not answer with 200.
    pub fn page(&self, path: &str) -> String {
        let (_, address) = self.status.split_once("://").expect("a URL");
        http::ask(address, certificates::shared(), &http::get(path)).expect_ok(path)
    }

    /// A metric of the node, summed over cores, shards and other labels.
    pub fn metric(&self, name: &str) -> u64 {
        http::metric(&self.page("/metrics"), name)
    }

    /// Memory of the node that is resident, in bytes.
    pub fn resident_bytes(&self) -> u64 {
        resident_bytes(self.node_pid)
    }

    /// Sends a signal, by its name without `SIG`, to a process of this cluster.
    pub fn signal(&self, name: &str, pid: u32) {
        signal(name, pid);
    }

    /// Kills the node (SIGKILL); `dev` then ends the rest.
    pub fn kill_node(mut self) {
        self.signal("KILL", self.node_pid);
        let ended = self.dev.wait().expect("dev ends");
        assert!(!ended.success(), "dev reports that its node was killed");
    }

    /// Stops the cluster in order (SIGTERM).
    pub fn stop(mut self) {
        executor::terminate(self.dev.id());
        let ended = self.dev.wait().expect("dev ends");
        assert!(ended.success(), "dev stops in order: {ended}");
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if matches!(self.dev.try_wait(), Ok(None)) {
            // Its children end with it.
            drop(self.dev.kill());
            drop(self.dev.wait());
        }
    }
}

/// Writes a configuration file in `dir` and returns its path.
///
/// # Panics
/// If it cannot be written.
pub fn config_file(dir: &Path, text: &str) -> PathBuf {
    let path = dir.join("node.toml");
    std::fs::write(&path, text).expect("a configuration file");
    path
}

/// How long [`wait_for`] waits: far more than anything takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until `holds`.
///
/// # Panics
/// If it does not within a minute.
pub fn wait_for(what: &str, mut holds: impl FnMut() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < PATIENCE, "{what}: not within {} s", PATIENCE.as_secs());
        std::thread::sleep(Duration::from_millis(20));
    }
}
