//! Generated traits, adapters and stubs, joined by a loopback that is nothing but two bounded queues.

use bytes::Bytes;
use proto::health::{HealthCheckRequest, HealthCheckResponse};
use proto::kvrpcpb::{RawGetRequest, RawGetResponse};
use proto::pdpb::{self, GetMembersRequest, GetMembersResponse, Pd, PdClient, PdService, TsoRequest, TsoResponse};
use proto::rpc::{
    CallContext, Channel, Code, Inbound, LocalFuture, Outbound, RawInbound, RawOutbound, Service, Shape, Status,
    Streams,
};
use proto::{health, raft_serverpb, tikvpb};
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::Future;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

#[test]
fn a_unary_call_arrives_with_its_context_and_comes_back() {
    struct Member;
    impl Pd for Member {
        async fn get_members(&self, cx: CallContext, request: GetMembersRequest) -> Result<GetMembersResponse, Status> {
            assert_eq!(cx.deadline, Some(base::Instant(7)));
            assert_eq!(cx.metadata.get_str("who"), Some("test"));
            let cluster_id = request.header.ok_or_else(|| Status::invalid_argument("no header"))?.cluster_id;
            let header = Some(pdpb::ResponseHeader { cluster_id, error: None });
            Ok(GetMembersResponse { header, ..Default::default() })
        }
    }
    let client = PdClient::new(Loopback::to(PdService::new(Rc::new(Member))));
    let mut cx = CallContext::with_deadline(base::Instant(7));
    cx.metadata.push("Who", "test");
    let header = Some(pdpb::RequestHeader { cluster_id: 42, ..Default::default() });
    let answer = run(client.get_members(cx.clone(), &GetMembersRequest { header })).expect("it is served");
    assert_eq!(answer.header.map(|header| header.cluster_id), Some(42));

    let refusal = run(client.get_members(cx, &GetMembersRequest { header: None }));
    assert_eq!(refusal, Err(Status::invalid_argument("no header")));
}

#[test]
fn what_is_not_written_is_unimplemented() {
    struct Nothing;
    impl Pd for Nothing {}
    let service = PdService::new(Rc::new(Nothing));
    assert_eq!(service.name(), "pdpb.PD");
    assert_eq!(service.shape("GetMembers"), Some(Shape::Unary));
    assert_eq!(service.shape("Tso"), Some(Shape::Bidi));
    assert_eq!(service.shape("WatchGlobalConfig"), Some(Shape::ServerStream));
    assert_eq!(service.shape("get_members"), None);

    // Known but not written, unknown, and of another shape.
    for method in ["GetMembers", "Nonsense", "Tso"] {
        let status = run(service.unary(method, CallContext::default(), Bytes::new())).expect_err("nothing is served");
        assert_eq!(status.code, Code::Unimplemented);
        assert!(status.message.contains(method) && status.message.contains("pdpb.PD"), "{status}");
    }
    let client = PdClient::new(Loopback::to(service));
    let (_requests, mut answers) = run(client.tso(CallContext::default())).expect("the stream starts");
    assert_eq!(run(answers.next()).expect_err("nothing is served").code, Code::Unimplemented);
}

#[test]
fn garbage_is_internal_and_never_a_panic() {
    struct Nothing;
    impl Pd for Nothing {}
    let service = PdService::new(Rc::new(Nothing));
    // etcd's transactions nest: a level is `TxnRequest.success { request_txn { … } }`.
    let mut deep = Vec::new();
    for key in [0x22, 0x12].into_iter().cycle().take(1_000) {
        let mut outer = vec![key];
        prost::encoding::encode_varint(deep.len() as u64, &mut outer);
        outer.append(&mut deep);
        deep = outer;
    }
    assert_eq!(
        proto::rpc::decode::<proto::etcdserverpb::TxnRequest>(deep.into()).expect_err("too deep").code,
        Code::Internal
    );
    for garbage in [&[0xff; 32][..], &[0x0a, 0xff, 0xff, 0xff, 0xff, 0x7f], &[0x0a, 5, 1], &[0x08, 1], &[0x0c]] {
        let status =
            run(service.unary("GetMembers", CallContext::default(), Bytes::from_static(garbage))).expect_err("garbage");
        assert_eq!(status.code, Code::Internal, "{status}");
        assert!(status.message.starts_with("malformed message"), "{status}");
    }
    for seed in 0..5_000 {
        let prng = &mut base::Prng::new(seed);
        let mut bytes = vec![0; prng.below(100) as usize];
        prng.fill(&mut bytes);
        let _ = proto::rpc::decode::<proto::etcdserverpb::TxnRequest>(Bytes::from(bytes.clone()));
        let _ = proto::rpc::decode::<tikvpb::BatchCommandsRequest>(Bytes::from(bytes.clone()));
        let _ = proto::rpc::decode::<proto::raft_cmdpb::RaftCmdRequest>(Bytes::from(bytes));
    }
}

