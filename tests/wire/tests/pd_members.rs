//! Three members of the placement driver as real processes, a node, and clients that know only the members' addresses:
//! whoever leads is killed, and the rest goes on; members come and go.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use basalt_wire::certificates::{scheme, secured, shared};
use basalt_wire::http;
use basalt_wire::process::{self, Log, start, wait_for};
use tikv_client::{Config, RawClient, TimestampExt as _, TransactionClient};

/// A process that ends with its value.
struct Process(Child);

impl Process {
    /// Starts `basalt`, which logs beside its folder, and waits for its line; `None` if it ends without one.
    fn try_start(arguments: &[&str], data_dir: &Path) -> Option<Process> {
        let mut command = process::command();
        command.args(arguments).args(["--die-with-parent", "--allow-buffered", "--data-dir"]).arg(data_dir);
        start(command, Log::File(data_dir.with_extension("log"))).map(|(child, _)| Process(child))
    }

    fn start(arguments: &[&str], data_dir: &Path) -> Process {
        Process::try_start(arguments, data_dir)
            .unwrap_or_else(|| panic!("{arguments:?} does not start:\n{}", log_of(data_dir)))
    }
}

fn log_of(data_dir: &Path) -> String {
    std::fs::read_to_string(data_dir.with_extension("log")).unwrap_or_default()
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
    folder: PathBuf,
    running: Vec<Option<Process>>,
}

fn config() -> Config {
    secured(Config::default())
}

impl Members {
    /// Places for so many members, none of which runs.
    fn new(folder: &Path, count: usize) -> Members {
        let held: Vec<_> = (0..count).map(|_| TcpListener::bind("127.0.0.1:0").expect("a port")).collect();
        let address = |listener: &TcpListener| listener.local_addr().expect("bound").to_string();
        let addresses = held.iter().map(address).collect();
        Members { addresses, folder: folder.to_owned(), running: (0..count).map(|_| None).collect() }
    }

    fn start(folder: &Path) -> Members {
        let mut members = Members::new(folder, 3);
        (0..3).for_each(|at| members.begin_of_three(at));
        members
    }

    fn data_dir(&self, at: usize) -> PathBuf {
        self.folder.join(format!("m{at}"))
    }

    fn begin(&mut self, at: usize, more: &[&str]) {
        let name = format!("m{at}");
        let arguments = [&["pd", "--addr", &self.addresses[at], "--name", &name][..], more].concat();
        self.running[at] = Some(Process::start(&arguments, &self.data_dir(at)));
    }

    fn begin_of_three(&mut self, at: usize) {
        let member = |(at, address): (usize, &String)| format!("m{at}={}://{address}", scheme());
        let cluster = self.addresses.iter().take(3).enumerate().map(member).collect::<Vec<_>>().join(",");
        self.begin(at, &["--initial-cluster", &cluster]);
    }

    fn join(&mut self, at: usize, through: usize) {
        let url = format!("{}://{}", scheme(), self.addresses[through]);
        self.begin(at, &["--join", &url]);
    }

    /// What a member answers to a GET; nothing if it cannot be asked.
    fn get(&self, at: usize, path: &str) -> Option<serde_json::Value> {
        let answer = http::try_ask(&self.addresses[at], shared(), &http::get(path)).ok()?;
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
            leader = (0..self.running.len()).filter(|at| self.running[*at].is_some()).find(says);
            leader.is_some()
        });
        leader.expect("just found")
    }

    /// Waits until a member lists so many, all of which vote and are healthy.
    fn until_whole(&self, at: usize, count: usize) {
        wait_for(&format!("{count} members"), || {
            let list = |path: &str, key: &str| -> Vec<serde_json::Value> {
                let answer = self.get(at, path).unwrap_or_default();
                let list = if key.is_empty() { &answer } else { &answer[key] };
                list.as_array().cloned().unwrap_or_default()
            };
            let members = list("/pd/api/v1/members", "members");
            let health = list("/pd/api/v1/health", "");
            let vote = members.iter().filter(|member| member["is_learner"] == false).count();
            let healthy = health.iter().filter(|member| member["health"] == true).count();
            (members.len(), vote, healthy) == (count, count, count)
        });
    }

    fn ctl(&self, at: usize, words: &[&str]) -> (bool, String) {
        let output = process::command().args(["ctl", "--pd", &self.addresses[at], "member"]).args(words).output();
        let output = output.expect("ctl runs");
        let text = if output.status.success() { output.stdout } else { output.stderr };
        (output.status.success(), String::from_utf8(text).expect("text"))
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
    let raw = RawClient::new_with_config(members.addresses.clone(), config()).await.expect("a client");
    let clock = TransactionClient::new_with_config(members.addresses.clone(), config()).await.expect("a client");
    let mut last = 0;
    // More of them, for a measurement: BASALT_KILLS=50.
    let rounds = std::env::var("BASALT_KILLS").ok().and_then(|kills| kills.parse().ok()).unwrap_or(4);
    let mut waits = Vec::new();
    for round in 0..rounds {
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
        waits.push(killed.elapsed());
        println!("round {round}: the next timestamp came {} ms after the kill", killed.elapsed().as_millis());
        assert!(timestamp > last, "{timestamp} after {last}");
        last = timestamp;
        // A client that comes new finds its region: the node has told the new leader who leads it.
        let mut found = None;
        while found.is_none() {
            assert!(killed.elapsed() < Duration::from_secs(60), "no region any more");
            let fresh = RawClient::new_with_config(members.addresses.clone(), config()).await;
            if let Ok(fresh) = fresh {
                found = fresh.get(format!("key {round}")).await.ok().flatten();
            }
        }
        println!("round {round}: a new client read {} ms after the kill", killed.elapsed().as_millis());
        members.begin_of_three(leader);
        members.until_whole(leader, 3);
    }
    waits.sort_unstable();
    println!("{rounds} kills: the next timestamp came after {waits:?}");
    drop(node);
}

