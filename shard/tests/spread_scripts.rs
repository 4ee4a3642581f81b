//! Scripts of who is asked to move because of load: commands, a line `---`, and what each command answers, a line each.
//!
//! ```text
//! node cores=2 [shards=4] [min=100]   a new node; 100 seconds rest, 3 beats, 130 percent
//! bind 7 8                            these regions are bound to their place from now on
//! beat 0:1=50 0:2=50 1:3=10           a beat of a second, in which region 1 did 50 units on shard 0, ...
//! price 1 to=1                        what the move of region 1 to shard 1 would bring there
//! moves 1                             region 1 moves for another reason
//! ```
//!
//! A beat that asks for a move is followed by beats in which the region is where it was asked to be only if the script says so.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use base::{CoreId, Instant, RegionId, ShardId};
use shard::core::RegionWork;
use shard::core::spread::{Spread, SpreadConfig};

struct Scene {
    spread: Spread,
    now: Instant,
    bound: BTreeSet<RegionId>,
}

fn number(text: &str) -> u64 {
    text.parse().unwrap_or_else(|_| panic!("{text} is no number"))
}

fn setting(words: &[&str], name: &str, usual: u64) -> u64 {
    let found = words.iter().find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
    found.map_or(usual, number)
}

fn shard(text: &str) -> ShardId {
    ShardId(number(text) as u32)
}

/// `shard:region=work`
fn work(word: &str) -> RegionWork {
    let (place, work) = word.split_once('=').unwrap_or_else(|| panic!("{word} has no ="));
    let (home, region) = place.split_once(':').unwrap_or_else(|| panic!("{word} has no :"));
    RegionWork { shard: shard(home), region: RegionId(number(region)), work: number(work) }
}

fn node(words: &[&str]) -> Spread {
    let cores = setting(words, "cores", 2);
    let config = SpreadConfig {
        beat: Duration::from_secs(1),
        beats: 3,
        above_percent: 130,
        work_min: setting(words, "min", 100),
        rest: Duration::from_secs(100),
    };
    let shards = 0..setting(words, "shards", cores);
    Spread::new(config, shards.map(|shard| (ShardId(shard as u32), CoreId((shard % cores) as u16))))
}

impl Scene {
    fn run(&mut self, line: &str) -> String {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            ["node", settings @ ..] => {
                self.spread = node(settings);
                "ok".into()
            }
            ["bind", regions @ ..] => {
                self.bound = regions.iter().map(|region| RegionId(number(region))).collect();
                "ok".into()
            }
            ["beat", counted @ ..] => {
                self.now = self.now + Duration::from_secs(1);
                let counted: Vec<RegionWork> = counted.iter().map(|word| work(word)).collect();
                match self.spread.beat(self.now, &counted, |region| !self.bound.contains(&region)) {
                    Some(wish) => format!("region {} to shard {}", wish.region.0, wish.target.0),
                    None => "stay".into(),
                }
            }
            ["sleep", seconds] => {
                self.now = self.now + Duration::from_secs(number(seconds));
                "ok".into()
            }
            ["price", region, settings @ ..] => {
                let target = ShardId(setting(settings, "to", 0) as u32);
                let price = self.spread.price(self.now, RegionId(number(region)), target);
                price.map_or("stays".into(), |price| price.to_string())
            }
            ["moves", region] => {
                self.spread.moves(self.now, RegionId(number(region)));
                "ok".into()
            }
            other => panic!("no command: {other:?}"),
        }
    }
}

#[test]
fn scripts_answer_as_written() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/spread");
    let entries = std::fs::read_dir(folder).expect("scripts");
    let mut paths: Vec<_> = entries.map(|entry| entry.expect("an entry").path()).collect();
    paths.sort();
    assert!(paths.len() >= 8, "the scripts are here");
    for path in paths {
        let text = std::fs::read_to_string(&path).expect("a script");
        let (commands, expected) =
            text.split_once("\n---\n").unwrap_or_else(|| panic!("{} has no ---", path.display()));
        let mut scene = Scene { spread: Spread::default(), now: Instant(1_000_000_000), bound: BTreeSet::new() };
        let mut got = String::new();
        for line in commands.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
            writeln!(got, "{}", scene.run(line)).expect("a string");
        }
        assert_eq!(got.trim_end(), expected.trim_end(), "{}\n{got}", path.display());
    }
}