#[test]
fn a_bidi_stream_flows_both_ways_under_back_pressure() {
    struct Oracle;
    impl Pd for Oracle {
        async fn tso(
            &self,
            _: CallContext,
            mut request: Inbound<TsoRequest>,
            answers: Outbound<TsoResponse>,
        ) -> Result<(), Status> {
            while let Some(request) = request.next().await? {
                answers.send(&TsoResponse { count: request.count, ..Default::default() }).await?;
            }
            Err(Status::unavailable("no more"))
        }
    }
    let client = PdClient::new(Loopback::to(PdService::new(Rc::new(Oracle))));
    let (requests, mut answers) = run(client.tso(CallContext::default())).expect("the stream starts");
    let send = async {
        for count in 1..=100 {
            requests.send(&TsoRequest { count, ..Default::default() }).await?;
        }
        requests.close();
        Ok::<(), Status>(())
    };
    let receive = async {
        let mut seen = Vec::new();
        loop {
            match answers.next().await {
                Ok(Some(answer)) => seen.push(answer.count),
                Ok(None) => panic!("it ends with a status"),
                Err(status) => return (seen, status),
            }
        }
    };
    let (sent, (seen, status)) = run(join(send, receive));
    assert_eq!(sent, Ok(()));
    assert_eq!(seen, (1..=100).collect::<Vec<_>>());
    assert_eq!(status, Status::unavailable("no more"));
}

#[test]
fn a_server_stream_answers_one_request() {
    struct Healthy;
    impl health::Health for Healthy {
        async fn watch(
            &self,
            _: CallContext,
            request: HealthCheckRequest,
            answers: Outbound<HealthCheckResponse>,
        ) -> Result<(), Status> {
            assert_eq!(request.service, "tikvpb.Tikv");
            for status in [2, 1] {
                answers.clone().send(&HealthCheckResponse { status }).await?;
            }
            Ok(())
        }
    }
    let service = health::HealthService::new(Rc::new(Healthy));
    assert_eq!(service.name(), "grpc.health.v1.Health");
    let client = health::HealthClient::new(Rc::new(Loopback::to(service)) as Rc<dyn Channel>);
    let request = HealthCheckRequest { service: "tikvpb.Tikv".into() };
    let mut answers = run(client.watch(CallContext::default(), &request)).expect("it starts");
    for status in [2, 1] {
        assert_eq!(run(answers.next()), Ok(Some(HealthCheckResponse { status })));
    }
    assert_eq!(run(answers.next()), Ok(None));
}

#[test]
fn a_client_stream_gets_one_answer() {
    struct Store(Cell<u64>);
    impl tikvpb::Tikv for Store {
        async fn raft(
            &self,
            _: CallContext,
            mut request: Inbound<raft_serverpb::RaftMessage>,
        ) -> Result<raft_serverpb::Done, Status> {
            while let Some(message) = request.next().await? {
                self.0.set(self.0.get() + message.region_id);
            }
            Ok(raft_serverpb::Done::default())
        }
        async fn raw_get(&self, _: CallContext, request: RawGetRequest) -> Result<RawGetResponse, Status> {
            Ok(RawGetResponse { value: request.key, ..Default::default() })
        }
    }
    let store = Rc::new(Store(Cell::new(0)));
    let client = tikvpb::TikvClient::new(Loopback::to(tikvpb::TikvService::new(Rc::clone(&store))));
    let (messages, answer) = run(client.raft(CallContext::default())).expect("it starts");
    let send = async {
        for region_id in 1..=10 {
            messages.send(&raft_serverpb::RaftMessage { region_id, ..Default::default() }).await.expect("it is taken");
        }
        messages.close();
    };
    let ((), done) = run(join(send, answer.one()));
    assert_eq!(done, Ok(raft_serverpb::Done::default()));
    assert_eq!(store.0.get(), 55);

    let request = RawGetRequest { key: Bytes::from_static(b"k"), ..Default::default() };
    let answer = run(client.raw_get(CallContext::default(), &request)).expect("it is served");
    assert_eq!(answer.value, "k");
}

#[test]
fn a_stream_that_ends_without_its_message_is_internal() {
    struct Healthy;
    impl health::Health for Healthy {}
    let service = health::HealthService::new(Rc::new(Healthy));
    let empty = Pipe::default();
    empty.finish(Ok(()));
    let status = run(service.stream("Watch", CallContext::default(), Box::new(empty.clone()), Rc::new(empty)));
    assert_eq!(status.expect_err("there was no request").code, Code::Internal);
}