/// Takes timestamps of a group until `done`: they rise. Counts them.
async fn take_timestamps(addresses: Vec<String>, done: Arc<AtomicBool>, taken: Arc<AtomicU64>) {
    let mut last = 0;
    while !done.load(Ordering::Relaxed) {
        // Members have come and gone: a new client knows those that it is told of.
        let Ok(clock) = TransactionClient::new_with_config(addresses.clone(), config()).await else { continue };
        let until = Instant::now() + Duration::from_secs(2);
        while !done.load(Ordering::Relaxed) && Instant::now() < until {
            if let Ok(timestamp) = clock.current_timestamp().await {
                assert!(timestamp.version() > last, "{} after {last}", timestamp.version());
                last = timestamp.version();
                taken.fetch_add(1, Ordering::Relaxed);
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_come_and_go_while_timestamps_rise() {
    let dir = tempfile::tempdir().expect("a folder");
    let mut members = Members::new(dir.path(), 4);
    members.begin(0, &[]);
    members.leader();
    let (done, taken) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let clock = tokio::spawn(take_timestamps(members.addresses.clone(), done.clone(), taken.clone()));
    let until_more = || {
        let before = taken.load(Ordering::Relaxed);
        wait_for("timestamps go on", || taken.load(Ordering::Relaxed) > before + 20);
    };
    let (done_moving, members) = tokio::task::block_in_place(|| {
        until_more();
        members.join(1, 0);
        members.until_whole(0, 2);
        members.join(2, 1);
        members.until_whole(0, 3);
        until_more();

        let dead = members.leader();
        members.running[dead] = None;
        let left: Vec<usize> = (0..3).filter(|at| *at != dead).collect();
        members.leader();
        until_more();
        let (agreed, text) = members.ctl(left[0], &["delete", "name", &format!("m{dead}")]);
        assert!(agreed, "{text}");
        assert!(text.contains(&format!("removed, pd: m{dead}")), "{text}");
        members.join(3, left[1]);
        members.until_whole(left[0], 3);
        until_more();
        let (_, listed) = members.ctl(3, &["list"]);
        assert_eq!(listed.lines().count(), 1 + 3, "{listed}");

        // The folder of before is of no use: the process that starts on it ends, and says why.
        let back = ["pd", "--addr", &members.addresses[dead], "--name", &format!("m{dead}")];
        // It may be ready for a moment before it knows.
        if let Some(mut back) = Process::try_start(&back, &members.data_dir(dead)) {
            let mut ended = None;
            wait_for("the removed member ends", || {
                ended = back.0.try_wait().expect("a child");
                ended.is_some()
            });
            assert!(ended.is_some_and(|ended| !ended.success()));
        }
        let log = log_of(&members.data_dir(dead));
        assert!(log.contains("this member was removed from its group"), "{log}");

        for at in left {
            let (agreed, text) = members.ctl(3, &["delete", "name", &format!("m{at}")]);
            assert!(agreed, "{text}");
            wait_for("a removed member ends", || {
                let process = members.running[at].as_mut().expect("it ran");
                process.0.try_wait().expect("a child").is_some()
            });
            members.running[at] = None;
        }
        members.until_whole(3, 1);
        let (agreed, text) = members.ctl(3, &["delete", "name", "m3"]);
        assert!(!agreed && text.contains("the last voter"), "{text}");
        until_more();
        (true, members)
    });
    done.store(done_moving, Ordering::Relaxed);
    clock.await.expect("timestamps rise");
    println!("{} timestamps", taken.load(Ordering::Relaxed));
    drop(members);
}
