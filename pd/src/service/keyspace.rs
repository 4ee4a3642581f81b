//! `keyspacepb.Keyspace`.

use super::Core;
use crate::state::KeyspaceError;
use proto::keyspacepb::*;
use proto::rpc::{CallContext, Outbound, Status};
use std::rc::Rc;

/// Handles `keyspacepb.Keyspace`.
pub(super) struct KeyspaceHandler(pub(super) Rc<Core>);

impl Keyspace for KeyspaceHandler {
    async fn load_keyspace(
        &self,
        cx: CallContext,
        request: LoadKeyspaceRequest,
    ) -> Result<LoadKeyspaceResponse, Status> {
        self.0.enter(&cx, request.header.as_ref())?;
        Ok(match self.0.read(|state| state.keyspace_by_name(&request.name)).await? {
            Some(keyspace) => LoadKeyspaceResponse { header: self.0.header(), keyspace: Some(keyspace) },
            None => LoadKeyspaceResponse { header: self.0.header_of(&KeyspaceError::NotFound), keyspace: None },
        })
    }

    async fn watch_keyspaces(
        &self,
        cx: CallContext,
        request: WatchKeyspacesRequest,
        answers: Outbound<WatchKeyspacesResponse>,
    ) -> Result<(), Status> {
        self.0.enter(&cx, request.header.as_ref())?;
        let (mut keyspaces, mut seen) = self.0.read(|state| (state.keyspaces(0, 0), state.space().revision())).await?;
        loop {
            if !keyspaces.is_empty() {
                answers.send(&WatchKeyspacesResponse { header: self.0.header(), keyspaces }).await?;
            }
            let until = self.0.next_revision(seen).await?;
            let prefix = self.0.peek().keys().keyspaces();
            keyspaces = self.0.changed_values(&prefix, seen, until)?;
            seen = until;
        }
    }

    async fn update_keyspace_state(
        &self,
        cx: CallContext,
        request: UpdateKeyspaceStateRequest,
    ) -> Result<UpdateKeyspaceStateResponse, Status> {
        self.0.enter(&cx, request.header.as_ref())?;
        let now = executor::unix_time();
        let command = self.0.write(|state| state.set_keyspace_state(request.id, request.state(), now));
        let (header, keyspace) = self.0.outcome(command.await?.map(Some));
        Ok(UpdateKeyspaceStateResponse { header, keyspace })
    }

    async fn get_all_keyspaces(
        &self,
        cx: CallContext,
        request: GetAllKeyspacesRequest,
    ) -> Result<GetAllKeyspacesResponse, Status> {
        self.0.enter(&cx, request.header.as_ref())?;
        let keyspaces = self.0.read(|state| state.keyspaces(request.start_id, request.limit)).await?;
        Ok(GetAllKeyspacesResponse { header: self.0.header(), keyspaces })
    }
}