#[test]
fn bytes_fields_share_the_messages_memory() {
    let request = RawGetRequest { key: Bytes::from(vec![b'k'; 100]), ..Default::default() };
    let encoded = proto::rpc::encode(&request);
    let decoded: RawGetRequest = proto::rpc::decode(encoded.clone()).expect("it is whole");
    assert!(encoded.as_ptr_range().contains(&decoded.key.as_ptr()));
}

/// A channel that hands each call to a service in the same task.
struct Loopback {
    service: Rc<dyn Service>,
}

impl Loopback {
    fn to(service: impl Service) -> Loopback {
        Loopback { service: Rc::new(service) }
    }

    /// Splits `/pdpb.PD/Tso` and checks that the service is the one that is meant.
    fn method(&self, path: &'static str) -> &'static str {
        let (service, method) = path[1..].split_once('/').expect("a path has two parts");
        assert_eq!(service, self.service.name());
        assert!(self.service.shape(method).is_some(), "the stub calls what the service has");
        method
    }
}

impl Channel for Loopback {
    fn unary(&self, path: &'static str, cx: CallContext, request: Bytes) -> LocalFuture<Result<Bytes, Status>> {
        self.service.unary(self.method(path), cx, request)
    }

    fn stream(&self, path: &'static str, cx: CallContext) -> LocalFuture<Result<Streams, Status>> {
        let (requests, answers) = (Pipe::default(), Pipe::default());
        let call = self.service.stream(self.method(path), cx, Box::new(requests.clone()), Rc::new(answers.clone()));
        let inbound = ServedBy { call: Some(call), answers };
        let streams: Streams = (Box::new(inbound), Rc::new(requests));
        Box::pin(std::future::ready(Ok(streams)))
    }
}

/// A queue of at most two messages, then its end.
#[derive(Clone, Default)]
struct Pipe {
    queue: Rc<RefCell<VecDeque<Bytes>>>,
    end: Rc<RefCell<Option<Result<(), Status>>>>,
}

impl Pipe {
    fn finish(&self, result: Result<(), Status>) {
        self.end.borrow_mut().get_or_insert(result);
    }
}

impl RawInbound for Pipe {
    fn poll_message(&mut self, _: &mut Context<'_>) -> Poll<Option<Result<Bytes, Status>>> {
        if let Some(message) = self.queue.borrow_mut().pop_front() {
            return Poll::Ready(Some(Ok(message)));
        }
        match &mut *self.end.borrow_mut() {
            None => Poll::Pending,
            Some(end) => Poll::Ready(std::mem::replace(end, Ok(())).err().map(Err)),
        }
    }
}

impl RawOutbound for Pipe {
    fn poll_send(&self, _: &mut Context<'_>, message: &mut Option<Bytes>) -> Poll<Result<(), Status>> {
        let mut queue = self.queue.borrow_mut();
        if self.end.borrow().is_some() {
            return Poll::Ready(Err(Status::cancelled("closed")));
        }
        if queue.len() == 2 {
            return Poll::Pending;
        }
        queue.extend(message.take());
        Poll::Ready(Ok(()))
    }

    fn close(&self) {
        self.finish(Ok(()));
    }
}

/// The client's inbound half, which drives the server's handler whenever it is polled.
struct ServedBy {
    call: Option<LocalFuture<Result<(), Status>>>,
    answers: Pipe,
}

impl RawInbound for ServedBy {
    fn poll_message(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Status>>> {
        if let Some(call) = &mut self.call
            && let Poll::Ready(result) = call.as_mut().poll(cx)
        {
            self.answers.finish(result);
            self.call = None;
        }
        self.answers.poll_message(cx)
    }
}

/// Polls both until both are done.
async fn join<A: Future, B: Future>(a: A, b: B) -> (A::Output, B::Output) {
    let (mut a, mut b) = (pin!(a), pin!(b));
    let (mut a_is, mut b_is) = (None, None);
    std::future::poll_fn(move |cx| {
        if a_is.is_none()
            && let Poll::Ready(output) = a.as_mut().poll(cx)
        {
            a_is = Some(output);
        }
        if b_is.is_none()
            && let Poll::Ready(output) = b.as_mut().poll(cx)
        {
            b_is = Some(output);
        }
        match (a_is.take(), b_is.take()) {
            (Some(a), Some(b)) => Poll::Ready((a, b)),
            (a, b) => {
                (a_is, b_is) = (a, b);
                Poll::Pending
            }
        }
    })
    .await
}

/// Polls a future to its end; the queues wake nobody, so it just polls again, for a bounded number of times.
fn run<T>(future: impl Future<Output = T>) -> T {
    let mut future = pin!(future);
    let mut cx = Context::from_waker(Waker::noop());
    for _ in 0..10_000 {
        if let Poll::Ready(output) = future.as_mut().poll(&mut cx) {
            return output;
        }
    }
    panic!("the future never ends");
}
