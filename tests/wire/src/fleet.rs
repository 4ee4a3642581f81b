//! A placement driver and several nodes as processes of their own, each with a log in a file, that can be stopped, killed
//! and started again one by one.

mod view;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output};

use serde_json::Value;

use crate::certificates::{self, Certificates};
use crate::process::{Log, binary, config_file, signal, start, text};

pub use view::{are_whole, settings};

/// How a fleet is started.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Nodes.
    pub nodes: usize,
    /// Cores of each node.
    pub cores: usize,
    /// Configuration of the nodes (TOML).
    pub config: String,
    /// With them all ports speak TLS. By default those of `BASALT_TLS=1`.
    pub certificates: Option<Certificates>,
    /// The placement driver's address.
    pub host: String,
    /// Where a placement driver answers (`host:port`) that somebody else runs, and that has the same
    /// certificates; without it the fleet runs its own.
    pub under: Option<String>,
}

impl Default for Plan {
    fn default() -> Self {
        Plan {
            nodes: 3,
            cores: 1,
            config: String::new(),
            certificates: certificates::shared().cloned(),
            host: "127.0.0.1".to_string(),
            under: None,
        }
    }
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
    /// More flags of `basalt serve` for its lives to come.
    pub flags: Vec<String>,
    /// More environment for them.
    pub environment: Vec<(String, String)>,
    prefix: Vec<String>,
    child: Option<Child>,
}

/// See the module.
pub struct Fleet {
    /// The placement driver's address.
    pub pd: String,
    /// The nodes.
    pub members: Vec<Member>,
    /// `None` if somebody else runs it.
    pd_child: Option<Child>,
    plan: Plan,
    config: PathBuf,
    // Removed after the processes have ended.
    dir: tempfile::TempDir,
}

/// Starts the fleet's own placement driver and answers with its address.
fn start_pd(plan: &Plan, dir: &Path) -> (String, Child) {
    let mut command = Command::new(binary());
    let address = format!("{}:0", plan.host);
    command.args(["pd", "--die-with-parent", "--addr", &address, "--allow-buffered", "--data-dir"]);
    command.arg(dir.join("pd"));
    command.args(plan.certificates.iter().flat_map(Certificates::flags));
    let (child, ready) = start(command, Log::File(dir.join("pd.log"))).expect("the placement driver starts");
    (text(&ready["address"]), child)
}

impl Fleet {
    /// Starts the placement driver, unless somebody else runs it, and the nodes, one after the other. It does not wait for
    /// replicas.
    ///
    /// # Panics
    /// If a process does not start; its log says why.
    pub fn start(plan: Plan) -> Fleet {
        let dir = tempfile::tempdir().expect("a folder");
        let section = plan.certificates.as_ref().map_or_else(String::new, Certificates::section);
        let config = config_file(dir.path(), &format!("{}\n{section}", plan.config));
        let (pd, pd_child) = match &plan.under {
            Some(address) => (address.clone(), None),
            None => {
                let (address, child) = start_pd(&plan, dir.path());
                (address, Some(child))
            }
        };
        let mut fleet = Fleet { pd, members: Vec::new(), pd_child, plan, config, dir };
        for number in 0..fleet.plan.nodes {
            fleet.add(fleet.dir.path().join(format!("node-{number}")), "127.0.0.1:0");
        }
        fleet
    }

    /// Starts `nodes` nodes of `cores` cores with the configuration `config` and waits until every region has a voter
    /// on each of them.
    ///
    /// # Panics
    /// If they do not start.
    pub fn replicated(nodes: usize, cores: usize, config: &str) -> Fleet {
        let fleet = Fleet::start(Plan { nodes, cores, config: config.into(), ..Plan::default() });
        fleet.replicate(nodes);
        fleet
    }

    /// Starts one more node on a folder and returns its number.
    ///
    /// # Panics
    /// If it does not start.
    pub fn add(&mut self, data_dir: PathBuf, address: &str) -> usize {
        self.add_behind(Vec::new(), data_dir, address)
    }

