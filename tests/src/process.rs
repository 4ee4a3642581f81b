//! Real processes: a `basalt dev` cluster of its own folder and ports, ended with the value that holds it.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// A running cluster.
pub struct Cluster {
    dev: Child,
    /// The placement driver's address.
    pub pd: String,
    /// Process id of the node.
    pub node_pid: u32,
    /// The node's address for clients.
    pub address: String,
    /// The node's status page.
    pub status: String,
}

/// How a cluster is started.
#[derive(Clone, Debug)]
pub struct Start {
    /// Where it keeps its data.
    pub data_dir: PathBuf,
    /// Cores of the node.
    pub cores: usize,
    /// `auto`, `uring` or `epoll`.
    pub io: String,
    /// Configuration file, if there is one.
    pub config: Option<PathBuf>,
}

/// The binary: beside the test's own, where `make test` has built it.
///
/// # Panics
/// If it is not there.
pub fn binary() -> PathBuf {
    let own = std::env::current_exe().expect("the path of this program");
    let folder = own.parent().and_then(|deps| if deps.ends_with("deps") { deps.parent() } else { Some(deps) });
    let binary = folder.expect("a folder").join("basalt");
    assert!(binary.exists(), "{} is missing: run `cargo build --release --bin basalt` first", binary.display());
    binary
}

impl Cluster {
    /// Starts a cluster of one node and waits until clients can connect.
    ///
    /// # Panics
    /// If it does not start.
    pub fn start(start: &Start) -> Cluster {
        let mut command = Command::new(binary());
        command
            .args(["dev", "--die-with-parent", "--nodes", "1", "--pd-port", "0", "--allow-buffered"])
            .args(["--cores", &start.cores.to_string(), "--io", &start.io])
            .arg("--data-dir")
            .arg(&start.data_dir)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit());
        if let Some(config) = &start.config {
            command.arg("--config").arg(config);
        }
        let mut dev = command.spawn().expect("basalt dev starts");
        let mut line = String::new();
        let stdout = dev.stdout.take().expect("standard output is piped");
        BufReader::new(stdout).read_line(&mut line).expect("its first line");
        let ready: serde_json::Value = serde_json::from_str(&line).expect("one line of JSON when it is ready");
        let text = |value: &serde_json::Value| value.as_str().expect("text").to_string();
        let node = &ready["ready"]["nodes"][0];
        Cluster {
            dev,
            pd: text(&ready["ready"]["pd"]),
            node_pid: node["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok()).expect("a pid"),
            address: text(&node["address"]),
            status: text(&node["status"]),
        }
    }

    /// Kills the node (SIGKILL); `dev` then ends the rest.
    pub fn kill_node(mut self) {
        let killed = Command::new("kill").args(["-KILL", &self.node_pid.to_string()]).status();
        assert!(killed.is_ok_and(|status| status.success()), "the node was running");
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
