//! Three members of the placement driver as real processes, a node, and clients that know only the members' addresses:
//! whoever leads is killed, and the rest goes on.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use basalt_wire::http;
use basalt_wire::process::{Log, binary, start, wait_for};
use tikv_client::{RawClient, TimestampExt as _, TransactionClient};

/// A process that ends with its value.
struct Process(Child);

impl Process {
    /// Starts `basalt` and waits for its line.
    fn start(arguments: &[&str], data_dir: &Path) -> Process {
        let mut command = Command::new(binary());
        command.args(arguments).args(["--die-with-parent", "--allow-buffered", "--data-dir"]).arg(data_dir);
        let (child, _) = start(command, Log::Inherited).unwrap_or_else(|| panic!("{arguments:?} does not start"));
        Process(child)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // SIGKILL: nothing is told to anybody. It may have ended already.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

struct Members {
    addresses: Vec<String>,
    cluster: String,
    folder: PathBuf,
    running: Vec<Option<Process>>,
}

impl Members {
    fn start(folder: &Path) -> Members {
        let held: Vec<_> = (0..3).map(|_| TcpListener::bind("127.0.0.1:0").expect("a port")).collect();
        let address = |listener: &TcpListener| listener.local_addr().expect("bound").to_string();
        let addresses: Vec<String> = held.iter().map(address).collect();
        drop(held);
        let member = |(at, address): (usize, &String)| format!("m{at}=http://{address}");
        let cluster = addresses.iter().enumerate().map(member).collect::<Vec<_>>().join(",");
        let running = (0..3).map(|_| None).collect();
        let mut members = Members { addresses, cluster, folder: folder.to_owned(), running };
        (0..3).for_each(|at| members.begin(at));
        members
    }

    fn begin(&mut self, at: usize) {
        let name = format!("m{at}");
        let arguments = ["pd", "--addr", &self.addresses[at], "--name", &name, "--initial-cluster", &self.cluster];
        self.running[at] = Some(Process::start(&arguments, &self.folder.join(&name)));
    }

    /// What a member answers to a GET; nothing if it cannot be asked.
    fn get(&self, at: usize, path: &str) -> Option<serde_json::Value> {
        let answer = http::try_ask(&self.addresses[at], &http::get(path)).ok()?;
        serde_json::from_str(&answer.body).ok()
    }

    /// The member that says of itself that it leads.
    fn leader(&self) -> usize {
        let mut leader = None;
        wait_for("a leader", || {
            let says = |at: &usize| {
                let members = self.get(*at, "/pd/api/v1/members");
                members.is_some_and(|members| members["leader"]["name"] == format!("m{at}").as_str())
            };
            leader = (0..3).filter(|at| self.running[*at].is_some()).find(says);
            leader.is_some()
        });
        leader.expect("just found")
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_and_nodes_go_on_when_the_leader_is_killed() {
    let dir = tempfile::tempdir().expect("a folder");
    let mut members = Members::start(dir.path());
    members.leader();
    let pd = members.addresses.join(",");
    let ports = ["--addr", "127.0.0.1:0", "--status-addr", "127.0.0.1:0", "--cores", "1", "--io", "epoll"];
    let node = Process::start(&[&["serve", "--pd", &pd][..], &ports].concat(), &dir.path().join("node"));
    let raw = RawClient::new(members.addresses.clone()).await.expect("a client");
    let clock = TransactionClient::new(members.addresses.clone()).await.expect("a client");
    let mut last = 0;
    for round in 0..4 {
        let leader = members.leader();
        raw.put(format!("key {round}"), "value").await.expect("written");
        members.running[leader] = None;
        let killed = Instant::now();
        let timestamp = loop {
            if let Ok(timestamp) = clock.current_timestamp().await {
                break timestamp.version();
            }
            assert!(killed.elapsed() < Duration::from_secs(60), "no timestamps any more");
        };
        println!("round {round}: the next timestamp came {} ms after the kill", killed.elapsed().as_millis());
        assert!(timestamp > last, "{timestamp} after {last}");
        last = timestamp;
        // A client that comes new finds its region: the node has told the new leader who leads it.
        let mut found = None;
        while found.is_none() {
            assert!(killed.elapsed() < Duration::from_secs(60), "no region any more");
            let fresh = RawClient::new(members.addresses.clone()).await;
            if let Ok(fresh) = fresh {
                found = fresh.get(format!("key {round}")).await.ok().flatten();
            }
        }
        println!("round {round}: a new client read {} ms after the kill", killed.elapsed().as_millis());
        members.begin(leader);
        wait_for("all are healthy", || {
            let health = members.get(leader, "/pd/api/v1/health");
            let all =
                |list: &Vec<serde_json::Value>| list.iter().filter(|member| member["health"] == true).count() == 3;
            health.as_ref().and_then(serde_json::Value::as_array).is_some_and(all)
        });
    }
    drop(node);
}
