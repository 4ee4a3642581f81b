//! A disk that hangs, or fails, under the node with most leaders: clients notice for two seconds at most.

mod common;

use std::time::Duration;

use basalt_wire::probe::quantiles;
use basalt_wire::trouble::{Trouble, Troubled};
use common::on_a_runtime;

const GAP_MAX: Duration = Duration::from_secs(2);

fn try_it(trouble: Trouble) {
    let mut troubled = Troubled::start(trouble);
    let gaps = on_a_runtime(troubled.run(2, Duration::from_secs(8)));
    println!("{trouble:?}: a key could not be written for {}", quantiles(&gaps));
    assert!(gaps[gaps.len() - 1] < GAP_MAX, "{gaps:?}");
}

#[test]
fn a_node_whose_disk_hangs_gives_its_leaders_up() {
    try_it(Trouble::Hang);
}

#[test]
fn a_node_whose_disk_fails_ends_and_the_others_go_on() {
    try_it(Trouble::Fail);
}
