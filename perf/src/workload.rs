//! What is asked: raw get and put, unary and batched, and the echo of the same bytes.

use bytes::Bytes;
use proto::kvrpcpb::{Context, RawGetRequest, RawGetResponse, RawPutRequest, RawPutResponse};
use proto::rpc;
use proto::shallow::{self, Command, tag};

use crate::deframe::framed;
use crate::template::{Template, VALUE_BYTES, VALUE_PLACE, key_place};

/// Commands of one BatchCommands message, if as many are in flight.
pub(crate) const BATCH: usize = 32;

/// The command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    Get,
    Put,
    /// The echo of a get's request.
    Echo,
}

/// How commands travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Carriage {
    /// Each is a call of its own.
    Unary,
    /// Many in one message of a stream.
    Batched,
}

/// One kind of work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Workload {
    pub(crate) operation: Operation,
    pub(crate) carriage: Carriage,
}

/// What one answer message says.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Answered {
    /// The request message that waits longest has its answer, all commands of it.
    All,
    /// The commands with these numbers have theirs.
    Commands(Vec<u64>),
}

impl Workload {
    pub(crate) fn new(operation: Operation, carriage: Carriage) -> Workload {
        Workload { operation, carriage }
    }

    /// Its name in tables and files.
    pub(crate) fn name(self) -> &'static str {
        match (self.operation, self.carriage) {
            (Operation::Get, Carriage::Unary) => "raw get, unary",
            (Operation::Get, Carriage::Batched) => "raw get, batched",
            (Operation::Put, Carriage::Unary) => "raw put, unary",
            (Operation::Put, Carriage::Batched) => "raw put, batched",
            (Operation::Echo, Carriage::Unary) => "echo, unary",
            (Operation::Echo, Carriage::Batched) => "echo, batched",
        }
    }

    /// The method that is called.
    pub(crate) fn path(self) -> &'static str {
        match (self.operation, self.carriage) {
            (Operation::Get, Carriage::Unary) => "/tikvpb.Tikv/RawGet",
            (Operation::Put, Carriage::Unary) => "/tikvpb.Tikv/RawPut",
            (Operation::Get | Operation::Put, Carriage::Batched) => "/tikvpb.Tikv/BatchCommands",
            (Operation::Echo, Carriage::Unary) => net::echo::CALL,
            (Operation::Echo, Carriage::Batched) => net::echo::STREAM,
        }
    }

    /// Commands of a message when `in_flight` are in flight.
    pub(crate) fn commands(self, in_flight: usize) -> usize {
        match self.carriage {
            Carriage::Unary => 1,
            Carriage::Batched => in_flight.clamp(1, BATCH),
        }
    }

    /// The gRPC message of the request slot `slot`: `commands` commands, numbered from `slot` × `commands`.
    pub(crate) fn message(self, context: &Context, slot: usize, commands: usize) -> Template {
        let message = match self.carriage {
            Carriage::Unary => self.body(context, 0),
            Carriage::Batched => {
                let command = |position: usize| Command {
                    id: (slot * commands + position) as u64,
                    tag: self.tag(),
                    body: self.body(context, position),
                };
                let commands: Vec<_> = (0..commands).map(command).collect();
                shallow::encode_batch_request(&commands)
            }
        };
        Template::new(framed(&message), commands)
    }

    fn tag(self) -> u32 {
        match self.operation {
            Operation::Get | Operation::Echo => tag::RAW_GET,
            Operation::Put => tag::RAW_PUT,
        }
    }

    fn body(self, context: &Context, position: usize) -> Bytes {
        let key = Bytes::copy_from_slice(&key_place(position));
        let context = Some(context.clone());
        match self.operation {
            Operation::Get | Operation::Echo => rpc::encode(&RawGetRequest { context, key, ..Default::default() }),
            Operation::Put => rpc::encode(&RawPutRequest {
                context,
                key,
                value: Bytes::from_static(&VALUE_PLACE),
                ..Default::default()
            }),
        }
    }

    /// Checks an answer message.
    ///
    /// # Errors
    /// What the server complains about: every command is meant to succeed.
    pub(crate) fn check(self, message: &[u8]) -> Result<Answered, String> {
        match (self.operation, self.carriage) {
            (Operation::Echo, _) => Ok(Answered::All),
            (_, Carriage::Unary) => self.check_body(message).map(|()| Answered::All),
            (_, Carriage::Batched) => {
                let answers = shallow::batch_answers(&Bytes::copy_from_slice(message))
                    .map_err(|error| format!("a batch of answers: {error}"))?;
                let mut numbers = Vec::with_capacity(answers.len());
                for answer in &answers {
                    if answer.tag != self.tag() {
                        return Err(format!("answer of kind {} to kind {}", answer.tag, self.tag()));
                    }
                    self.check_body(&answer.body)?;
                    numbers.push(answer.id);
                }
                Ok(Answered::Commands(numbers))
            }
        }
    }

    /// Both answers hold their errors in fields 1 and 2, and a get its value in field 3: the first byte tells.
    fn check_body(self, body: &[u8]) -> Result<(), String> {
        const VALUE_TAG: u8 = 3 << 3 | 2;
        const ERRORS: [u8; 2] = [1 << 3 | 2, 2 << 3 | 2];
        let good = match self.operation {
            Operation::Get => body.first() == Some(&VALUE_TAG) && body.len() > VALUE_BYTES,
            Operation::Put => body.first().is_none_or(|first| !ERRORS.contains(first)),
            Operation::Echo => true,
        };
        if good { Ok(()) } else { Err(self.complaint(body)) }
    }

    fn complaint(self, body: &[u8]) -> String {
        let body = Bytes::copy_from_slice(body);
        let text = match self.operation {
            Operation::Put => rpc::decode::<RawPutResponse>(body).map(|answer| format!("{answer:?}")),
            _ => rpc::decode::<RawGetResponse>(body).map(|answer| format!("{answer:?}")),
        };
        let text = text.unwrap_or_else(|status| status.to_string());
        format!("{}: the server answered {text}", self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::template::key;

    const BATCHED_PUT: Workload = Workload { operation: Operation::Put, carriage: Carriage::Batched };
    const UNARY_GET: Workload = Workload { operation: Operation::Get, carriage: Carriage::Unary };

    fn context() -> Context {
        Context { region_id: 7, ..Default::default() }
    }

    #[test]
    fn a_patched_batch_is_what_a_client_would_send() {
        let mut message = BATCHED_PUT.message(&context(), 2, 3);
        for position in 0..3 {
            message.patch(position, 100 + position as u64, &[position as u8; VALUE_BYTES]);
        }
        let sent = Bytes::copy_from_slice(&message.bytes()[5..]);
        let commands = shallow::batch_commands(&sent).expect("a batch");
        assert_eq!(commands.len(), 3);
        for (position, command) in commands.into_iter().enumerate() {
            assert_eq!((command.id, command.tag), (6 + position as u64, tag::RAW_PUT));
            let put: RawPutRequest = rpc::decode(command.body).expect("a put");
            assert_eq!(put.context, Some(context()));
            assert_eq!(put.key[..], key(100 + position as u64));
            assert_eq!(put.value[..], [position as u8; VALUE_BYTES]);
        }
    }

    #[test]
    fn only_a_value_answers_a_get() {
        let value = Bytes::from_static(&VALUE_PLACE);
        let found = rpc::encode(&RawGetResponse { value: value.clone(), ..Default::default() });
        assert_eq!(UNARY_GET.check(&found), Ok(Answered::All));
        let missing = rpc::encode(&RawGetResponse { not_found: true, ..Default::default() });
        let failed = rpc::encode(&RawGetResponse { error: "broken".into(), value, ..Default::default() });
        for (answer, word) in [(missing, "not_found: true"), (failed, "broken"), (Bytes::new(), "")] {
            let complaint = UNARY_GET.check(&answer).expect_err("not a value");
            assert!(complaint.contains(word), "{complaint}");
        }
    }

    #[test]
    fn a_batch_tells_which_commands_were_answered() {
        let answer = |id, body| Command { id, tag: tag::RAW_PUT, body };
        let good = rpc::encode(&RawPutResponse::default());
        let batch = [answer(4, good.clone()), answer(9, good.clone())];
        let batch = shallow::encode_batch_response(&batch, None);
        assert_eq!(BATCHED_PUT.check(&batch), Ok(Answered::Commands(vec![4, 9])));
        let bad = rpc::encode(&RawPutResponse { error: "no".into(), ..Default::default() });
        let batch = shallow::encode_batch_response(&[answer(4, good), answer(5, bad)], None);
        assert!(BATCHED_PUT.check(&batch).is_err());
    }

    #[test]
    fn batches_are_no_larger_than_what_is_in_flight() {
        assert_eq!([1, 16, 64, 256].map(|count| BATCHED_PUT.commands(count)), [1, 16, 32, 32]);
        assert_eq!(UNARY_GET.commands(256), 1);
    }
}
