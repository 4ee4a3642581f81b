//! A placement driver and several nodes as processes of their own, each with a log in a file, that can be stopped, killed
//! and started again one by one.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use crate::process::{binary, config_file, wait_for};

/// Certificates of a fleet, as files.
#[derive(Clone, Debug)]
pub struct Certificates {
    /// Of the authority.
    pub ca: PathBuf,
    /// Of every process.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// Names that are let in; empty lets in all that the authority knows.
    pub allowed: Vec<String>,
}

/// How a fleet is started.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// Nodes.
    pub nodes: usize,
    /// Configuration of the nodes (TOML).
    pub config: String,
    /// With them all ports speak TLS.
    pub certificates: Option<Certificates>,
}

/// One node over all its lives.
pub struct Member {
    /// Its store id.
    pub store_id: u64,
    /// Its address for clients, the same in every life.
    pub address: String,
    /// Its status port (`host:port`), the same in every life.
    pub status: String,
    /// Its folder.
    pub data_dir: PathBuf,
    child: Option<Child>,
}

/// See the module.
pub struct Fleet {
    /// The placement driver's address.
    pub pd: String,
    /// The nodes.
    pub members: Vec<Member>,
    pd_child: Child,
    plan: Plan,
    config: PathBuf,
    dir: tempfile::TempDir,
}

/// Starts a process whose log goes to `log`, and waits for its line `{"ready":…}`; `None` if it ends without one.
fn launch(mut command: Command, log: &Path) -> Option<(Child, Value)> {
    let log = File::options().create(true).append(true).open(log).expect("a log file");
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

fn text(value: &Value) -> String {
    value.as_str().expect("text").to_string()
}

impl Certificates {
    /// The flags of `basalt pd`, `ctl` and `perf`.
    pub fn flags(&self) -> Vec<String> {
        let files = [("--cacert", &self.ca), ("--cert", &self.cert), ("--key", &self.key)];
        let mut flags: Vec<String> =
            files.iter().flat_map(|(name, path)| [(*name).to_string(), path.display().to_string()]).collect();
        if !self.allowed.is_empty() {
            flags.extend(["--cert-allowed-cn".to_string(), self.allowed.join(",")]);
        }
        flags
    }

    /// The section of a node's configuration.
    fn section(&self) -> String {
        format!(
            "[security]\nca-path = {:?}\ncert-path = {:?}\nkey-path = {:?}\ncert-allowed-cn = {:?}\n",
            self.ca, self.cert, self.key, self.allowed
        )
    }
}

impl Fleet {
    /// Starts the placement driver and the nodes, one after the other. It does not wait for replicas.
    ///
    /// # Panics
    /// If a process does not start; its log says why.
    pub fn start(plan: Plan) -> Fleet {
        let dir = tempfile::tempdir().expect("a folder");
        let section = plan.certificates.as_ref().map_or_else(String::new, Certificates::section);
        let config = config_file(dir.path(), &format!("{}\n{section}", plan.config));
        let mut command = Command::new(binary());
        command.args(["pd", "--die-with-parent", "--addr", "127.0.0.1:0", "--allow-buffered", "--data-dir"]);
        command.arg(dir.path().join("pd"));
        command.args(plan.certificates.iter().flat_map(Certificates::flags));
        let (pd_child, ready) = launch(command, &dir.path().join("pd.log")).expect("the placement driver starts");
        let mut fleet = Fleet { pd: text(&ready["address"]), members: Vec::new(), pd_child, plan, config, dir };
        for number in 0..fleet.plan.nodes {
            fleet.add(fleet.dir.path().join(format!("node-{number}")), "127.0.0.1:0");
        }
        fleet
    }

    /// Starts one more node on a folder and returns its number.
    ///
    /// # Panics
    /// If it does not start.
    pub fn add(&mut self, data_dir: PathBuf, address: &str) -> usize {
        let number = self.members.len();
        let any = "127.0.0.1:0".to_string();
        self.members.push(Member { store_id: 0, address: address.to_string(), status: any, data_dir, child: None });
        assert!(self.launch(number), "node {number} does not start:\n{}", self.node_log(number));
        number
    }

    /// Starts a node that does not run; false if it refuses to, for which its log has the reason.
    ///
    /// # Panics
    /// If it runs.
    pub fn launch(&mut self, number: usize) -> bool {
        let log = self.log_path(number);
        let member = &mut self.members[number];
        assert!(member.child.is_none(), "node {number} runs");
        let mut command = Command::new(binary());
        command
            .args(["serve", "--die-with-parent", "--allow-buffered", "--no-pin", "--idle-spin-us", "0", "--cores", "1"])
            .args(["--addr", &member.address, "--status-addr", &member.status, "--pd", &self.pd])
            .arg("--config")
            .arg(&self.config)
            .arg("--data-dir")
            .arg(&member.data_dir);
        let Some((child, ready)) = launch(command, &log) else { return false };
        member.store_id = ready["store_id"].as_u64().expect("a store id");
        member.address = text(&ready["address"]);
        member.status = text(&ready["status"]).split_once("://").expect("a URL").1.to_string();
        member.child = Some(child);
        true
    }

    /// Kills a node (SIGKILL) and waits for its end.
    ///
    /// # Panics
    /// If it does not run.
    pub fn kill(&mut self, number: usize) {
        let mut child = self.members[number].child.take().expect("the node runs");
        child.kill().expect("the node runs");
        child.wait().expect("it ends");
    }

    /// Stops a node in order (SIGTERM) and waits for its end.
    ///
    /// # Panics
    /// If it does not run, or fails.
    pub fn stop(&mut self, number: usize) {
        let mut child = self.members[number].child.take().expect("the node runs");
        executor::terminate(child.id());
        let ended = child.wait().expect("it ends");
        assert!(ended.success(), "node {number} stops in order: {ended}\n{}", self.node_log(number));
    }

    fn log_path(&self, number: usize) -> PathBuf {
        self.dir.path().join(format!("node-{number}.log"))
    }

    /// What a node has logged in all its lives.
    pub fn node_log(&self, number: usize) -> String {
        std::fs::read_to_string(self.log_path(number)).unwrap_or_default()
    }

    /// What the placement driver has logged.
    pub fn pd_log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("pd.log")).unwrap_or_default()
    }

    /// The folder of everything.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Runs `basalt ctl` with the fleet's certificates.
    ///
    /// # Panics
    /// If it cannot be run.
    pub fn ctl_output(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(binary());
        command.args(["ctl", "--pd", &self.pd]);
        command.args(self.plan.certificates.iter().flat_map(Certificates::flags));
        command.args(arguments).output().expect("ctl runs")
    }

    /// Runs `basalt ctl`, which must agree, and returns what it prints.
    ///
    /// # Panics
    /// If it refuses.
    pub fn ctl(&self, arguments: &[&str]) -> String {
        let output = self.ctl_output(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("text")
    }

    /// What the placement driver of a fleet without certificates answers to a GET.
    ///
    /// # Panics
    /// If it does not answer with 200.
    pub fn get(&self, path: &str) -> Value {
        let (head, body) = http(&self.pd, &format!("GET {path} HTTP/1.1\r\nHost: pd\r\nConnection: close\r\n\r\n"));
        assert!(head.starts_with("HTTP/1.1 200 "), "{path}: {head}");
        serde_json::from_str(&body).expect("JSON")
    }

    /// As [`Fleet::get`], a POST.
    ///
    /// # Panics
    /// If it does not answer with 200.
    pub fn post(&self, path: &str, body: &Value) {
        let (head, _) = http(&self.pd, &post(path, body));
        assert!(head.starts_with("HTTP/1.1 200 "), "{path}: {head}");
    }

    /// Lets replicas be placed although the disk is nearly full, as those of test machines are, and waits until every
    /// region has a voter on each of `count` stores. For fleets without certificates.
    ///
    /// # Panics
    /// If it takes more than a minute.
    pub fn replicate(&self, count: usize) {
        self.post("/pd/api/v1/config", &settings());
        wait_for("replicas of all regions", || are_whole(&self.get("/pd/api/v1/regions"), count));
    }
}

