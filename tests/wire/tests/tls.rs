//! Mutual TLS on every port of real processes: what works, who is refused and what the log says of it, and certificates
//! that are replaced while everything runs.

mod common;

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::process::Stdio;
use std::time::Duration;

use basalt_wire::certificates::{Authority, Certificates};
use basalt_wire::fleet::{Fleet, Plan, are_whole, settings};
use basalt_wire::http::{get, metric, post};
use basalt_wire::process::{binary, wait_for};
use common::on_a_runtime;
use tikv_client::{Config, KvPair, RawClient};

const QUICK: &str = "[raftstore]\npd-heartbeat-tick-interval = \"1s\"\npd-store-heartbeat-tick-interval = \"1s\"\n";
/// Between two lines of one port about who was refused.
const LINE_INTERVAL: Duration = Duration::from_millis(1100);

async fn tikv(fleet: &Fleet, files: &Certificates) -> Result<RawClient, tikv_client::Error> {
    let config = Config::default().with_timeout(Duration::from_secs(10));
    let config = config.with_security(&files.ca, &files.cert, &files.key);
    RawClient::new_with_config(vec![fleet.pd.clone()], config).await
}

/// Puts, gets, scans and deletes.
async fn use_client(client: &RawClient) {
    let key = |i: u32| format!("key-{i:04}").into_bytes();
    let pairs: Vec<KvPair> = (0..200).map(|i| KvPair(key(i).into(), vec![7; 1000])).collect();
    client.batch_put(pairs).await.expect("a batch put");
    for i in 0..50 {
        client.put(key(i), format!("value-{i}")).await.expect("a put");
        assert_eq!(client.get(key(i)).await.expect("a get"), Some(format!("value-{i}").into_bytes()));
    }
    let found = client.scan(key(0)..key(200), 200).await.expect("a scan");
    assert_eq!(found.len(), 200);
    assert_eq!(found[49].1, b"value-49");
    client.delete_range(key(0)..key(200)).await.expect("a delete");
    assert_eq!(client.get(key(5)).await.expect("a get"), None);
}

#[test]
fn clients_nodes_the_placement_driver_and_ctl_talk_over_mutual_tls() {
    let files = tempfile::tempdir().expect("a folder");
    let authority = Authority::new("authority");
    let (node, tidb) = (authority.sign("node", false), authority.sign("tidb", false));
    let certificates = authority.write(&files.path().join("node"), &node, &["node", "tidb"]);
    let theirs = authority.write(&files.path().join("tidb"), &tidb, &[]);
    let plan = Plan { nodes: 3, config: QUICK.into(), certificates: Some(certificates), ..Plan::default() };
    let fleet = Fleet::start(plan);

    let set = post("/pd/api/v1/config", &settings());
    authority.ask(&fleet.pd, &tidb, &set).expect("the settings are taken");
    wait_for("three replicas over TLS", || are_whole(&authority.json(&fleet.pd, &tidb, "/pd/api/v1/regions"), 3));
    let members = authority.json(&fleet.pd, &tidb, "/pd/api/v1/members");
    assert_eq!(members["members"][0]["client_urls"][0], format!("https://{}", fleet.pd));

    on_a_runtime(async {
        let client = tikv(&fleet, &theirs).await.expect("a client");
        use_client(&client).await;
    });
    fleet.ctl(&["put", "hello", "world"]);
    assert_eq!(fleet.ctl(&["get", "hello"]), "world\n");
    assert_eq!(fleet.ctl(&["stores"]).lines().count(), 1 + 3);

    for (number, member) in fleet.members.iter().enumerate() {
        let page = authority.page(&member.status, &tidb, "/metrics");
        // The others' raft, at least.
        assert!(metric(&page, "basalt_net_tls_handshakes_total") >= 2, "node {number}");
        assert_eq!(metric(&page, "basalt_net_tls_refused_total"), 0, "node {number}");
    }
    let page = authority.page(&fleet.pd, &tidb, "/metrics");
    assert!(metric(&page, "pd_net_tls_handshakes_total") > 5);
    assert_eq!(metric(&page, "pd_net_tls_refused_total"), 0);
}

