//! Two ends over a pipe in memory that takes and gives as little as a test wants.

use super::*;
use crate::tls::testing::Authority;
use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::task::Waker;

/// One direction of a pipe.
#[derive(Default)]
struct Lane {
    bytes: VecDeque<u8>,
    is_closed: bool,
    writes: usize,
}

/// One end of a pipe. It is polled in turn with the other one, so it wakes nobody.
struct End {
    from: Rc<RefCell<Lane>>,
    to: Rc<RefCell<Lane>>,
    /// Bytes that one read gives, that one write takes, and that may wait in the pipe.
    read_max: usize,
    write_max: usize,
    room: usize,
}

impl AsyncRead for End {
    fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut lane = self.from.borrow_mut();
        if lane.bytes.is_empty() && !lane.is_closed {
            return Poll::Pending;
        }
        let count = lane.bytes.len().min(out.remaining()).min(self.read_max);
        out.put_slice(&lane.bytes.drain(..count).collect::<Vec<_>>());
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for End {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let mut lane = self.to.borrow_mut();
        let count = bytes.len().min(self.write_max).min(self.room - lane.bytes.len());
        if count == 0 {
            return Poll::Pending;
        }
        lane.bytes.extend(&bytes[..count]);
        lane.writes += 1;
        Poll::Ready(Ok(count))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let most = slices.iter().flat_map(|slice| slice.iter().copied()).take(self.write_max);
        self.poll_write(cx, &most.collect::<Vec<_>>())
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.to.borrow_mut().is_closed = true;
        Poll::Ready(Ok(()))
    }
}

/// A client and a server, strangers still.
fn pair(read_max: usize, write_max: usize, room: usize) -> (TlsStream<End>, TlsStream<End>) {
    let authority = Authority::new();
    let tls = authority.node("node").tls();
    let lanes = [Rc::<RefCell<Lane>>::default(), Rc::<RefCell<Lane>>::default()];
    let end = |from: usize| {
        let (from, to) = (Rc::clone(&lanes[from]), Rc::clone(&lanes[1 - from]));
        End { from, to, read_max, write_max, room }
    };
    let name = ServerName::try_from("localhost").expect("a name");
    let client = TlsStream::client(end(0), name, tls.client()).expect("settings");
    (client, TlsStream::server(end(1), Bytes::new(), tls.server()).expect("settings"))
}

/// Lets both sides greet each other.
fn greet(client: &mut TlsStream<End>, server: &mut TlsStream<End>) {
    let cx = &mut Context::from_waker(Waker::noop());
    for _ in 0..100_000 {
        let (ours, theirs) = (client.poll_handshake(cx), server.poll_handshake(cx));
        if let (Poll::Ready(ours), Poll::Ready(theirs)) = (ours, theirs) {
            ours.expect("the client is content");
            theirs.expect("the server is content");
            return;
        }
    }
    panic!("the handshake does not end");
}

fn read(stream: &mut TlsStream<End>, bytes: &mut [u8]) -> Poll<io::Result<usize>> {
    let mut out = ReadBuf::new(bytes);
    let read = Pin::new(stream).poll_read(&mut Context::from_waker(Waker::noop()), &mut out);
    read.map_ok(|()| out.filled().len())
}

#[test]
fn bytes_come_through_however_the_stream_below_cuts_them() {
    for (read_max, write_max, room) in [(1, 1, 100), (7, 5000, 10_000), (1 << 20, 1 << 20, 1 << 20)] {
        let len = if read_max == 1 { 3000 } else { 300_000 };
        let (mut client, mut server) = pair(read_max, write_max, room);
        greet(&mut client, &mut server);
        let cx = &mut Context::from_waker(Waker::noop());
        let sent: Vec<u8> = (0..len).map(|i: u32| (i % 251) as u8).collect();
        let (mut left, mut got, mut buffer) = (&sent[..], Vec::new(), vec![0; 50_000]);
        while got.len() < sent.len() {
            if let Poll::Ready(taken) = Pin::new(&mut client).poll_write(cx, left) {
                left = &left[taken.expect("open")..];
            }
            let _ = Pin::new(&mut client).poll_flush(cx);
            if let Poll::Ready(read) = read(&mut server, &mut buffer) {
                got.extend_from_slice(&buffer[..read.expect("open")]);
            }
        }
        assert!(got == sent, "{read_max} {write_max} {room}");
    }
}

