//! Plain gRPC to a fleet of several nodes: who leads, what it answers, and what a follower does.

use std::time::Duration;

use basalt_wire::fleet::Fleet;
use bytes::Bytes;
use proto::kvrpcpb::{self as kv, Context};
use proto::{metapb, pdpb};

use super::bytes;
use super::rpc::Rpc;

/// The region of a key with its leader, as the placement driver knows it now.
pub(crate) struct Place {
    pub(crate) region: metapb::Region,
    pub(crate) leader: metapb::Peer,
}

impl Place {
    pub(crate) fn context(&self, peer: metapb::Peer) -> Context {
        Context {
            region_id: self.region.id,
            region_epoch: self.region.region_epoch,
            peer: Some(peer),
            replica_read: peer != self.leader,
            ..Default::default()
        }
    }

    pub(crate) fn followers(&self) -> impl Iterator<Item = metapb::Peer> {
        self.region.peers.iter().copied().filter(|peer| *peer != self.leader)
    }
}

/// Connections to all nodes of a fleet and to its placement driver.
pub(crate) struct Clients {
    pd: Rpc,
    cluster_id: u64,
    stores: Vec<(u64, Rpc)>,
}

impl Clients {
    pub(crate) async fn connect(fleet: &Fleet) -> Clients {
        let pd = Rpc::connect(fleet.pd.parse().expect("an address")).await;
        let members: pdpb::GetMembersResponse = pd.pd("GetMembers", &pdpb::GetMembersRequest::default()).await;
        let cluster_id = members.header.expect("a header").cluster_id;
        let mut stores = Vec::new();
        for member in &fleet.members {
            let address = member.address.parse().expect("an address");
            stores.push((member.store_id, Rpc::connect(address).await));
        }
        Clients { pd, cluster_id, stores }
    }

    pub(crate) fn store(&self, peer: metapb::Peer) -> &Rpc {
        &self.stores.iter().find(|(store, _)| *store == peer.store_id).expect("a store of the cluster").1
    }

    pub(crate) async fn place(&self, key: &[u8]) -> Place {
        let header = Some(pdpb::RequestHeader { cluster_id: self.cluster_id, ..Default::default() });
        let request = pdpb::GetRegionRequest { header, region_key: bytes(key), ..Default::default() };
        let answer: pdpb::GetRegionResponse = self.pd.pd("GetRegion", &request).await;
        Place { region: answer.region.expect("a region for every key"), leader: answer.leader.expect("a leader") }
    }

    /// Puts at the leader, whoever that is; answers where that was.
    pub(crate) async fn put(&self, key: &[u8], value: &[u8]) -> Place {
        for _ in 0..500 {
            let place = self.place(key).await;
            let context = Some(place.context(place.leader));
            let request = kv::RawPutRequest { context, key: bytes(key), value: bytes(value), ..Default::default() };
            let answer: kv::RawPutResponse = self.store(place.leader).tikv("RawPut", &request).await;
            assert_eq!(answer.error, "");
            match answer.region_error {
                None => return place,
                Some(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
        panic!("no leader takes a put within ten seconds");
    }

    /// Gets at one peer until it answers with something else than a region error; with how many of those there were.
    pub(crate) async fn get(&self, context: &Context, key: &[u8]) -> (Option<Bytes>, u64) {
        let peer = context.peer.expect("a peer");
        for refusals in 0..500 {
            let request = kv::RawGetRequest { context: Some(context.clone()), key: bytes(key), ..Default::default() };
            let answer: kv::RawGetResponse = self.store(peer).tikv("RawGet", &request).await;
            assert_eq!(answer.error, "");
            match answer.region_error {
                None => return ((!answer.not_found).then_some(answer.value), refusals),
                // Nothing was done: the peer hears of no leader, is on its way to another shard, or gives way to a snapshot.
                Some(error) => {
                    let is_passing = error.stale_command.is_some() || error.region_not_found.is_some();
                    assert!(error.not_leader.is_some() || is_passing, "{error:?}");
                }
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("peer {peer:?} does not answer within ten seconds");
    }
}