#[test]
fn strangers_are_refused_on_every_port_and_the_log_has_the_reason() {
    let files = tempfile::tempdir().expect("a folder");
    let (authority, stranger) = (Authority::new("authority"), Authority::new("stranger"));
    let node = authority.sign("node", false);
    let certificates = authority.write(&files.path().join("node"), &node, &["node"]);
    let plan = Plan { nodes: 1, config: QUICK.into(), certificates: Some(certificates), ..Plan::default() };
    let fleet = Fleet::start(plan);
    let member = &fleet.members[0];
    let ports = [("node", &member.address), ("status port", &member.status), ("placement driver", &fleet.pd)];

    let foreign = stranger.sign("node", false);
    let expired = authority.sign("node", true);
    let unnamed = authority.sign("guest", false);
    let cases = [
        ("no certificate", None, "no certificates"),
        ("wrong authority", Some(&foreign), "UnknownIssuer"),
        ("expired", Some(&expired), "expired"),
        ("name not allowed", Some(&unnamed), "not among the allowed"),
    ];
    let knock = |case: &str, reason: &str, knock: &dyn Fn(&str) -> SocketAddr| {
        for (port, address) in ports {
            let peer = knock(address);
            wait_for(&format!("{case} at the {port}: a line with {reason:?} about {peer}"), || {
                let log = if port == "placement driver" { fleet.pd_log() } else { fleet.node_log(0) };
                let about = format!("peer={peer} ");
                log.lines().any(|line| line.contains(&about) && line.contains("WARN") && line.contains(reason))
            });
        }
        std::thread::sleep(LINE_INTERVAL);
    };
    for (case, identity, reason) in cases {
        knock(case, reason, &|address| {
            let mut client = authority.dial(address, identity);
            let peer = client.sock.local_addr().expect("connected");
            let sent = client.write_all(get("/metrics").as_bytes());
            let mut answer = Vec::new();
            let read = client.read_to_end(&mut answer);
            assert!((sent.is_err() || read.is_err()) && answer.is_empty(), "{case} gets no answer");
            peer
        });
    }
    for (case, bytes) in
        [("plain HTTP/1", &b"GET / HTTP/1.1\r\n\r\n"[..]), ("plain HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")]
    {
        knock(case, "it does not speak TLS", &|address| {
            let mut socket = TcpStream::connect(address).expect("the port accepts");
            socket.write_all(bytes).expect("sent");
            let mut answer = Vec::new();
            // A reset is an end, too.
            let _ = socket.read_to_end(&mut answer);
            assert!(answer.is_empty(), "{case} gets no answer");
            socket.local_addr().expect("connected")
        });
    }

    // Tools say why they are not let in, and the others are not disturbed.
    let theirs = stranger.write(&files.path().join("stranger"), &foreign, &[]);
    let pd = ["--pd", &fleet.pd];
    let output = std::process::Command::new(binary()).arg("ctl").args(pd).args(theirs.flags()).arg("stores").output();
    let output = output.expect("ctl runs");
    let told = String::from_utf8_lossy(&output.stderr).to_string();
    assert!(output.status.code() == Some(1) && told.contains("TLS: "), "{told}");
    let output = std::process::Command::new(binary()).arg("ctl").args(pd).arg("stores").output().expect("ctl runs");
    assert_eq!(output.status.code(), Some(1), "without certificates");
    on_a_runtime(async { assert!(tikv(&fleet, &theirs).await.is_err(), "a client of another authority") });
    fleet.ctl(&["put", "hello", "world"]);
    let page = authority.page(&member.status, &node, "/metrics");
    assert!(metric(&page, "basalt_net_tls_refused_total") >= 12);
    assert!(metric(&authority.page(&fleet.pd, &node, "/metrics"), "pd_net_tls_refused_total") >= 6);
}

