//! A placement driver and several nodes, each a process of its own that can be killed and started again.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::process::{binary, config_file};

/// One node over all its lives.
pub struct Member {
    /// Its store id.
    pub store_id: u64,
    /// Its address for clients, the same in every life.
    pub address: String,
    /// Its status page, the same in every life.
    pub status: String,
    data_dir: PathBuf,
    child: Option<Child>,
}

/// A running cluster of several nodes.
pub struct Nodes {
    /// The placement driver's address.
    pub pd: String,
    /// The nodes.
    pub members: Vec<Member>,
    /// Unless somebody else runs it.
    pd_child: Option<Child>,
    cores: usize,
    config: PathBuf,
    // Removed after the processes have ended.
    dir: tempfile::TempDir,
}

/// Starts a process and waits for its line `{"ready":…}`.
fn launch(mut command: Command) -> (Child, Value) {
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn().expect("basalt starts");
    let mut line = String::new();
    let stdout = child.stdout.take().expect("standard output is piped");
    BufReader::new(stdout).read_line(&mut line).expect("its first line");
    let line: Value = serde_json::from_str(&line).expect("one line of JSON when it is ready");
    (child, line["ready"].clone())
}

fn text(value: &Value) -> String {
    value.as_str().expect("text").to_string()
}

impl Nodes {
    /// Starts `nodes` nodes of `cores` cores with the configuration `config`, which report to the placement driver
    /// every second, and waits until every region has `nodes` voters.
    ///
    /// # Panics
    /// If they do not start.
    pub fn start(nodes: usize, cores: usize, config: &str) -> Nodes {
        let dir = tempfile::tempdir().expect("a folder");
        let mut command = Command::new(binary());
        command.args(["pd", "--die-with-parent", "--addr", "127.0.0.1:0", "--allow-buffered", "--data-dir"]);
        command.arg(dir.path().join("pd"));
        let (pd_child, ready) = launch(command);
        let mut cluster = Nodes::none(text(&ready["address"]), cores, config, dir);
        cluster.pd_child = Some(pd_child);
        cluster.fill(nodes)
    }

    /// As [`Nodes::start`], under a placement driver that somebody else runs, at `pd`.
    ///
    /// # Panics
    /// If they do not start.
    pub fn start_under(pd: &str, nodes: usize, cores: usize, config: &str) -> Nodes {
        Nodes::none(pd.to_string(), cores, config, tempfile::tempdir().expect("a folder")).fill(nodes)
    }

    fn none(pd: String, cores: usize, config: &str, dir: tempfile::TempDir) -> Nodes {
        let config = config_file(dir.path(), config);
        Nodes { pd, members: Vec::new(), pd_child: None, cores, config, dir }
    }

    fn fill(mut self, nodes: usize) -> Nodes {
        // Tests run on disks that may be nearly full, where nothing would be placed.
        self.post("/pd/api/v1/config", &json!({ "low-space-ratio": 0.999 }));
        for _ in 0..nodes {
            self.add();
        }
        self.wait_for_replicas(nodes);
        self
    }

    /// Starts one more node on an empty folder and returns its number.
    ///
    /// # Panics
    /// If it does not start.
    pub fn add(&mut self) -> usize {
        let number = self.members.len();
        let data_dir = self.dir.path().join(format!("node-{number}"));
        let any = || "127.0.0.1:0".to_string();
        self.members.push(Member { store_id: 0, address: any(), status: any(), data_dir, child: None });
        self.launch(number);
        number
    }

    /// Starts a node that does not run.
    ///
    /// # Panics
    /// If it runs, or does not start.
    pub fn launch(&mut self, number: usize) {
        let member = &mut self.members[number];
        assert!(member.child.is_none(), "node {number} runs");
        let mut command = Command::new(binary());
        command
            .args(["serve", "--die-with-parent", "--allow-buffered", "--no-pin", "--idle-spin-us", "0"])
            .args(["--addr", &member.address, "--status-addr", member.status.trim_start_matches("http://")])
            .args(["--pd", &self.pd, "--cores", &self.cores.to_string()])
            .arg("--config")
            .arg(&self.config)
            .arg("--data-dir")
            .arg(&member.data_dir);
        let (child, ready) = launch(command);
        member.store_id = ready["store_id"].as_u64().expect("a store id");
        member.address = text(&ready["address"]);
        member.status = text(&ready["status"]);
        member.child = Some(child);
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
        assert!(ended.success(), "node {number} stops in order: {ended}");
    }

    /// Sends a signal, by its name without `SIG`, to a node.
    ///
    /// # Panics
    /// If it does not run.
    pub fn signal(&self, name: &str, number: usize) {
        let pid = self.members[number].child.as_ref().expect("the node runs").id();
        let sent = Command::new("kill").args([&format!("-{name}"), &pid.to_string()]).status();
        assert!(sent.is_ok_and(|status| status.success()), "process {pid} was running");
    }

    /// Whether a node runs.
    pub fn runs(&self, number: usize) -> bool {
        self.members[number].child.is_some()
    }

    /// Regions as the placement driver knows them.
    pub fn regions(&self) -> Vec<Value> {
        self.get("/pd/api/v1/regions")["regions"].as_array().cloned().unwrap_or_default()
    }

