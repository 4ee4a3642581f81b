//! Operators that people ask for.

use super::operator::{Kind, Plan};
use super::placement::{Scene, new_peer};
use super::step::{Step, are_neighbours, have_the_same_stores};
use super::view::{is_joint, peer_on, voters};
use crate::directory::Region;
use bytes::Bytes;
use proto::metapb::{Peer, PeerRole};
use proto::pdpb::CheckPolicy;

/// Most stores that one request names.
pub const STORES_MAX: usize = 64;

/// What is wanted of a region.
#[derive(Clone, Debug, PartialEq)]
pub enum Request {
    /// The peer on this store leads.
    TransferLeader(u64),
    /// The peers are on exactly these stores.
    TransferRegion(Vec<u64>),
    /// A peer goes from one store to another.
    TransferPeer {
        /// The store it is on.
        from: u64,
        /// Where it goes.
        to: u64,
    },
    /// A voter more, on this store.
    AddPeer(u64),
    /// A learner more, on this store.
    AddLearner(u64),
    /// No peer on this store.
    RemovePeer(u64),
    /// It goes into this region.
    Merge(u64),
    /// It splits.
    Split(CheckPolicy, Vec<Bytes>),
}

/// Why a request makes no operator.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// No such region.
    #[error("region {0} not found")]
    NoRegion(u64),
    /// No such store, or it is gone.
    #[error("store {0} not found")]
    NoStore(u64),
    /// It makes no sense for this region.
    #[error("{0}")]
    Unfit(&'static str),
}

/// The operator for a request.
///
/// # Errors
/// [`RequestError`] when there is none.
pub fn plan(scene: &Scene<'_>, id: u64, request: &Request) -> Result<Plan, RequestError> {
    let region = scene.cluster.region(id).ok_or(RequestError::NoRegion(id))?;
    if is_joint(region) {
        return Err(RequestError::Unfit("the region is between two configurations"));
    }
    let (desc, kind, steps) = match request {
        Request::TransferLeader(store) => ("admin-transfer-leader", Kind::Leader, transfer_leader(region, *store)?),
        Request::TransferRegion(stores) => ("admin-move-region", Kind::Region, transfer_region(scene, region, stores)?),
        Request::TransferPeer { from, to } => {
            let old = *peer_on(region, *from).ok_or(RequestError::Unfit("region has no peer in that store"))?;
            check_new(scene, region, *to)?;
            ("admin-move-peer", Kind::Region, move_peer(scene, region, &old, *to)?)
        }
        Request::AddPeer(store) => {
            check_new(scene, region, *store)?;
            let new = new_peer(*store);
            ("admin-add-peer", Kind::Region, vec![Step::AddLearner(new), Step::Promote(new)])
        }
        Request::AddLearner(store) => {
            check_new(scene, region, *store)?;
            ("admin-add-learner", Kind::Region, vec![Step::AddLearner(new_peer(*store))])
        }
        Request::RemovePeer(store) => {
            let peer = peer_on(region, *store).ok_or(RequestError::Unfit("region has no peer in that store"))?;
            ("admin-remove-peer", Kind::Region, remove(scene, region, peer)?)
        }
        Request::Merge(target) => return merge(scene, region, *target),
        Request::Split(policy, keys) => {
            let split = Step::Split { policy: *policy, keys: keys.clone() };
            ("admin-split-region", Kind::Split, vec![split])
        }
    };
    if steps.is_empty() {
        return Err(RequestError::Unfit("the region is like that already"));
    }
    Ok(Plan { is_admin: true, ..Plan::new(id, desc, kind, steps) })
}

fn transfer_leader(region: &Region, store: u64) -> Result<Vec<Step>, RequestError> {
    let to = peer_on(region, store).ok_or(RequestError::Unfit("region has no voter in that store"))?;
    if to.role() != PeerRole::Voter {
        return Err(RequestError::Unfit("region has no voter in that store"));
    }
    let from = region.leader.map_or(0, |leader| leader.store_id);
    Ok(if from == store { Vec::new() } else { vec![Step::TransferLeader { from, to: *to }] })
}

fn move_peer(scene: &Scene<'_>, region: &Region, old: &Peer, to: u64) -> Result<Vec<Step>, RequestError> {
    if old.role() == PeerRole::Learner {
        return Ok(vec![Step::AddLearner(new_peer(to)), Step::RemovePeer(*old)]);
    }
    scene.replace(region, old, new_peer(to)).ok_or(RequestError::Unfit("nobody can lead meanwhile"))
}

fn remove(scene: &Scene<'_>, region: &Region, peer: &Peer) -> Result<Vec<Step>, RequestError> {
    let last = peer.role() == PeerRole::Voter && voters(region).len() == 1;
    let steps = if last { None } else { scene.remove(region, peer) };
    steps.ok_or(RequestError::Unfit("nobody could lead the region without that peer"))
}

