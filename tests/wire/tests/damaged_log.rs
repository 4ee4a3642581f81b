//! A disk spoils a block of a raft log while the node is down: the node says so, the region stays closed until an
//! operator accepts the loss, and then everything before the lost block is there.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use basalt_wire::process::{Cluster, Start, binary};

const KEYS: usize = 60;

/// More than what is in a block without an entry.
const VALUE_BYTES: usize = 200;

fn value(at: usize) -> String {
    format!("v{at}-{}", "x".repeat(VALUE_BYTES))
}

/// How a block of the log begins (docs/formats.md).
const MAGIC: &[u8] = b"BRLG";

fn ctl(arguments: &[&str], more: &[&Path]) -> (bool, String) {
    let run = Command::new(binary()).arg("ctl").args(arguments).args(more).env("BASALT_LOG", "error").output();
    let Output { status, stdout, stderr } = run.expect("it runs");
    (status.success(), format!("{}{}", String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr)))
}

/// Every block of the log in `folder` that holds an entry: its file and where it begins, in the order of the log. The
/// others are seals and openings, of which nothing is missed.
fn blocks(folder: &Path) -> Vec<(PathBuf, usize)> {
    let mut found = Vec::new();
    for file in std::fs::read_dir(folder).expect("the log's folder") {
        let path = file.expect("a file").path();
        let bytes = std::fs::read(&path).expect("a segment");
        let length = |unit: &[u8]| u32::from_le_bytes(unit[12..16].try_into().expect("four bytes"));
        let holds_an_entry = |unit: &[u8]| unit.starts_with(MAGIC) && length(unit) as usize > VALUE_BYTES;
        let starts = bytes.chunks(4096).enumerate().filter(|(_, unit)| holds_an_entry(unit));
        found.extend(starts.map(|(at, unit)| {
            let sequence = u64::from_le_bytes(unit[48..56].try_into().expect("eight bytes"));
            (sequence, path.clone(), at * 4096)
        }));
    }
    found.sort();
    found.into_iter().map(|(_, path, at)| (path, at)).collect()
}

fn spoil(path: &Path, at: usize) {
    let mut bytes = std::fs::read(path).expect("a segment");
    bytes[at + 64..at + 80].iter_mut().for_each(|byte| *byte ^= 0x5A);
    std::fs::write(path, bytes).expect("written");
}

#[test]
fn a_damaged_region_is_closed_until_an_operator_accepts_the_loss() {
    let dir = tempfile::tempdir().expect("a folder");
    let data = dir.path().join("data");
    let start = Start { data_dir: data.clone(), cores: 1, io: "auto".into(), ..Default::default() };
    let node = data.join("node-1");
    let cluster = Cluster::start(&start);
    for at in 0..KEYS {
        let (done, said) = ctl(&["--pd", &cluster.pd, "put", &format!("k{at:03}"), &value(at)], &[]);
        assert!(done, "{said}");
    }
    let (done, said) = ctl(&["damage", "--data-dir"], &[&node]);
    assert!(!done && said.contains("lock"), "a node runs there: {said}");
    cluster.kill_node();

    let (done, said) = ctl(&["damage", "--data-dir"], &[&node]);
    assert!(done && said.starts_with("shard 0: whole"), "{said}");
    let all = blocks(&node.join("shard-000/log"));
    let (path, at) = &all[all.len() - 20];
    spoil(path, *at);
    let (done, said) = ctl(&["damage", "--data-dir"], &[&node]);
    assert!(done && said.starts_with("shard 0: damaged") && said.contains("closed"), "{said}");

    let cluster = Cluster::start(&start);
    let (done, said) = ctl(&["--pd", &cluster.pd, "get", "k000"], &[]);
    assert!(!done && said.contains("no leader"), "{said}");
    cluster.stop();

    let (done, said) = ctl(&["damage", "--accept", "--data-dir"], &[&node]);
    assert!(done && said.contains("serves from the next start on"), "{said}");
    let (done, said) = ctl(&["damage", "--data-dir"], &[&node]);
    assert!(done && said.starts_with("shard 0: whole"), "{said}");
    for round in 0..2 {
        let cluster = Cluster::start(&start);
        let get = |at: usize| ctl(&["--pd", &cluster.pd, "get", &format!("k{at:03}")], &[]);
        let held = (0..KEYS).take_while(|at| get(*at) == (true, value(*at) + "\n")).count();
        assert!((KEYS - 30..KEYS).contains(&held), "the keys written before the lost block are there: {held}");
        for at in held..KEYS {
            let (done, said) = get(at);
            assert!(!done && said.contains("not found"), "k{at:03} was written after the lost block: {said}");
        }
        let (done, said) = ctl(&["--pd", &cluster.pd, "put", "z", &format!("{round}")], &[]);
        assert!(done, "{said}");
        assert_eq!(ctl(&["--pd", &cluster.pd, "get", "z"], &[]), (true, format!("{round}\n")));
        cluster.kill_node();
    }
}