/// Settings of a placement driver for machines whose disk is nearly full.
pub fn settings() -> Value {
    json!({ "low-space-ratio": 0.999 })
}

/// A POST as bytes.
pub fn post(path: &str, body: &Value) -> String {
    let body = body.to_string();
    let length = body.len();
    format!("POST {path} HTTP/1.1\r\nHost: pd\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}")
}

/// Whether every region of `/regions` has `count` voters, none of which is behind.
pub fn are_whole(regions: &Value, count: usize) -> bool {
    let regions = regions["regions"].as_array().map_or(&[][..], Vec::as_slice);
    let is_whole = |region: &Value| {
        let peers = region["peers"].as_array().map_or(&[][..], Vec::as_slice);
        let voters = peers.iter().filter(|peer| peer["role_name"] == "Voter").count();
        voters == count && peers.len() == count && region["pending_peers"].as_array().is_none_or(Vec::is_empty)
    };
    !regions.is_empty() && regions.iter().all(is_whole)
}

/// One HTTP/1.1 request; head and body of the answer.
fn http(address: &str, request: &str) -> (String, String) {
    let mut socket = TcpStream::connect(address).expect("the port accepts");
    socket.set_read_timeout(Some(Duration::from_secs(60))).expect("a socket");
    socket.write_all(request.as_bytes()).expect("the port reads");
    let mut answer = String::new();
    socket.read_to_string(&mut answer).expect("the port answers");
    let (head, body) = answer.split_once("\r\n\r\n").expect("head and body");
    (head.to_string(), body.to_string())
}

impl Drop for Fleet {
    fn drop(&mut self) {
        let children = self.members.iter_mut().filter_map(|member| member.child.as_mut());
        for child in children.chain([&mut self.pd_child]) {
            // It may have ended by itself.
            drop(child.kill());
            drop(child.wait());
        }
        if std::thread::panicking() {
            eprintln!("== pd\n{}", self.pd_log());
            (0..self.members.len()).for_each(|number| eprintln!("== node {number}\n{}", self.node_log(number)));
        }
    }
}