#[test]
fn a_large_write_is_one_of_the_socket_and_a_large_read_takes_all_its_records() {
    let (mut client, mut server) = pair(1 << 20, 1 << 20, 1 << 20);
    greet(&mut client, &mut server);
    let before = client.io.to.borrow().writes;
    let cx = &mut Context::from_waker(Waker::noop());
    let taken = Pin::new(&mut client).poll_write(cx, &[7; 100_000]);
    assert!(matches!(taken, Poll::Ready(Ok(WRITE_BYTES_MAX))), "{taken:?}");
    assert_eq!(client.io.to.borrow().writes, before + 1);
    // 64 KiB of the socket hold three whole records and most of the fourth.
    let mut buffer = vec![0; 100_000];
    assert!(matches!(read(&mut server, &mut buffer), Poll::Ready(Ok(49_152))));
    assert!(matches!(read(&mut server, &mut buffer), Poll::Ready(Ok(16_384))));
    assert!(read(&mut server, &mut buffer).is_pending());
}

#[test]
fn what_waits_for_a_slow_socket_is_bounded() {
    let (mut client, mut server) = pair(1 << 20, 1 << 20, 20_000);
    greet(&mut client, &mut server);
    let cx = &mut Context::from_waker(Waker::noop());
    let first = Pin::new(&mut client).poll_write(cx, &[7; 1 << 20]);
    assert!(matches!(first, Poll::Ready(Ok(WRITE_BYTES_MAX))), "{first:?}");
    assert!(Pin::new(&mut client).poll_write(cx, &[7; 1 << 20]).is_pending(), "the first has not left");
    assert!(Pin::new(&mut client).poll_flush(cx).is_pending());
}

#[test]
fn a_goodbye_is_the_end_and_without_it_the_connection_was_cut_off() {
    for says_goodbye in [true, false] {
        let (mut client, mut server) = pair(1 << 20, 1 << 20, 1 << 20);
        greet(&mut client, &mut server);
        let cx = &mut Context::from_waker(Waker::noop());
        assert!(Pin::new(&mut client).poll_write(cx, b"last").is_ready());
        if says_goodbye {
            assert!(Pin::new(&mut client).poll_shutdown(cx).is_ready());
        } else {
            client.io.to.borrow_mut().is_closed = true;
        }
        let mut buffer = [0; 100];
        assert!(matches!(read(&mut server, &mut buffer), Poll::Ready(Ok(4))), "what came before counts");
        for _ in 0..2 {
            match read(&mut server, &mut buffer) {
                Poll::Ready(Ok(0)) => assert!(says_goodbye),
                Poll::Ready(Err(error)) => {
                    assert!(!says_goodbye && error.kind() == io::ErrorKind::UnexpectedEof, "{error}");
                }
                other => panic!("{other:?}"),
            }
        }
    }
}

#[test]
fn a_changed_byte_ends_the_reading_for_good_and_is_told() {
    let (mut client, mut server) = pair(1 << 20, 1 << 20, 1 << 20);
    greet(&mut client, &mut server);
    let cx = &mut Context::from_waker(Waker::noop());
    assert!(Pin::new(&mut client).poll_write(cx, b"good").is_ready());
    let good = client.io.to.borrow().bytes.len();
    assert!(Pin::new(&mut client).poll_write(cx, b"bad").is_ready());
    client.io.to.borrow_mut().bytes[good + 7] ^= 1;
    let mut buffer = [0; 100];
    assert!(matches!(read(&mut server, &mut buffer), Poll::Ready(Ok(4))), "what came before counts");
    for _ in 0..2 {
        assert!(matches!(read(&mut server, &mut buffer), Poll::Ready(Err(_))));
    }
    let told = read(&mut client, &mut buffer);
    assert!(matches!(&told, Poll::Ready(Err(error)) if error.to_string().contains("BadRecordMac")), "{told:?}");
}