fn transfer_region(scene: &Scene<'_>, region: &Region, stores: &[u64]) -> Result<Vec<Step>, RequestError> {
    if stores.is_empty() || stores.len() > STORES_MAX {
        return Err(RequestError::Unfit("the number of stores does not fit"));
    }
    let has_vote = |store: &u64| peer_on(region, *store).is_some_and(|peer| peer.role() == PeerRole::Voter);
    let mut coming: Vec<Peer> = Vec::new();
    for store in stores.iter().copied().filter(|store| !has_vote(store)) {
        if coming.iter().any(|peer| peer.store_id == store) {
            continue;
        }
        let learner = peer_on(region, store).copied();
        if learner.is_none() {
            check_new(scene, region, store)?;
        }
        coming.push(learner.unwrap_or(new_peer(store)));
    }
    let voters = voters(region);
    let leaving: Vec<Peer> = voters.into_iter().filter(|peer| !stores.contains(&peer.store_id)).collect();
    let pairs: Vec<(Peer, Peer)> = leaving.iter().copied().zip(coming.iter().copied()).collect();
    let no_leader = RequestError::Unfit("nobody can lead meanwhile");
    let mut steps = match pairs.as_slice() {
        [] => Vec::new(),
        [(old, new)] => scene.replace(region, old, *new).ok_or(no_leader)?,
        pairs => scene.replace_all(region, pairs).ok_or(no_leader)?.0,
    };
    for new in coming.iter().skip(pairs.len()) {
        steps.extend((new.id == 0).then_some(Step::AddLearner(*new)));
        steps.push(Step::Promote(*new));
    }
    for peer in leaving.iter().skip(pairs.len()) {
        steps.extend(remove(scene, region, peer)?);
    }
    Ok(steps)
}

fn merge(scene: &Scene<'_>, source: &Region, target: u64) -> Result<Plan, RequestError> {
    let target = scene.cluster.region(target).ok_or(RequestError::NoRegion(target))?;
    if !are_neighbours(source, target) {
        return Err(RequestError::Unfit("two regions are not adjacent"));
    }
    if !have_the_same_stores(source, target) {
        return Err(RequestError::Unfit("the regions have their peers on different stores: move them first"));
    }
    let steps = vec![Step::Merge { target: target.meta.id }];
    Ok(Plan { is_admin: true, ..Plan::new(source.meta.id, "admin-merge-region", Kind::Merge, steps) })
}

fn check_new(scene: &Scene<'_>, region: &Region, store: u64) -> Result<(), RequestError> {
    match scene.cluster.stores.get(&store) {
        _ if peer_on(region, store).is_some() => Err(RequestError::Unfit("region already has peer in that store")),
        Some(view) if view.is_up() => Ok(()),
        _ => Err(RequestError::NoStore(store)),
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Small, peer, voter};
    use super::*;

    #[test]
    fn requests_become_steps_or_are_refused() {
        let mut small = Small::new(6);
        small.region(1, &[voter(1), voter(2), voter(3), peer(4, PeerRole::Learner)]);
        let steps = |request| plan(&small.scene(), 1, &request).map(|plan| plan.steps);
        assert_eq!(steps(Request::TransferLeader(2)), Ok(vec![Step::TransferLeader { from: 1, to: voter(2) }]));
        assert!(steps(Request::TransferLeader(1)).is_err(), "it leads already");
        assert!(steps(Request::TransferLeader(4)).is_err(), "a learner cannot lead");
        assert_eq!(steps(Request::AddLearner(9)), Err(RequestError::NoStore(9)));
        assert_eq!(steps(Request::AddPeer(5)).map(|steps| steps.len()), Ok(2));
        let moved = steps(Request::TransferPeer { from: 4, to: 5 }).expect("steps");
        assert!(matches!(moved[..], [Step::AddLearner(_), Step::RemovePeer(_)]), "a learner moves without a vote");
        let away = steps(Request::RemovePeer(1)).expect("steps");
        assert!(matches!(away[..], [Step::TransferLeader { from: 1, .. }, Step::RemovePeer(_)]));
        let whole = steps(Request::TransferRegion(vec![1, 5, 6])).expect("steps");
        assert!(whole.iter().any(|step| matches!(step, Step::EnterJoint { promote, .. } if promote.len() == 2)));
        let more = steps(Request::TransferRegion(vec![1, 2, 3, 5])).expect("steps");
        assert!(matches!(more[..], [Step::AddLearner(_), Step::Promote(_)]));
        assert!(steps(Request::TransferRegion(vec![1, 2, 3])).is_err(), "it is there");
        let all = steps(Request::TransferRegion(vec![4, 5, 6])).expect("steps");
        let new = all.iter().filter(|step| matches!(step, Step::AddLearner(_))).count();
        let joints = all.iter().filter(|step| matches!(step, Step::EnterJoint { .. })).count();
        assert_eq!((new, joints), (2, 2), "the learner is used, and the leader goes last: {all:?}");
    }

    #[test]
    fn the_last_voter_stays() {
        let mut small = Small::new(2);
        small.region(1, &[voter(1)]);
        let request = |request| plan(&small.scene(), 1, &request);
        assert!(request(Request::RemovePeer(1)).is_err());
        let moved = request(Request::TransferPeer { from: 1, to: 2 }).expect("a plan").steps;
        assert!(matches!(moved[2], Step::TransferLeader { from: 1, to } if to.store_id == 2), "{moved:?}");
    }
}
