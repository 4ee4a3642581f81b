//! What a fleet says of itself over HTTP, and what its placement driver is told.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::Fleet;
use crate::http::{self, Answer, get, metric, post, request};

/// How long replicas may take: far more than they need on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// Settings of a placement driver for machines whose disk is nearly full, where nothing would be placed.
pub fn settings() -> Value {
    json!({ "low-space-ratio": 0.999 })
}

fn is_whole(region: &Value, count: usize) -> bool {
    let peers = region["peers"].as_array().map_or(&[][..], Vec::as_slice);
    let voters = peers.iter().filter(|peer| peer["role_name"] == "Voter").count();
    voters == count && peers.len() == count && region["pending_peers"].as_array().is_none_or(Vec::is_empty)
}

/// Whether every region of `/regions` has `count` voters, none of which is behind.
pub fn are_whole(regions: &Value, count: usize) -> bool {
    let regions = regions["regions"].as_array().map_or(&[][..], Vec::as_slice);
    !regions.is_empty() && regions.iter().all(|region| is_whole(region, count))
}

impl Fleet {
    fn ask(&self, address: &str, request: &str) -> Answer {
        http::ask(address, self.plan.certificates.as_ref(), request)
    }

    /// What the placement driver answers to a GET.
    ///
    /// # Panics
    /// If it does not answer with 200.
    pub fn get(&self, path: &str) -> Value {
        serde_json::from_str(&self.ask(&self.pd, &get(path)).expect_ok(path)).expect("JSON")
    }

    /// As [`Fleet::get`], a POST.
    ///
    /// # Panics
    /// If it does not answer with 200.
    pub fn post(&self, path: &str, body: &Value) {
        self.ask(&self.pd, &post(path, body)).expect_ok(path);
    }

    /// A request of any method that changes something at the placement driver; `Null` is no body.
    ///
    /// # Errors
    /// Its words, if it does not answer with 200.
    pub fn send(&self, method: &str, path: &str, body: &Value) -> Result<(), String> {
        let answer = self.ask(&self.pd, &request(method, path, body));
        if answer.is_ok() { Ok(()) } else { Err(answer.body) }
    }

    /// Orders an operator, in the words of `pd-ctl`; false if the placement driver refuses.
    pub fn order(&self, operator: &Value) -> bool {
        self.send("POST", "/pd/api/v1/operators", operator).is_ok()
    }

    /// Regions as the placement driver knows them.
    pub fn regions(&self) -> Vec<Value> {
        self.get("/pd/api/v1/regions")["regions"].as_array().cloned().unwrap_or_default()
    }

    /// Lets replicas be placed although the disk is nearly full, as those of test machines are, and waits until every
    /// region has a voter on each of `count` stores.
    ///
    /// # Panics
    /// If it takes more than a minute.
    pub fn replicate(&self, count: usize) {
        self.post("/pd/api/v1/config", &settings());
        self.wait_for_replicas(count);
    }

    /// Waits until every region has so many voters and none of them is behind.
    ///
    /// # Panics
    /// If it takes more than a minute; says which regions are not whole.
    pub fn wait_for_replicas(&self, count: usize) {
        let limit = Instant::now() + PATIENCE;
        loop {
            let regions = self.regions();
            let partial: Vec<&Value> = regions.iter().filter(|region| !is_whole(region, count)).collect();
            if !regions.is_empty() && partial.is_empty() {
                return;
            }
            assert!(Instant::now() < limit, "without {count} replicas: {partial:#?}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Compares the replicas of all regions, by `ctl consistency --all`.
    ///
    /// # Panics
    /// If they differ, or some did not answer.
    pub fn compare(&self) {
        let compared = self.ctl(&["consistency", "--all"]);
        assert!(compared.lines().all(|line| line.contains(": the same at entry ")), "{compared}");
        println!("{} regions compared: all replicas are equal", compared.lines().count());
    }

    /// What a node's status port answers with code 200; `None` if it refuses.
    pub fn status(&self, number: usize, path: &str) -> Option<Value> {
        let answer = self.ask(&self.members[number].status, &get(path));
        answer.is_ok().then(|| serde_json::from_str(&answer.body).expect("JSON"))
    }

    /// A metric of a node, summed over cores, shards and other labels.
    ///
    /// # Panics
    /// If the node does not answer or has no such metric.
    pub fn metric(&self, number: usize, name: &str) -> u64 {
        metric(&self.ask(&self.members[number].status, &get("/metrics")).expect_ok("/metrics"), name)
    }
}