    /// The node with the most leaders among those that run.
    pub fn with_most_leaders(&self) -> usize {
        let leaders: Vec<u64> =
            self.regions().iter().filter_map(|region| region["leader"]["store_id"].as_u64()).collect();
        let count = |number: &usize| leaders.iter().filter(|store| **store == self.members[*number].store_id).count();
        (0..self.members.len()).filter(|number| self.runs(*number)).max_by_key(count).expect("a node runs")
    }

    /// Waits until every region has so many voters and none of them is behind.
    ///
    /// # Panics
    /// If it takes more than a minute; says which regions are not whole.
    pub fn wait_for_replicas(&self, count: usize) {
        let whole = |region: &Value| {
            let peers = region["peers"].as_array().map_or(&[][..], Vec::as_slice);
            let voters = peers.iter().filter(|peer| peer["role_name"] == "Voter").count();
            voters == count && peers.len() == count && region["pending_peers"].as_array().is_none_or(Vec::is_empty)
        };
        let limit = Instant::now() + Duration::from_secs(60);
        loop {
            let regions = self.regions();
            let partial: Vec<&Value> = regions.iter().filter(|region| !whole(region)).collect();
            if !regions.is_empty() && partial.is_empty() {
                return;
            }
            assert!(Instant::now() < limit, "without {count} replicas: {partial:#?}");
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// What the placement driver answers to a GET.
    ///
    /// # Panics
    /// If it does not answer with 200.
    pub fn get(&self, path: &str) -> Value {
        let (head, body) = http(&self.pd, &format!("GET {path} HTTP/1.1\r\nHost: pd\r\nConnection: close\r\n\r\n"));
        assert!(head.starts_with("HTTP/1.1 200 "), "{path}: {head}");
        serde_json::from_str(&body).expect("JSON")
    }

    /// What the placement driver answers to a POST: whether it agrees.
    pub fn post(&self, path: &str, body: &Value) -> bool {
        self.send("POST", path, body).is_ok()
    }

    /// A request that changes something at the placement driver.
    ///
    /// # Errors
    /// Its words, if it does not answer with 200.
    pub fn send(&self, method: &str, path: &str, body: &Value) -> Result<(), String> {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let length = body.len();
        let (head, answer) = http(
            &self.pd,
            &format!(
                "{method} {path} HTTP/1.1\r\nHost: pd\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
            ),
        );
        if head.starts_with("HTTP/1.1 200 ") { Ok(()) } else { Err(answer) }
    }

    /// Orders an operator, in the words of `pd-ctl`; false if the placement driver refuses.
    pub fn order(&self, operator: &Value) -> bool {
        self.post("/pd/api/v1/operators", operator)
    }

    /// What a node's status port answers with code 200; `None` if it refuses.
    pub fn status(&self, number: usize, path: &str) -> Option<Value> {
        let address = self.members[number].status.trim_start_matches("http://");
        let (head, body) = http(address, &format!("GET {path} HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n"));
        head.starts_with("HTTP/1.1 200 ").then(|| serde_json::from_str(&body).expect("JSON"))
    }

    /// A metric of a node, summed over cores, shards and other labels.
    ///
    /// # Panics
    /// If the node does not answer or has no such metric.
    pub fn metric(&self, number: usize, name: &str) -> u64 {
        let address = self.members[number].status.trim_start_matches("http://");
        let (head, page) = http(address, "GET /metrics HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n");
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
        let mut values = page
            .lines()
            .filter(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' '])))
            .map(|line| line.rsplit(' ').next().and_then(|value| value.parse::<u64>().ok()).expect("a number"))
            .peekable();
        assert!(values.peek().is_some(), "there is no metric {name}");
        values.sum()
    }

    /// The folder that holds everything of a node.
    pub fn data_dir(&self, number: usize) -> &Path {
        &self.members[number].data_dir
    }
}

/// One HTTP/1.1 request; head and body of the answer.
fn http(address: &str, request: &str) -> (String, String) {
    let mut socket = TcpStream::connect(address).expect("the port accepts");
    socket.set_read_timeout(Some(Duration::from_secs(60))).expect("a socket");
    socket.write_all(request.as_bytes()).expect("the port reads");
    let mut answer = String::new();
    socket.read_to_string(&mut answer).expect("the port answers");
    let (head, body) = answer.split_once("\r\n\r\n").expect("head and body");
    let is_chunked = head.to_ascii_lowercase().contains("\r\ntransfer-encoding: chunked");
    (head.to_string(), if is_chunked { joined(body) } else { body.to_string() })
}

/// The chunks of a body, without their lengths.
fn joined(mut rest: &str) -> String {
    let mut body = String::new();
    loop {
        let (length, after) = rest.split_once("\r\n").expect("the length of a chunk");
        let length = usize::from_str_radix(length, 16).expect("the length of a chunk");
        if length == 0 {
            return body;
        }
        body += &after[..length];
        rest = &after[length + "\r\n".len()..];
    }
}

impl Drop for Nodes {
    fn drop(&mut self) {
        let children = self.members.iter_mut().filter_map(|member| member.child.as_mut());
        for child in children.chain(&mut self.pd_child) {
            // It may have ended by itself.
            drop(child.kill());
            drop(child.wait());
        }
    }
}
