//! Hot regions that all lie on one core of a node of two.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use base::RegionId;
use bytes::Bytes;
use shard::core::spread::SpreadConfig;
use shard::core::stored_peers;

use super::workload::count;
use super::world::{RECOVERY_LIMIT, World};
use crate::client::Fate;

/// Enough for a dozen regions of ten to twenty keys.
const KEYS: usize = 150;
const REGIONS_MIN: usize = 9;
/// Regions that are read all the time.
const HOT: usize = 4;
/// How long they may take to be spread, and how long they are watched after that.
const LIMIT: Duration = Duration::from_secs(60);
const WATCHED: Duration = Duration::from_secs(20);

/// Where a region's peer is.
#[derive(Clone, Debug, Default)]
struct Place {
    engine: usize,
    move_number: u64,
    start: Bytes,
}

impl World {
    /// Makes a dozen regions on a node of two cores, which spreads them by number, and reads four that lie on one core.
    /// Answers with how many of these are on either core in the end. `beat`: as [`SpreadConfig::beat`].
    ///
    /// # Panics
    /// If the regions are not spread by number before, a read fails, or what is spread once does not stay so.
    pub fn read_hot_regions_of_one_core(mut self, beat: Duration) -> [usize; 2] {
        let config = &mut self.nodes[0].config;
        config.cores = 2;
        config.spread = SpreadConfig { beat, work_min: 20, ..SpreadConfig::default() };
        config.shard.region_max_keys = 20;
        config.shard.region_split_keys = 10;
        config.shard.split_check_diff_bytes = 100;
        let seed = self.seed;
        let client = self.begin_story();
        let writer = client.clone();
        self.ask(RECOVERY_LIMIT, async move {
            for number in 0..KEYS {
                let key = Bytes::from(format!("key-{number:05}"));
                while writer.put(&key, &"value".into()).await != Fate::Done(()) {}
            }
        });
        let even = self.sim.run_until(RECOVERY_LIMIT, || {
            let homes = self.homes();
            let on_first = homes.values().filter(|place| place.engine == 0).count();
            homes.len() >= REGIONS_MIN && on_first.abs_diff(homes.len() - on_first) < 2
        });
        assert!(even, "seed {seed}: {:?}", self.homes());
        // Moves end, and no more regions are made.
        self.sim.run_for(Duration::from_secs(2));
        let on_one = self.homes().into_iter().filter(|(_, place)| place.engine == 1 && !place.start.is_empty());
        let hot: Vec<(RegionId, Bytes)> = on_one.map(|(region, place)| (region, place.start)).take(HOT).collect();
        assert_eq!(hot.len(), HOT, "seed {seed}: {:?}", self.homes());
        let (stop, reads) = (Rc::new(Cell::new(false)), Rc::new(Cell::new(0)));
        for (_, key) in hot.clone() {
            let (client, stop, reads) = (client.clone(), stop.clone(), reads.clone());
            self.sim.spawn_on(self.client, async move {
                while !stop.get() {
                    let fate = client.get(&key, None).await;
                    assert_eq!(fate, Fate::Done(Some("value".into())), "seed {seed}: {key:?}");
                    count(&reads);
                    executor::sleep(Duration::from_millis(1)).await;
                }
            });
        }
        let spread = || {
            let homes = self.homes();
            let engine_of = |region: &RegionId| homes.get(region).map(|place| place.engine);
            [0, 1].map(|engine| hot.iter().filter(|(region, _)| engine_of(region) == Some(engine)).count())
        };
        let mut waited = Duration::ZERO;
        while spread() != [HOT / 2; 2] && waited < LIMIT {
            self.run_for(Duration::from_millis(500));
            waited += Duration::from_millis(500);
        }
        let before = spread();
        self.run_for(WATCHED);
        assert_eq!(spread(), before, "seed {seed}: what was spread does not stay so");
        stop.set(true);
        assert!(reads.get() > 1000, "seed {seed}: {} reads", reads.get());
        before
    }

    /// Where the regions of the first node are; those that are on their way count where they came from.
    fn homes(&self) -> BTreeMap<RegionId, Place> {
        let mut homes: BTreeMap<RegionId, Place> = BTreeMap::new();
        for view in self.views() {
            for (engine, twin) in view.engines.iter().enumerate() {
                for peer in stored_peers(twin, view.store).unwrap_or_default() {
                    let held = homes.entry(RegionId(peer.region.id)).or_default();
                    if held.start.is_empty() || held.move_number < peer.move_number {
                        *held = Place { engine, move_number: peer.move_number, start: peer.region.start_key };
                    }
                }
            }
        }
        homes
    }
}
