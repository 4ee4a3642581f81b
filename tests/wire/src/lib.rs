//! Tests against real `basalt` processes, over the wire: nothing in them can reach into a node, and a change of a node
//! does not recompile them. The binary must have been built.
//!
//! [`process`] starts a cluster. The tests: `raw_api` (the third-party crate `tikv-client`), `rpc` and `batch_commands`
//! (a plain HTTP/2 client), `bad_input`, `crash` (SIGKILL under load), `durability` (the kernel's count of syncs),
//! `forbidden_uring`, `tls` (mutual TLS on every port), `three_nodes`, `pd_members` (members of the placement driver are
//! killed, come and go), `operations` (ctl, restarts, joins, wiped and copied folders), `disk_full`, `disk_trouble` (it
//! hangs, or fails), `namespaces` (real links that are cut). [`fleet`] starts several nodes that come and go one by one;
//! [`probe`], [`kills`] and [`trouble`] are what tests share with the measurements in `examples/measure`. [`certificates`]
//! makes certificates, and has suites speak mutual TLS with `BASALT_TLS=1`.

pub mod certificates;
pub mod fleet;
pub mod http;
pub mod kills;
pub mod networks;
pub mod probe;
pub mod process;
pub mod small_disk;
pub mod stock_pd;
pub mod trouble;
