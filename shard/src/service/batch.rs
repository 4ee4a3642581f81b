//! `BatchCommands`: many commands in one message, each answered once, in whatever order they are ready.
//!
//! One task reads and starts the commands; answers gather in a queue and leave together, as many as are ready. A stream
//! has a bound on commands in flight: above it nothing more is read until some are answered.
//!
//! A `grpc-timeout` is the stream's: when it passes, the stream ends, and with it whatever is in flight. It is no deadline
//! of a command; that is in the command's own context (`max_execution_duration_ms`).

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::future::poll_fn;
use std::rc::Rc;
use std::time::Duration;

use base::Instant;
use bytes::Bytes;
use executor::{Class, Notify, Task};
use futures_util::FutureExt as _;
use prost::Message as _;
use proto::rpc::{RawInbound, RawOutbound, Status};
use proto::shallow::{self, Command, tag};
use proto::{kvrpcpb, tikvpb};

use super::ledger::count;
use super::{TikvService, command, errors, refusal};
use crate::core::{Answered, RegionError, RemoteRequest};
use crate::engine::Engine;

/// Commands of one stream that may be in flight.
const IN_FLIGHT_MAX: usize = 4096;
/// Answers in one message, as TiKV groups them.
const ANSWERS_PER_MESSAGE: usize = 128;
/// Bytes of answers in one message, the last one apart.
const BYTES_PER_MESSAGE: usize = 1 << 20;
/// Time between health reports on a stream.
const HEALTH_PERIOD: Duration = Duration::from_secs(1);

/// Longest delay of an answer to `Empty`: a day, which clocks can count.
const DELAY_MS_MAX: u64 = 24 * 3600 * 1000;

/// What the commands of one stream share.
struct Stream<E: Engine> {
    service: Rc<TikvService<E>>,
    answers: RefCell<VecDeque<Command>>,
    answered: Notify,
    room: Notify,
    in_flight: Cell<usize>,
    reading: Cell<bool>,
    /// Answers that the client wants late. A client chooses how late, so they end with the stream.
    delayed: RefCell<BTreeMap<u64, Task<()>>>,
    next_delayed: Cell<u64>,
}

impl<E: Engine> Drop for Stream<E> {
    fn drop(&mut self) {
        for task in std::mem::take(self.delayed.get_mut()).into_values() {
            task.cancel();
        }
    }
}

impl<E: Engine> Stream<E> {
    fn answer(&self, id: u64, tag: u32, body: Bytes) {
        self.answers.borrow_mut().push_back(Command { id, tag, body });
        self.answered.notify();
    }
}

/// Serves one stream until the client closes it and all answers have left.
pub(super) async fn serve<E: Engine>(
    service: Rc<TikvService<E>>,
    mut inbound: Box<dyn RawInbound>,
    outbound: Rc<dyn RawOutbound>,
) -> Result<(), Status> {
    let stream = Rc::new(Stream {
        service,
        answers: RefCell::default(),
        answered: Notify::new(),
        room: Notify::new(),
        in_flight: Cell::new(0),
        reading: Cell::new(true),
        delayed: RefCell::default(),
        next_delayed: Cell::new(0),
    });
    let reader = async {
        let result = read(&stream, &mut inbound).await;
        stream.reading.set(false);
        stream.answered.notify();
        result
    };
    let (read, written) = futures_util::join!(reader, write(&stream, outbound));
    read.and(written)
}

async fn read<E: Engine>(stream: &Rc<Stream<E>>, inbound: &mut Box<dyn RawInbound>) -> Result<(), Status> {
    loop {
        while stream.in_flight.get() >= IN_FLIGHT_MAX {
            stream.room.notified().await;
        }
        let Some(message) = poll_fn(|cx| inbound.poll_message(cx)).await else { return Ok(()) };
        let message = message?;
        count(&stream.service.metrics.batches);
        let commands = shallow::batch_commands(&message).map_err(Status::from)?;
        start(stream, commands)?;
    }
}

/// Starts the commands of one message: those of this core one after the other, those of each other core in one letter.
fn start<E: Engine>(stream: &Rc<Stream<E>>, commands: Vec<Command>) -> Result<(), Status> {
    let arrived = executor::now();
    let service = &stream.service;
    let cores = service.host.node.mail.len();
    // Before any of them is started: a message for another cluster ends the stream, and nothing of it is done.
    for command in commands.iter().filter(|command| command::is_served(command.tag)) {
        service.check_cluster(&command.body)?;
    }
    let mut elsewhere: Vec<Vec<Command>> = vec![Vec::new(); cores];
    stream.in_flight.set(stream.in_flight.get() + commands.len());
    for command in commands {
        if command.tag == tag::EMPTY {
            start_empty(stream, command);
            continue;
        }
        if !command::is_served(command.tag) {
            // An answer without a command: the client learns that we do not know it.
            stream.answer(command.id, 0, Bytes::new());
            continue;
        }
        let Ok(region) = super::region_of(&command.body) else {
            answer_malformed(stream, &command);
            continue;
        };
        let core = service.host.route(region);
        if core == service.host.core {
            start_here(stream, command, arrived);
        } else {
            elsewhere[usize::from(core.0)].push(command);
        }
    }
    for (core, commands) in elsewhere.into_iter().enumerate().filter(|(_, commands)| !commands.is_empty()) {
        start_there(stream, base::CoreId(core as u16), commands, arrived);
    }
    Ok(())
}

