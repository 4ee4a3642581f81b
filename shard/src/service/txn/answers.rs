//! Where the answers of transactional commands say no (`compat/4-store.md`, 4.5).

use proto::{errorpb, kvrpcpb as kv};

use crate::service::raw::Refuse;

macro_rules! refuse {
    ($($answer:ty: $fill:expr;)+) => {$(
        impl Refuse for $answer {
            fn region(error: errorpb::Error) -> Self {
                Self { region_error: Some(error), ..Default::default() }
            }

            fn request(error: String) -> Self {
                Self::key(kv::KeyError { abort: error, ..Default::default() })
            }

            fn key(error: kv::KeyError) -> Self {
                let fill: fn(&mut Self, kv::KeyError) = $fill;
                let mut answer = Self::default();
                fill(&mut answer, error);
                answer
            }
        }
    )+};
}

refuse! {
    kv::GetResponse: |answer, error| answer.error = Some(error);
    kv::BatchGetResponse: |answer, error| {
        answer.pairs = vec![pair(error.clone())];
        answer.error = Some(error);
    };
    kv::ScanResponse: |answer, error| {
        answer.pairs = vec![pair(error.clone())];
        answer.error = Some(error);
    };
    kv::ScanLockResponse: |answer, error| answer.error = Some(error);
    kv::PrewriteResponse: |answer, error| answer.errors = vec![error];
    kv::PessimisticLockResponse: |answer, error| answer.errors = vec![error];
    kv::PessimisticRollbackResponse: |answer, error| answer.errors = vec![error];
    kv::CommitResponse: |answer, error| answer.error = Some(error);
    kv::CleanupResponse: |answer, error| answer.error = Some(error);
    kv::BatchRollbackResponse: |answer, error| answer.error = Some(error);
    kv::ResolveLockResponse: |answer, error| answer.error = Some(error);
    kv::CheckTxnStatusResponse: |answer, error| answer.error = Some(error);
    kv::TxnHeartBeatResponse: |answer, error| answer.error = Some(error);
    kv::CheckSecondaryLocksResponse: |answer, error| answer.error = Some(error);
    kv::DeleteRangeResponse: |answer, error| answer.error = text(error);
    kv::MvccGetByKeyResponse: |answer, error| answer.error = text(error);
    kv::MvccGetByStartTsResponse: |answer, error| answer.error = text(error);
}

/// A place in a list that holds an error instead of a key.
pub(super) fn pair(error: kv::KeyError) -> kv::KvPair {
    kv::KvPair { error: Some(error), ..Default::default() }
}

/// For answers whose error is a text.
fn text(error: kv::KeyError) -> String {
    if error.abort.is_empty() { format!("{error:?}") } else { error.abort }
}