#[test]
fn replaced_certificates_are_taken_without_a_restart() {
    let files = tempfile::tempdir().expect("a folder");
    let authority = Authority::new("authority");
    let first = authority.sign("node", false);
    let certificates = authority.write(files.path(), &first, &[]);
    let plan = Plan { nodes: 1, config: QUICK.into(), certificates: Some(certificates.clone()), ..Plan::default() };
    let fleet = Fleet::start(plan);
    let shown = |address: &str| {
        let mut client = authority.dial(address, Some(&first));
        client.write_all(get("/").as_bytes()).expect("let in");
        client.conn.peer_certificates().expect("the server shows one")[0].clone().into_owned()
    };
    let ports = [fleet.members[0].address.clone(), fleet.members[0].status.clone(), fleet.pd.clone()];
    on_a_runtime(async {
        let client = tikv(&fleet, &certificates).await.expect("a client");
        use_client(&client).await;
        ports.iter().for_each(|address| assert_eq!(shown(address), first.der()));
        let second = authority.sign("node", false);
        authority.write(files.path(), &second, &[]);
        for address in &ports {
            wait_for("the new certificate", || shown(address) == second.der());
        }
        use_client(&client).await;
        use_client(&tikv(&fleet, &certificates).await.expect("a client with the new certificate")).await;
    });
    let page = authority.page(&fleet.members[0].status, &first, "/metrics");
    assert_eq!(metric(&page, "basalt_net_tls_reloads_total"), 1);
    assert_eq!(metric(&authority.page(&fleet.pd, &first, "/metrics"), "pd_net_tls_reloads_total"), 1);
}

#[test]
fn a_stranger_does_not_join_the_placement_driver() {
    let files = tempfile::tempdir().expect("a folder");
    let (authority, stranger) = (Authority::new("authority"), Authority::new("stranger"));
    let node = authority.sign("node", false);
    let certificates = authority.write(&files.path().join("node"), &node, &["node"]);
    let fleet = Fleet::start(Plan { nodes: 0, certificates: Some(certificates.clone()), ..Plan::default() });
    let start = |name: &str, scheme: &str, flags: &[String]| {
        let join = format!("{scheme}://{}", fleet.pd);
        let data_dir = files.path().join(format!("{name}-data"));
        let fixed = ["pd", "--die-with-parent", "--allow-buffered", "--addr", "127.0.0.1:0", "--name", name];
        let mut command = std::process::Command::new(binary());
        command.args(fixed).args(["--join", &join]).args(flags).arg("--data-dir").arg(data_dir);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts")
    };
    // It trusts the port; it is the port that does not trust it.
    let foreign = authority.write(&files.path().join("foreign"), &stranger.sign("node", false), &[]);
    let expired = authority.write(&files.path().join("expired"), &authority.sign("node", true), &[]);
    let guest = authority.write(&files.path().join("guest"), &authority.sign("guest", false), &[]);
    let cases = [
        ("foreign", "https", foreign.flags(), "UnknownIssuer"),
        ("expired", "https", expired.flags(), "expired"),
        ("guest", "https", guest.flags(), "not among the allowed"),
        ("plain", "http", Vec::new(), "it does not speak TLS"),
    ];
    // One after the other: a port says once a second who was refused, and one of them.
    for (name, scheme, flags, reason) in cases {
        let mut child = start(name, scheme, &flags);
        wait_for(&format!("{name}: a line with {reason:?}"), || {
            fleet.pd_log().lines().any(|line| line.contains("WARN") && line.contains(reason))
        });
        if name == "plain" {
            // It asks for half a minute before it gives up.
            let output = child.wait_with_output().expect("it ends");
            let told = String::from_utf8_lossy(&output.stderr);
            assert!(!output.status.success() && told.contains("cannot join the group"), "{told}");
        } else {
            child.kill().expect("it asks still");
            child.wait().expect("it ends");
        }
        std::thread::sleep(LINE_INTERVAL);
    }
    let members = authority.json(&fleet.pd, &node, "/pd/api/v1/members");
    assert_eq!(members["members"].as_array().map(Vec::len), Some(1), "{members}");
    // Whoever is known joins, and they talk over TLS from then on.
    let mut member = start("known", "https", &certificates.flags());
    wait_for("the member votes", || {
        let members = authority.json(&fleet.pd, &node, "/pd/api/v1/members");
        let votes = |member: &&serde_json::Value| member["is_learner"] == false;
        members["members"].as_array().is_some_and(|members| members.iter().filter(votes).count() == 2)
    });
    member.kill().expect("it runs");
    member.wait().expect("it ends");
}
