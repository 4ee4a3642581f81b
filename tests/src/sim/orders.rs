//! What operators ask of the placement driver at any time: leaders handed over, members added and removed, splits.

use std::cell::Cell;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use base::Prng;
use executor::io::{AsyncReadExt as _, AsyncWriteExt as _};
use proto::metapb;

use super::workload::{History, Hush, count};
use crate::client::Client;

/// How long the answer may take.
const LIMIT: Duration = Duration::from_secs(2);

/// Orders something every now and then, up to `pause` apart.
pub(super) async fn run(pd: SocketAddr, seed: u64, history: Rc<History>, stop: Rc<Cell<bool>>, pause: Duration) {
    let (client, mut prng) = (Client::new(&pd.to_string()), Prng::new(seed));
    while !stop.get() {
        executor::sleep(Duration::from_nanos(prng.below(pause.as_nanos() as u64 + 1))).await;
        let (Ok(regions), Ok(stores)) = (client.regions().await, client.store_ids().await) else { continue };
        if regions.is_empty() || stores.is_empty() || history.hush.get() != Hush::Nothing {
            continue;
        }
        let region = &regions[prng.below(regions.len() as u64) as usize];
        let order = order(&mut prng, region, &stores);
        if let Ok(Ok(true)) = executor::timeout(LIMIT, post(pd, &order)).await {
            count(&history.orders);
        }
    }
    count(&history.workers_done);
}

/// An order in JSON. The placement driver refuses those that make no sense.
fn order(prng: &mut Prng, region: &metapb::Region, stores: &[u64]) -> String {
    let id = region.id;
    let mut any = |count: usize| prng.below(count as u64) as usize;
    let store = stores[any(stores.len())];
    let member = region.peers[any(region.peers.len())].store_id;
    match any(8) {
        0..=2 => format!(r#"{{"name":"transfer-leader","region_id":{id},"to_store_id":{member}}}"#),
        3 => format!(r#"{{"name":"remove-peer","region_id":{id},"store_id":{member}}}"#),
        4 => format!(r#"{{"name":"add-peer","region_id":{id},"store_id":{store}}}"#),
        5 => {
            format!(r#"{{"name":"transfer-peer","region_id":{id},"from_store_id":{member},"to_store_id":{store}}}"#)
        }
        6 => format!(r#"{{"name":"scatter-region","region_id":{id}}}"#),
        _ => {
            let key = format!("key-{:05}", any(150));
            let hex = key.bytes().fold(String::new(), |mut hex, byte| {
                // Writing to a string cannot fail.
                let _ = write!(hex, "{byte:02x}");
                hex
            });
            format!(r#"{{"name":"split-region","region_id":{id},"policy":"usekey","keys":["{hex}"]}}"#)
        }
    }
}

/// Whether the placement driver takes it.
pub(super) async fn post(pd: SocketAddr, body: &str) -> std::io::Result<bool> {
    let mut stream = executor::net::TcpStream::connect(pd).await?;
    let length = body.len();
    let request = format!(
        "POST /pd/api/v1/operators HTTP/1.1\r\nHost: pd\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
    );
    stream.write_all(request.as_bytes()).await?;
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).await?;
    Ok(answer.ends_with(b" 200"))
}