    /// As [`Fleet::add`], by a command that `prefix` begins, and that becomes the node.
    ///
    /// # Panics
    /// If it does not start.
    pub fn add_behind(&mut self, prefix: Vec<String>, data_dir: PathBuf, address: &str) -> usize {
        let host = address.rsplit_once(':').expect("host and port").0;
        let number = self.members.len();
        self.members.push(Member {
            store_id: 0,
            address: address.to_string(),
            status: format!("{host}:0"),
            prefix,
            data_dir,
            flags: Vec::new(),
            environment: Vec::new(),
            child: None,
        });
        self.launch(number);
        number
    }

    /// Starts a node that does not run.
    ///
    /// # Panics
    /// If it runs, or refuses to start.
    pub fn launch(&mut self, number: usize) {
        assert!(self.try_launch(number), "node {number} does not start:\n{}", self.node_log(number));
    }

    /// Starts a node that does not run; false if it refuses to, for which its log has the reason.
    ///
    /// # Panics
    /// If it runs.
    #[must_use]
    pub fn try_launch(&mut self, number: usize) -> bool {
        let log = self.log_path(number);
        let member = &mut self.members[number];
        assert!(member.child.is_none(), "node {number} runs");
        let mut words = member.prefix.iter().cloned().chain([binary().display().to_string()]);
        let mut command = Command::new(words.next().expect("at least the binary"));
        command
            .args(words)
            .args(["serve", "--die-with-parent", "--allow-buffered", "--no-pin", "--idle-spin-us", "0"])
            .args(["--addr", &member.address, "--status-addr", &member.status])
            .args(["--pd", &self.pd, "--cores", &self.plan.cores.to_string()])
            .arg("--config")
            .arg(&self.config)
            .arg("--data-dir")
            .arg(&member.data_dir)
            .args(&member.flags)
            .envs(member.environment.iter().map(|(name, value)| (name, value)));
        let Some((child, ready)) = start(command, Log::File(log)) else { return false };
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

    /// Sends a signal, by its name without `SIG`, to a node.
    ///
    /// # Panics
    /// If it does not run.
    pub fn signal(&self, name: &str, number: usize) {
        signal(name, self.pid(number));
    }

    /// The process id of a node.
    ///
    /// # Panics
    /// If it does not run.
    pub fn pid(&self, number: usize) -> u32 {
        self.members[number].child.as_ref().expect("the node runs").id()
    }

    /// Whether a node was started and not ended by the test.
    pub fn runs(&self, number: usize) -> bool {
        self.members[number].child.is_some()
    }

    /// Whether a node that was started has ended by itself; then it can be started again.
    ///
    /// # Panics
    /// If the test has ended it.
    pub fn has_ended(&mut self, number: usize) -> bool {
        let child = self.members[number].child.as_mut().expect("the node was started");
        let ended = child.try_wait().expect("a process").is_some();
        if ended {
            self.members[number].child = None;
        }
        ended
    }

    fn log_path(&self, number: usize) -> PathBuf {
        self.dir.path().join(format!("node-{number}.log"))
    }

    /// What a node has logged in all its lives.
    pub fn node_log(&self, number: usize) -> String {
        std::fs::read_to_string(self.log_path(number)).unwrap_or_default()
    }

    /// What the fleet's own placement driver has logged.
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

    /// The node with the most leaders among those that run.
    ///
    /// # Panics
    /// If none runs.
    pub fn with_most_leaders(&self) -> usize {
        let leaders: Vec<u64> =
            self.regions().iter().filter_map(|region: &Value| region["leader"]["store_id"].as_u64()).collect();
        let count = |number: &usize| leaders.iter().filter(|store| **store == self.members[*number].store_id).count();
        (0..self.members.len()).filter(|number| self.runs(*number)).max_by_key(count).expect("a node runs")
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        let children = self.members.iter_mut().filter_map(|member| member.child.as_mut());
        for child in children.chain(&mut self.pd_child) {
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
