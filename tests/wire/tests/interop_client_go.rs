//! The stock Go client's raw API, under our placement driver and under the stock one, while leaders move and regions split.
//! `make interop` builds `tests/interop/client-go` and runs these tests; without it they are left out.

use std::process::{Command, Stdio};
use std::time::Duration;

use basalt_wire::fleet::{Fleet, Plan};
use basalt_wire::stock_pd::StockPd;
use base::Prng;
use serde_json::json;

/// Nodes that report often, and regions of a few keys.
const SMALL: &str = "[coprocessor]\nregion-max-keys = 20\nregion-split-keys = 10\n\
                     [raftstore]\nregion-split-check-diff = \"256B\"\n\
                     pd-heartbeat-tick-interval = \"1s\"\npd-store-heartbeat-tick-interval = \"1s\"\n";
const ROUNDS: &str = "3";

/// Runs the program, which ends by itself after four minutes at most, and moves leaders until it has ended.
fn use_everything(fleet: &Fleet) {
    let programs = std::env::var("BASALT_CLIENT_GO").expect("BASALT_CLIENT_GO names a folder: run `make interop`");
    // It ends with the test, however that ends.
    let mut child = Command::new("setpriv")
        .args(["--pdeathsig", "KILL"])
        .arg(format!("{programs}/rawkv"))
        .arg(&fleet.pd)
        .arg(ROUNDS)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .expect("the program starts");
    let mut prng = Prng::new(5);
    let mut orders = 0;
    while child.try_wait().expect("the program's state").is_none() {
        std::thread::sleep(Duration::from_millis(50));
        let regions = fleet.regions();
        let Some(region) = regions.get(prng.below(regions.len().max(1) as u64) as usize) else { continue };
        let peers = region["peers"].as_array().map_or(&[][..], Vec::as_slice);
        let Some(peer) = peers.get(prng.below(peers.len().max(1) as u64) as usize) else { continue };
        let order = json!({ "name": "transfer-leader", "region_id": region["id"], "to_store_id": peer["store_id"] });
        orders += u32::from(peer["store_id"] != region["leader"]["store_id"] && fleet.order(&order));
    }
    let ended = child.wait().expect("it has ended");
    println!("{orders} transfers, {} regions", fleet.regions().len());
    assert!(ended.success(), "the program says what is wrong: {ended}");
    assert!(orders > 5, "only {orders} transfers were taken");
    assert!(fleet.regions().len() > 10, "{} regions", fleet.regions().len());
}

#[test]
#[ignore = "needs Go: make interop"]
fn the_go_client_works_under_our_placement_driver() {
    use_everything(&Fleet::replicated(3, 1, SMALL));
}

#[test]
#[ignore = "needs Go: make interop"]
fn the_go_client_works_under_the_stock_placement_driver() {
    let pd = StockPd::start();
    let plan = Plan { under: Some(pd.address.clone()), certificates: None, config: SMALL.into(), ..Plan::default() };
    let fleet = Fleet::start(plan);
    fleet.wait_for_replicas(3);
    use_everything(&fleet);
}
