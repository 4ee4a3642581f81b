//! What other stores send: raft messages and snapshots.

use std::rc::Rc;

use proto::raft_serverpb::{Done, RaftMessage};
use proto::rpc::{Inbound, Outbound, RawInbound, RawOutbound, Status};
use proto::tikvpb::BatchRaftMessage;

use crate::core::{CoreHost, snapshots};
use crate::engine::Engine;

/// Messages that are taken in before other tasks get their turn.
const MESSAGES_PER_PASS: usize = 256;

/// Serves one stream of another store. Streams of messages have no end of their own.
pub(super) async fn serve<E: Engine>(
    host: Rc<CoreHost<E>>,
    method: String,
    inbound: Box<dyn RawInbound>,
    outbound: Rc<dyn RawOutbound>,
) -> Result<(), Status> {
    let done = match method.as_str() {
        "Raft" => messages(&host, Inbound::new(inbound), |message: RaftMessage| vec![message]).await?,
        "BatchRaft" => messages(&host, Inbound::new(inbound), |batch: BatchRaftMessage| batch.msgs).await?,
        _ => snapshots::receive(&host, Inbound::new(inbound)).await?,
    };
    Outbound::new(outbound).send(&done).await
}

async fn messages<E: Engine, M: prost::Message + Default>(
    host: &Rc<CoreHost<E>>,
    mut inbound: Inbound<M>,
    unpack: impl Fn(M) -> Vec<RaftMessage>,
) -> Result<Done, Status> {
    let mut taken = 0;
    while let Some(message) = inbound.next().await? {
        for letter in unpack(message) {
            host.deliver(Box::new(letter));
            taken += 1;
        }
        if taken >= MESSAGES_PER_PASS {
            taken = 0;
            executor::yield_now().await;
        }
    }
    Ok(Done::default())
}
