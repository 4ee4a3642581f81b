//! TCP on both runtimes.

use std::io::{ErrorKind, IoSlice, Read, Write};
use std::net::SocketAddr;
use std::sync::Mutex;
use std::time::Duration;

use executor::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt};
use executor::net::{StreamHandoff, TcpListener, TcpStream};
use executor::{Class, IoChoice, LocalFuture, mailbox, spawn_local, timeout};

use crate::support::{on_both, on_cores, with_both};

on_both! {
    bytes_come_back_from_an_echo,
    much_data_passes_through_small_buffers,
    the_end_of_one_side_is_seen_by_the_other,
    an_accept_that_was_dropped_loses_no_connection,
    a_port_in_use_is_refused,
    nobody_at_the_port_is_an_error,
    slices_are_written_in_order,
    streams_dropped_in_wait_are_closed,
    a_handoff_keeps_the_connection,
}

with_both! { another_core_takes_over_a_connection }

fn loopback() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind(loopback()).await.expect("bind");
    let address = listener.local_addr().expect("address");
    let connects = spawn_local(Class::Foreground, TcpStream::connect(address));
    let (accepted, peer) = listener.accept().await.expect("accept");
    let connected = connects.await.expect("connect");
    assert_eq!(connected.local_addr().expect("address"), peer);
    assert_eq!(connected.peer_addr().expect("address"), address);
    assert_eq!(accepted.peer_addr().expect("address"), peer);
    connected.set_nodelay(true).expect("nodelay");
    (accepted, connected)
}

async fn echo(mut stream: TcpStream) {
    let mut bytes = [0; 1000];
    loop {
        let read = stream.read(&mut bytes).await.expect("read");
        if read == 0 {
            return;
        }
        stream.write_all(&bytes[..read]).await.expect("write");
    }
}

async fn bytes_come_back_from_an_echo() {
    let (server, mut client) = pair().await;
    let server = spawn_local(Class::Foreground, echo(server));
    for round in 0..100u32 {
        client.write_all(&round.to_be_bytes()).await.expect("write");
        assert_eq!(client.read_u32().await.expect("read"), round);
    }
    client.shutdown().await.expect("shutdown");
    server.await;
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at % 251) as u8).collect()
}

async fn much_data_passes_through_small_buffers() {
    const LEN: usize = 4 << 20;
    let (server, client) = pair().await;
    let server = spawn_local(Class::Foreground, echo(server));
    let (mut reads, mut writes) = tokio::io::split(client);
    let writer = spawn_local(Class::Foreground, async move {
        writes.write_all(&pattern(LEN)).await.expect("write");
        writes.shutdown().await.expect("shutdown");
    });
    let mut back = Vec::new();
    reads.read_to_end(&mut back).await.expect("read");
    assert!(back == pattern(LEN));
    writer.await;
    server.await;
}

async fn the_end_of_one_side_is_seen_by_the_other() {
    let (mut server, mut client) = pair().await;
    client.shutdown().await.expect("shutdown");
    assert_eq!(server.read(&mut [0; 8]).await.expect("read"), 0);
    server.write_all(b"still open").await.expect("write");
    drop(server);
    let mut rest = Vec::new();
    client.read_to_end(&mut rest).await.expect("read");
    assert_eq!(rest, b"still open");
}

async fn an_accept_that_was_dropped_loses_no_connection() {
    let listener = TcpListener::bind(loopback()).await.expect("bind");
    let address = listener.local_addr().expect("address");
    for _ in 0..20 {
        assert!(timeout(Duration::from_millis(1), listener.accept()).await.is_err());
        let client = std::net::TcpStream::connect(address).expect("connect");
        let (_, peer) = listener.accept().await.expect("accept");
        assert_eq!(peer, client.local_addr().expect("address"));
    }
}

async fn a_port_in_use_is_refused() {
    let listener = TcpListener::bind(loopback()).await.expect("bind");
    let address = listener.local_addr().expect("address");
    let second = TcpListener::bind(address).await.expect_err("in use");
    assert_eq!(second.kind(), ErrorKind::AddrInUse);
    drop(listener);
}