fn start_empty<E: Engine>(stream: &Rc<Stream<E>>, command: Command) {
    let request = tikvpb::BatchCommandsEmptyRequest::decode(command.body).unwrap_or_default();
    let answer = tikvpb::BatchCommandsEmptyResponse { test_id: request.test_id }.encode_to_vec();
    if request.delay_time == 0 {
        return stream.answer(command.id, tag::EMPTY, answer.into());
    }
    let number = stream.next_delayed.get();
    stream.next_delayed.set(number + 1);
    let weak = Rc::downgrade(stream);
    let task = executor::spawn_local(Class::Foreground, async move {
        executor::sleep(Duration::from_millis(request.delay_time.min(DELAY_MS_MAX))).await;
        if let Some(stream) = weak.upgrade() {
            stream.delayed.borrow_mut().remove(&number);
            stream.answer(command.id, tag::EMPTY, answer.into());
        }
    });
    stream.delayed.borrow_mut().insert(number, task);
}

fn answer_malformed<E: Engine>(stream: &Stream<E>, command: &Command) {
    let error = proto::errorpb::Error { message: "the request cannot be decoded".into(), ..Default::default() };
    stream.answer(command.id, command.tag, refusal(&error));
}

/// Runs a command on this core. If it ends at once, as reads from memory do, no task is made.
fn start_here<E: Engine>(stream: &Rc<Stream<E>>, command: Command, arrived: Instant) {
    let service = stream.service.clone();
    let (id, tag, body) = (command.id, command.tag, command.body.clone());
    let mut work = Box::pin(async move { service.execute(tag, body, arrived, None).await });
    match (&mut work).now_or_never() {
        Some(answered) => finish(stream, command, answered, arrived),
        None => {
            let stream = stream.clone();
            executor::spawn_local(Class::Foreground, async move {
                let answered = work.await;
                let _ = id;
                finish(&stream, command, answered, arrived);
            });
        }
    }
}

fn start_there<E: Engine>(stream: &Rc<Stream<E>>, core: base::CoreId, commands: Vec<Command>, arrived: Instant) {
    let host = &stream.service.host;
    let mut requests = Vec::with_capacity(commands.len());
    let mut expected = Vec::with_capacity(commands.len());
    for command in commands {
        count(&stream.service.metrics.hops);
        let (token, answer) = host.expect_answer();
        requests.push(RemoteRequest { token, tag: command.tag, deadline: None, arrived, body: command.body.clone() });
        expected.push((command, answer));
    }
    if host.send_requests(core, requests).is_err() {
        for (command, _) in expected {
            again(stream, command, arrived);
        }
        return;
    }
    for (command, answer) in expected {
        let stream = stream.clone();
        executor::spawn_local(Class::Foreground, async move {
            match answer.await {
                Ok(answered) => finish(&stream, command, answered, arrived),
                Err(_closing) => {
                    let error = errors::region_error(RegionError::Closing);
                    stream.answer(command.id, command.tag, refusal(&error));
                }
            }
        });
    }
}

fn finish<E: Engine>(stream: &Rc<Stream<E>>, command: Command, answered: Answered, arrived: Instant) {
    match answered {
        Answered::Bytes(body) => stream.answer(command.id, command.tag, body),
        Answered::Malformed(_) => answer_malformed(stream, &command),
        Answered::Moving(_) => again(stream, command, arrived),
    }
}

/// The region is on its way: the unary path waits and asks again.
fn again<E: Engine>(stream: &Rc<Stream<E>>, command: Command, arrived: Instant) {
    let stream = stream.clone();
    executor::spawn_local(Class::Foreground, async move {
        executor::sleep(Duration::from_millis(1)).await;
        let Command { id, tag, body } = command;
        let answer = match stream.service.call(tag, body, arrived, None).await {
            Ok(answer) => answer,
            Err(status) => refusal(&proto::errorpb::Error { message: status.message, ..Default::default() }),
        };
        stream.answer(id, tag, answer);
    });
}

/// Sends answers as they get ready, all that there are in one message.
async fn write<E: Engine>(stream: &Rc<Stream<E>>, outbound: Rc<dyn RawOutbound>) -> Result<(), Status> {
    let mut health_sent: Option<Instant> = None;
    loop {
        let answers = take_answers(stream);
        if answers.is_empty() {
            if !stream.reading.get() && stream.in_flight.get() == 0 {
                return Ok(());
            }
            stream.answered.notified().await;
            continue;
        }
        let now = executor::now();
        let due = health_sent.is_none_or(|sent| now.since(sent) >= HEALTH_PERIOD);
        let health = due.then(|| health(&stream.service));
        if due {
            health_sent = Some(now);
        }
        let mut message = Some(shallow::encode_batch_response(&answers, health.as_ref()));
        count(&stream.service.metrics.batch_answers);
        poll_fn(|cx| outbound.poll_send(cx, &mut message)).await?;
        stream.in_flight.set(stream.in_flight.get() - answers.len());
        stream.room.notify();
    }
}

fn take_answers<E: Engine>(stream: &Stream<E>) -> Vec<Command> {
    let mut queue = stream.answers.borrow_mut();
    let mut bytes = 0;
    let mut count = 0;
    for answer in queue.iter().take(ANSWERS_PER_MESSAGE) {
        if count > 0 && bytes + answer.body.len() > BYTES_PER_MESSAGE {
            break;
        }
        bytes += answer.body.len();
        count += 1;
    }
    queue.drain(..count).collect()
}

/// How the store feels: healthy, as slowness is not measured yet.
pub(super) fn health<E: Engine>(service: &TikvService<E>) -> kvrpcpb::HealthFeedback {
    kvrpcpb::HealthFeedback {
        store_id: service.host.node.store.0,
        feedback_seq_no: executor::unix_time().millis(),
        slow_score: 1,
    }
}
