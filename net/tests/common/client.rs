//! The independent client: tonic, with messages as bytes.
#![allow(dead_code, reason = "each test file uses its part")]

use bytes::{Buf, BufMut, Bytes};
use http::uri::PathAndQuery;
use std::net::SocketAddr;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::transport::{Channel, Endpoint};
use tonic::{IntoStreamingRequest, Request, Response, Status, Streaming};

#[derive(Clone, Default)]
pub(crate) struct BytesCodec;

impl Codec for BytesCodec {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = BytesCodec;
    type Decoder = BytesCodec;

    fn encoder(&mut self) -> BytesCodec {
        BytesCodec
    }

    fn decoder(&mut self) -> BytesCodec {
        BytesCodec
    }
}

impl Encoder for BytesCodec {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, into: &mut EncodeBuf<'_>) -> Result<(), Status> {
        into.put(item);
        Ok(())
    }
}

impl Decoder for BytesCodec {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(from.copy_to_bytes(from.remaining())))
    }
}

/// Runs a test's client half.
pub(crate) fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    runtime.expect("a runtime").block_on(future)
}

#[derive(Clone)]
pub(crate) struct Client(pub tonic::client::Grpc<Channel>);

impl Client {
    pub(crate) async fn connect(address: SocketAddr) -> Client {
        let endpoint = Endpoint::from_shared(format!("http://{address}")).expect("an address");
        Client::over(endpoint).await
    }

    pub(crate) async fn over(endpoint: Endpoint) -> Client {
        let channel = endpoint.connect().await.expect("the server accepts");
        let grpc = tonic::client::Grpc::new(channel);
        Client(grpc.max_decoding_message_size(1 << 30).max_encoding_message_size(1 << 30))
    }

    pub(crate) async fn unary(&self, path: &'static str, request: Request<Bytes>) -> Result<Response<Bytes>, Status> {
        let mut grpc = self.0.clone();
        grpc.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
        grpc.unary(request, PathAndQuery::from_static(path), BytesCodec).await
    }

    pub(crate) async fn call(&self, path: &'static str, request: impl Into<Bytes>) -> Result<Bytes, Status> {
        self.unary(path, Request::new(request.into())).await.map(Response::into_inner)
    }

    pub(crate) async fn server_stream(
        &self,
        path: &'static str,
        request: Request<Bytes>,
    ) -> Result<Streaming<Bytes>, Status> {
        let mut grpc = self.0.clone();
        grpc.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
        let answer = grpc.server_streaming(request, PathAndQuery::from_static(path), BytesCodec).await;
        answer.map(Response::into_inner)
    }

    pub(crate) async fn client_stream(
        &self,
        path: &'static str,
        requests: impl IntoStreamingRequest<Message = Bytes>,
    ) -> Result<Bytes, Status> {
        let mut grpc = self.0.clone();
        grpc.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
        let requests = requests.into_streaming_request();
        let answer = grpc.client_streaming(requests, PathAndQuery::from_static(path), BytesCodec).await;
        answer.map(Response::into_inner)
    }

    pub(crate) async fn bidi(
        &self,
        path: &'static str,
        requests: impl IntoStreamingRequest<Message = Bytes>,
    ) -> Result<Streaming<Bytes>, Status> {
        let mut grpc = self.0.clone();
        grpc.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
        let requests = requests.into_streaming_request();
        let answer = grpc.streaming(requests, PathAndQuery::from_static(path), BytesCodec).await;
        answer.map(Response::into_inner)
    }
}

/// A request with metadata.
pub(crate) fn with(pairs: &[(&'static str, &str)], body: impl Into<Bytes>) -> Request<Bytes> {
    let mut request = Request::new(body.into());
    for (name, value) in pairs {
        request.metadata_mut().insert(*name, value.parse().expect("ASCII"));
    }
    request
}