async fn nobody_at_the_port_is_an_error() {
    let listener = TcpListener::bind(loopback()).await.expect("bind");
    let address = listener.local_addr().expect("address");
    drop(listener);
    // The runtime may close the socket a turn later.
    let refused = loop {
        match TcpStream::connect(address).await {
            Ok(_) => executor::yield_now().await,
            Err(error) => break error,
        }
    };
    assert!(matches!(refused.kind(), ErrorKind::ConnectionRefused | ErrorKind::ConnectionReset));
}

async fn slices_are_written_in_order() {
    const LEN: usize = 1 << 20;
    let (mut server, mut client) = pair().await;
    assert!(client.is_write_vectored());
    let writer = spawn_local(Class::Foreground, async move {
        let bytes = pattern(LEN);
        let mut at = 0;
        while at < LEN {
            let rest = &bytes[at..];
            let (a, b) = rest.split_at(rest.len() / 2);
            let (b, c) = b.split_at(b.len() / 2);
            let slices = [IoSlice::new(a), IoSlice::new(&[]), IoSlice::new(b), IoSlice::new(c)];
            at += client.write_vectored(&slices).await.expect("write");
        }
    });
    let mut got = Vec::new();
    server.read_to_end(&mut got).await.expect("read");
    assert!(got == pattern(LEN));
    writer.await;
}

async fn streams_dropped_in_wait_are_closed() {
    for _ in 0..50 {
        let (mut server, mut client) = pair().await;
        let waits = spawn_local(Class::Foreground, async move { server.read(&mut [0; 8]).await });
        executor::yield_now().await;
        executor::yield_now().await;
        waits.cancel();
        assert_eq!(client.read(&mut [0; 8]).await.expect("read"), 0);
    }
}

async fn a_handoff_keeps_the_connection() {
    let (server, mut client) = pair().await;
    client.write_all(b"early").await.expect("write");
    let handoff = server.into_handoff().expect("handoff");
    let mut server = TcpStream::from_handoff(handoff).expect("handoff");
    client.write_all(b" late").await.expect("write");
    let mut bytes = [0; 10];
    server.read_exact(&mut bytes).await.expect("read");
    assert_eq!(&bytes, b"early late");
    drop(server.into_handoff().expect("handoff"));
    assert_eq!(client.read(&mut bytes).await.expect("read"), 0, "a dropped handoff closes");
}

fn another_core_takes_over_a_connection(io: IoChoice) {
    const CLIENTS: usize = 20;
    let (sender, receiver) = mailbox::<StreamHandoff>(CLIENTS);
    let (sender, receiver) = (Mutex::new(Some(sender)), Mutex::new(Some(receiver)));
    on_cores(io, 2, move |core| match core.0 {
        0 => {
            let sender = sender.lock().expect("no panic").take().expect("core 0 starts once");
            Box::pin(async move {
                let listener = TcpListener::bind(loopback()).await.expect("bind");
                let address = listener.local_addr().expect("address");
                let clients: Vec<_> =
                    (0..CLIENTS).map(|number| std::thread::spawn(move || client(address, number))).collect();
                for _ in 0..CLIENTS {
                    let (stream, _) = listener.accept().await.expect("accept");
                    sender.send(stream.into_handoff().expect("handoff")).await.expect("core 1 listens");
                }
                executor::blocking(Class::Background, move || {
                    clients.into_iter().for_each(|client| client.join().expect("the client is content"));
                })
                .await;
            }) as LocalFuture<()>
        }
        _ => {
            let mut receiver = receiver.lock().expect("no panic").take().expect("core 1 starts once");
            Box::pin(async move {
                let mut served = Vec::new();
                while let Some(handoff) = receiver.recv().await {
                    let stream = TcpStream::from_handoff(handoff).expect("handoff");
                    served.push(spawn_local(Class::Foreground, echo(stream)));
                }
                assert_eq!(served.len(), CLIENTS);
                for task in served {
                    task.await;
                }
            })
        }
    });
}

fn client(address: SocketAddr, number: usize) {
    let mut stream = std::net::TcpStream::connect(address).expect("connect");
    for round in 0..50 {
        let sent = (number as u32 * 1000 + round).to_be_bytes();
        stream.write_all(&sent).expect("write");
        let mut got = [0; 4];
        stream.read_exact(&mut got).expect("read");
        assert_eq!(got, sent);
    }
}
