//! A disk that hangs or fails under one of three nodes, while clients write.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::fleet::Fleet;
use crate::kills::CONFIG;
use crate::probe::{Probes, client};
use crate::process::wait_for;

const PROBES: u64 = 24;

/// What a disk does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// Writes do not return.
    Hang,
    /// They return errors: the node ends.
    Fail,
}

/// Three nodes whose disks can be put into trouble.
pub struct Troubled {
    /// The nodes.
    pub fleet: Fleet,
    trouble: Trouble,
}

impl Troubled {
    /// Starts them, with some regions.
    ///
    /// # Panics
    /// If they do not start.
    pub fn start(trouble: Trouble) -> Troubled {
        let mut troubled = Troubled { fleet: Fleet::replicated(3, 1, CONFIG), trouble };
        let plant = if trouble == Trouble::Hang { "hang" } else { "fail" };
        for number in 0..3 {
            let switch = troubled.switch(number).display().to_string();
            let fleet = &mut troubled.fleet;
            fleet.stop(number);
            fleet.members[number].flags = vec!["--plant".to_string(), plant.to_string()];
            fleet.members[number].environment = vec![("BASALT_PLANT_WHILE".to_string(), switch)];
            fleet.launch(number);
            fleet.wait_for_replicas(3);
        }
        troubled
    }

    fn switch(&self, number: usize) -> PathBuf {
        self.fleet.dir().join(format!("trouble-{number}"))
    }

    fn leaders(&self, number: usize) -> usize {
        let store = self.fleet.members[number].store_id;
        let leads = |region: &&serde_json::Value| region["leader"]["store_id"].as_u64() == Some(store);
        self.fleet.regions().iter().filter(leads).count()
    }

    /// Has the disk of the node with most leaders be in trouble for `lasts` at least, `rounds` times. Answers how long
    /// each key could not be written, sorted; checks that nothing is lost, and that all replicas are equal in the end.
    ///
    /// # Panics
    /// If it is not so, or the node keeps its leaders.
    pub async fn run(&mut self, rounds: u32, lasts: Duration) -> Vec<Duration> {
        let loader = client(&self.fleet.pd).await;
        for i in 0..PROBES * 10 {
            loader.put(format!("probe-{i:05}").into_bytes(), b"0".to_vec()).await.expect("a put");
        }
        tokio::task::block_in_place(|| self.fleet.wait_for_replicas(3));
        let keys = (0..PROBES).map(|i| format!("probe-{:05}", i * 10).into_bytes());
        let probes = Probes::start(&self.fleet.pd, keys).await;
        let mut all = Vec::new();
        for round in 0..rounds {
            tokio::time::sleep(Duration::from_secs(2)).await;
            let number = tokio::task::block_in_place(|| self.fleet.with_most_leaders());
            let before = tokio::task::block_in_place(|| self.leaders(number));
            let begun = Instant::now();
            std::fs::write(self.switch(number), "").expect("a file");
            let gaps = probes.gaps(begun).await;
            let longest = gaps[gaps.len() - 1];
            println!("{:?} {round} of node {number} with {before} leaders: all keys after {longest:?}", self.trouble);
            all.extend(gaps);
            tokio::time::sleep(lasts.saturating_sub(begun.elapsed())).await;
            tokio::task::block_in_place(|| self.end(number));
            probes.check().await;
        }
        probes.finish().await;
        tokio::task::block_in_place(|| self.fleet.compare());
        all.sort_unstable();
        all
    }

    /// Ends the trouble of a node, which must have led nothing any more, and waits until it has caught up.
    fn end(&mut self, number: usize) {
        match self.trouble {
            Trouble::Hang => {
                // An idle region's leader has nothing to write, and may stay.
                assert!(self.fleet.metric(number, "basalt_shard_log_stalls_total") > 0, "no stall was noticed");
                std::fs::remove_file(self.switch(number)).expect("it was there");
            }
            Trouble::Fail => {
                wait_for("the node to end by itself", || self.fleet.has_ended(number));
                assert!(self.fleet.node_log(number).contains("a planted failure of the disk"));
                std::fs::remove_file(self.switch(number)).expect("it was there");
                self.fleet.launch(number);
            }
        }
        self.fleet.wait_for_replicas(3);
    }
}
