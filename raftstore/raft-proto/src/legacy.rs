//! The trait of the `protobuf` 2 crate, which raft-rs names whatever the codec.
//!
//! raft-rs uses three of its methods: `compute_size` of an entry, `write_to_bytes` and `merge_from_bytes` of a membership
//! change. All bytes go through prost; the parser of `protobuf` 2 never sees any.

use crate::eraftpb::{ConfChange, ConfChangeV2, Entry};
use prost::Message as Prost;
use protobuf::error::WireError;
use protobuf::reflect::MessageDescriptor;
use protobuf::{Clear, CodedInputStream, CodedOutputStream, Message, ProtobufError, ProtobufResult, UnknownFields};
use std::any::Any;
use std::sync::LazyLock;

static NO_UNKNOWN_FIELDS: LazyLock<UnknownFields> = LazyLock::new(UnknownFields::new);

fn malformed() -> ProtobufError {
    ProtobufError::WireError(WireError::Other)
}

macro_rules! legacy {
    ($($message:ident),*) => {$(
        impl Clear for $message {
            fn clear(&mut self) {
                Prost::clear(self);
            }
        }

        impl Message for $message {
            fn compute_size(&self) -> u32 {
                u32::try_from(self.encoded_len()).unwrap_or(u32::MAX)
            }

            fn get_cached_size(&self) -> u32 {
                self.compute_size()
            }

            fn is_initialized(&self) -> bool {
                true
            }

            fn write_to_with_cached_sizes(&self, out: &mut CodedOutputStream<'_>) -> ProtobufResult<()> {
                out.write_raw_bytes(&self.encode_to_vec())
            }

            fn write_to_bytes(&self) -> ProtobufResult<Vec<u8>> {
                Ok(self.encode_to_vec())
            }

            fn merge_from(&mut self, input: &mut CodedInputStream<'_>) -> ProtobufResult<()> {
                let mut bytes = Vec::new();
                while !input.eof()? {
                    bytes.push(input.read_raw_byte()?);
                }
                self.merge_from_bytes(&bytes)
            }

            fn merge_from_bytes(&mut self, bytes: &[u8]) -> ProtobufResult<()> {
                self.merge(bytes).map_err(|_| malformed())
            }

            fn get_unknown_fields(&self) -> &UnknownFields {
                &NO_UNKNOWN_FIELDS
            }

            fn mut_unknown_fields(&mut self) -> &mut UnknownFields {
                unreachable!("prost drops unknown fields, so nobody may add one")
            }

            fn as_any(&self) -> &dyn Any {
                self
            }

            fn descriptor(&self) -> &'static MessageDescriptor {
                unreachable!("reflection is not built, and raft-rs does not ask for it")
            }

            fn new() -> Self {
                Self::default()
            }

            fn default_instance() -> &'static Self {
                static DEFAULT: LazyLock<$message> = LazyLock::new(Default::default);
                &DEFAULT
            }
        }
    )*};
}

legacy!(Entry, ConfChange, ConfChangeV2);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_survives_the_old_trait_and_garbage_is_an_error() {
        let change = ConfChange { node_id: 9, change_type: 2, ..Default::default() };
        let bytes = change.write_to_bytes().expect("always encodes");
        assert_eq!(change.compute_size() as usize, bytes.len());
        let mut back = ConfChange::default();
        back.merge_from_bytes(&bytes).expect("its own bytes");
        assert_eq!(back, change);
        assert!(back.merge_from_bytes(&[0xff; 20]).is_err());
        let mut streamed = ConfChange::default();
        streamed.merge_from(&mut CodedInputStream::from_bytes(&bytes)).expect("its own bytes");
        assert_eq!(streamed, change);
    }
}
