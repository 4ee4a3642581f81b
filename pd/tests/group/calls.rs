//! Calls that are no part of the node's client.

use crate::world::{PLACES, address};
use executor::io::{AsyncReadExt, AsyncWriteExt};
use net::{Channel, ChannelConfig};
use proto::etcdserverpb::{KvClient, PutRequest, RangeRequest};
use proto::rpc::{CallContext, Status};
use std::time::Duration;

/// How long a client waits for an answer.
const PATIENCE: Duration = Duration::from_secs(3);

pub(crate) fn cx() -> CallContext {
    CallContext::with_deadline(executor::now() + PATIENCE)
}

/// etcd's calls on the group: each is tried at one member after the other until one leads.
pub(crate) struct Kv {
    stubs: Vec<KvClient<Channel>>,
    at: std::cell::Cell<usize>,
}

impl Kv {
    pub(crate) fn new() -> Kv {
        let stub = |at| KvClient::new(Channel::new(address(at), ChannelConfig::default()));
        Kv { stubs: (0..PLACES).map(stub).collect(), at: std::cell::Cell::new(0) }
    }

    /// Puts once: what an error leaves behind is unknown, unless it says that nobody leads there.
    pub(crate) async fn put(&self, key: &str, value: u64) -> Result<(), Status> {
        let put = PutRequest { key: key.to_owned().into(), value: value.to_string().into(), ..PutRequest::default() };
        let outcome = self.stubs[self.at.get()].put(cx(), &put).await.map(drop);
        if outcome.is_err() {
            self.next();
        }
        outcome
    }

    /// The value of a key, 0 for none; `None` if the member cannot be asked.
    pub(crate) async fn get(&self, key: &str) -> Option<u64> {
        let range = RangeRequest { key: key.to_owned().into(), ..RangeRequest::default() };
        match self.stubs[self.at.get()].range(cx(), &range).await {
            Ok(found) => {
                let value = found.kvs.first().map(|kv| String::from_utf8_lossy(&kv.value).into_owned());
                Some(value.map_or(0, |value| value.parse().expect("a number")))
            }
            Err(_) => {
                self.next();
                None
            }
        }
    }

    fn next(&self) {
        self.at.set((self.at.get() + 1) % PLACES);
    }
}

/// A REST request to a member: status and body; `None` if it cannot be asked.
pub(crate) async fn ask(at: usize, method: &str, path: &str, body: &str) -> Option<(u16, String)> {
    let request = async {
        let address = address(at).parse().expect("an address");
        let mut stream = executor::net::TcpStream::connect(address).await.ok()?;
        let text = format!(
            "{method} {path} HTTP/1.1\r\nhost: pd\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(text.as_bytes()).await.ok()?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.ok()?;
        let answer = String::from_utf8(answer).ok()?;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        Some((head.split(' ').nth(1)?.parse().ok()?, body.to_owned()))
    };
    executor::timeout(PATIENCE, request).await.ok().flatten()
}
