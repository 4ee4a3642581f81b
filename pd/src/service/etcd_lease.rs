//! etcd's leases: keys that end with their client.

use super::Core;
use super::etcd::{EtcdHandler, lease_not_found};
use crate::signal::Signal;
use proto::etcdserverpb::*;
use proto::rpc::{CallContext, Inbound, Outbound, Status};
use std::rc::Rc;
use std::time::Duration;

/// Shortest time to live in seconds: what etcd derives from its election time-out.
const TTL_MIN: i64 = 2;
/// Longest, in seconds.
const TTL_MAX: i64 = 9_000_000_000;
/// Most leases.
const LEASES_MAX: usize = 65_536;
/// How often expired leases are looked for, and how many end at once.
const EXPIRE_EVERY: Duration = Duration::from_millis(500);
const EXPIRE_AT_ONCE: usize = 256;

impl Lease for EtcdHandler {
    async fn lease_grant(&self, cx: CallContext, request: LeaseGrantRequest) -> Result<LeaseGrantResponse, Status> {
        self.0.enter_any(&cx)?;
        if request.ttl > TTL_MAX {
            return Err(Status::out_of_range("etcdserver: too large lease TTL"));
        }
        let ttl = request.ttl.max(TTL_MIN);
        let command = |state: &mut crate::state::State| {
            if state.leases().len() >= LEASES_MAX {
                return Err(Status::resource_exhausted("etcdserver: too many leases"));
            }
            let mut id = request.id;
            while id == 0 || (request.id == 0 && state.leases().contains(id)) {
                id = i64::try_from(executor::with_rng(base::Prng::next_u64) >> 1).expect("63 bits");
            }
            if state.leases().contains(id) {
                return Err(Status::failed_precondition("etcdserver: lease already exists"));
            }
            state.grant_lease(id, ttl);
            Ok((id, state.space().revision()))
        };
        let (id, revision) = self.0.write(command).await??;
        self.0.state.borrow_mut().leases().renew(id, executor::now());
        self.0.lease_granted.raise();
        Ok(LeaseGrantResponse { header: self.header(revision), id, ttl, error: String::new() })
    }

    async fn lease_revoke(&self, cx: CallContext, request: LeaseRevokeRequest) -> Result<LeaseRevokeResponse, Status> {
        self.0.enter_any(&cx)?;
        let command = |state: &mut crate::state::State| (state.end_lease(request.id), state.space().revision());
        let (ended, revision) = self.0.write(command).await?;
        if !ended {
            return Err(lease_not_found());
        }
        Ok(LeaseRevokeResponse { header: self.header(revision) })
    }

    async fn lease_keep_alive(
        &self,
        cx: CallContext,
        mut request: Inbound<LeaseKeepAliveRequest>,
        answers: Outbound<LeaseKeepAliveResponse>,
    ) -> Result<(), Status> {
        self.0.enter_any(&cx)?;
        while let Some(LeaseKeepAliveRequest { id }) = request.next().await? {
            let ttl = self.0.state.borrow_mut().leases().renew(id, executor::now()).unwrap_or(0);
            let header = self.header(self.0.line.committed_revision());
            answers.send(&LeaseKeepAliveResponse { header, id, ttl }).await?;
        }
        Ok(())
    }

    async fn lease_time_to_live(
        &self,
        cx: CallContext,
        request: LeaseTimeToLiveRequest,
    ) -> Result<LeaseTimeToLiveResponse, Status> {
        self.0.enter_any(&cx)?;
        let id = request.id;
        let left = self.0.state.borrow_mut().leases().left(id, executor::now());
        let header = self.header(self.0.line.committed_revision());
        let Some((ttl, granted_ttl)) = left else {
            return Ok(LeaseTimeToLiveResponse { header, id, ttl: -1, ..LeaseTimeToLiveResponse::default() });
        };
        let keys = if request.keys { self.0.peek().space().keys_of_lease(id).cloned().collect() } else { Vec::new() };
        Ok(LeaseTimeToLiveResponse { header, id, ttl, granted_ttl, keys })
    }

    async fn lease_leases(&self, cx: CallContext, _: LeaseLeasesRequest) -> Result<LeaseLeasesResponse, Status> {
        self.0.enter_any(&cx)?;
        let leases = self.0.state.borrow_mut().leases().iter().map(|(id, _)| LeaseStatus { id }).collect();
        Ok(LeaseLeasesResponse { header: self.header(self.0.line.committed_revision()), leases })
    }
}

/// Wakes the task that ends leases when there is one again.
pub(crate) type LeaseGranted = Signal;

impl Core {
    /// Ends leases that nobody renews, for as long as the process lives.
    pub(crate) async fn end_leases(self: Rc<Self>) {
        loop {
            let none = || self.state.borrow_mut().leases().is_empty();
            self.lease_granted.wait(|| (!none()).then_some(())).await;
            let expired = self.state.borrow_mut().leases().expired(executor::now(), EXPIRE_AT_ONCE);
            if !expired.is_empty() {
                let end = |state: &mut crate::state::State| {
                    expired.iter().for_each(|id| {
                        state.end_lease(*id);
                    });
                };
                if self.write(end).await.is_err() {
                    return;
                }
            }
            executor::sleep(EXPIRE_EVERY).await;
        }
    }
}
