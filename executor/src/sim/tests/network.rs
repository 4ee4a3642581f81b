use super::*;
use crate::Class;
use crate::sim::{Link, SimHandoff, SimListener, SimStream, spawn_local};
use std::cell::RefCell;
use std::io::ErrorKind;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const SERVER: &str = "10.0.0.1:7000";

/// Echoes every connection until its end.
async fn serve_echo() {
    let listener = SimListener::bind(address(SERVER)).await.expect("the port is free");
    while let Ok((mut stream, _)) = listener.accept().await {
        drop(spawn_local(Class::Foreground, async move {
            let mut buf = vec![0; 4000];
            while let Ok(len) = stream.read(&mut buf).await {
                if len == 0 || stream.write_all(&buf[..len]).await.is_err() {
                    break;
                }
            }
        }));
    }
}

fn echo_world(seed: u64, config: SimConfig, count: u8) -> (Sim, Vec<SimNode>) {
    let (sim, nodes) = world(seed, config, count);
    sim.spawn_on(nodes[0], serve_echo());
    sim.run_for(millis(1));
    (sim, nodes)
}

async fn connect() -> SimStream {
    SimStream::connect(address(SERVER)).await.expect("the server listens")
}

/// Sends one byte and waits for it to come back.
async fn ping(stream: &mut SimStream) -> Result<u8, ErrorKind> {
    stream.write_all(&[7]).await.map_err(|error| error.kind())?;
    let mut byte = [0];
    stream.read_exact(&mut byte).await.map_err(|error| error.kind())?;
    Ok(byte[0])
}

#[test]
fn bytes_arrive_whole_and_in_order_through_any_chunks_and_windows() {
    for seed in 0..20 {
        let config = SimConfig {
            window_bytes: [100, 5_000, 256 << 10][seed as usize % 3],
            short_io_one_in: [0, 1, 2, 8][seed as usize % 4],
            ..SimConfig::default()
        };
        let (sim, nodes) = echo_world(seed, config, 2);
        let echoed = sim.block_on(
            nodes[1],
            async move {
                let sent: Vec<u8> = (0..60_000u32).map(|at| ((at * 31) >> 3) as u8).collect();
                let (mut read, mut write) = tokio::io::split(connect().await);
                let bytes = sent.clone();
                let writer = spawn_local(Class::Foreground, async move {
                    write.write_all(&bytes).await.expect("it is taken");
                    write.shutdown().await.expect("half-closed");
                });
                let mut back = Vec::new();
                read.read_to_end(&mut back).await.expect("the echo ends when we do");
                writer.await;
                back == sent
            },
            Duration::from_secs(60),
        );
        assert_eq!(echoed, Some(true), "seed {seed}");
    }
}

#[test]
fn addresses_are_those_of_the_nodes_and_port_0_picks_a_free_one() {
    let (sim, nodes) = echo_world(1, SimConfig::default(), 2);
    let client = sim.block_on(
        nodes[1],
        async {
            let stream = connect().await;
            stream.set_nodelay(true).expect("nothing to set");
            (stream.local_addr().expect("open"), stream.peer_addr().expect("open"))
        },
        SECOND,
    );
    let (local, peer) = client.expect("connects");
    assert_eq!(local.ip(), address("10.0.0.2:0").ip());
    assert_eq!(peer, address(SERVER));
    let ports = sim.block_on(
        nodes[0],
        async {
            let first = SimListener::bind(address("0.0.0.0:0")).await.expect("free");
            let second = SimListener::bind(address("10.0.0.1:0")).await.expect("free");
            let taken = SimListener::bind(address(SERVER)).await.map(drop).map_err(|error| error.kind());
            let foreign = SimListener::bind(address("10.0.0.2:1")).await.map(drop).map_err(|error| error.kind());
            let ports = [&first, &second].map(|it| it.local_addr().expect("bound").port());
            (ports, taken, foreign)
        },
        SECOND,
    );
    let ([first, second], taken, foreign) = ports.expect("answers");
    assert!(first != 0 && second != 0 && first != second);
    assert_eq!(taken, Err(ErrorKind::AddrInUse));
    assert_eq!(foreign, Err(ErrorKind::AddrNotAvailable));
}

#[test]
fn connecting_fails_in_its_three_ways() {
    let (sim, nodes) = echo_world(2, SimConfig::default(), 3);
    let attempt = |target: &'static str| {
        let kind = async move { SimStream::connect(address(target)).await.map(drop).map_err(|error| error.kind()) };
        sim.block_on(nodes[1], kind, Duration::from_secs(20)).expect("it ends")
    };
    assert_eq!(attempt(SERVER), Ok(()));
    assert_eq!(attempt("10.0.0.1:7001"), Err(ErrorKind::ConnectionRefused));
    assert_eq!(attempt("127.0.0.1:7000"), Err(ErrorKind::ConnectionRefused), "loopback is the node itself");
    assert_eq!(attempt("10.0.0.9:7000"), Err(ErrorKind::HostUnreachable));
    sim.partition(nodes[0], nodes[1]);
    let begin = sim.now();
    assert_eq!(attempt(SERVER), Err(ErrorKind::TimedOut));
    assert!(sim.now().since(begin) >= Duration::from_secs(5));
    sim.heal(nodes[0], nodes[1]);
    assert_eq!(attempt(SERVER), Ok(()));
    sim.kill(nodes[0]);
    assert_eq!(attempt(SERVER), Err(ErrorKind::ConnectionRefused));
}

#[test]
fn a_loopback_listener_is_for_its_own_node() {
    let (sim, nodes) = world(2, SimConfig::default(), 2);
    sim.spawn_on(nodes[0], async {
        let listener = SimListener::bind(address("127.0.0.1:9")).await.expect("free");
        loop {
            drop(listener.accept().await);
        }
    });
    sim.run_for(millis(1));
    let reach = |node, target: &'static str| {
        let reached = async move { SimStream::connect(address(target)).await.is_ok() };
        sim.block_on(node, reached, SECOND)
    };
    assert_eq!(reach(nodes[0], "127.0.0.1:9"), Some(true));
    assert_eq!(reach(nodes[0], "10.0.0.1:9"), Some(false));
    assert_eq!(reach(nodes[1], "10.0.0.1:9"), Some(false));
}

#[test]
fn a_partition_holds_bytes_until_it_heals() {
    let (sim, nodes) = echo_world(3, SimConfig::default(), 2);
    let (pongs, bumped) = counter();
    sim.spawn_on(nodes[1], async move {
        let mut stream = connect().await;
        while ping(&mut stream).await == Ok(7) {
            bump(&bumped);
            sleep(millis(10)).await;
        }
        unreachable!("the partition is too short to give up");
    });
    sim.run_for(SECOND);
    let before = pongs.get();
    assert!(before > 50);
    sim.partition(nodes[0], nodes[1]);
    sim.run_for(millis(20)); // nothing under way any more
    let before = pongs.get().max(before);
    sim.run_for(Duration::from_secs(10));
    assert_eq!(pongs.get(), before);
    sim.heal(nodes[0], nodes[1]);
    sim.run_for(SECOND);
    assert!(pongs.get() > before + 50);
}

#[test]
fn a_one_way_partition_blocks_one_way() {
    let (sim, nodes) = echo_world(4, SimConfig::default(), 2);
    let stream = sim.block_on(nodes[1], connect(), SECOND).expect("connected");
    let (sent, received) = tokio::io::split(stream);
    let got = Rc::new(RefCell::new(Vec::new()));
    let (mut reader, seen) = (sent, got.clone());
    sim.spawn_on(nodes[1], async move {
        while let Ok(byte) = reader.read_u8().await {
            seen.borrow_mut().push(byte);
        }
    });
    sim.partition_one_way(nodes[0], nodes[1]);
    let mut writer = received;
    sim.block_on(
        nodes[1],
        async move {
            writer.write_all(&[1, 2]).await.expect("sent");
            std::future::pending::<()>().await
        },
        millis(500),
    );
    assert!(got.borrow().is_empty(), "the echo is held");
    sim.heal_all();
    sim.run_for(SECOND);
    assert_eq!(*got.borrow(), [1, 2]);
}

#[test]
fn a_long_partition_ends_the_senders_connection_and_later_the_peers() {
    let (sim, nodes) = echo_world(5, SimConfig::default(), 2);
    let outcome = Rc::new(Cell::new(None));
    let seen = outcome.clone();
    sim.spawn_on(nodes[1], async move {
        let mut stream = connect().await;
        assert_eq!(ping(&mut stream).await, Ok(7));
        sleep(SECOND).await;
        seen.set(Some((ping(&mut stream).await, crate::sim::now())));
    });
    sim.run_for(millis(500));
    sim.isolate(nodes[0]);
    sim.run_for(Duration::from_secs(14));
    assert!(outcome.get().is_none());
    sim.run_for(Duration::from_secs(3));
    assert_eq!(outcome.get().map(|(result, _)| result), Some(Err(ErrorKind::TimedOut)));
}

#[test]
fn a_killed_peer_resets_the_connection_and_a_partitioned_one_is_silent() {
    for silent in [false, true] {
        let (sim, nodes) = echo_world(6, SimConfig::default(), 2);
        let outcome = Rc::new(Cell::new(None));
        let seen = outcome.clone();
        sim.spawn_on(nodes[1], async move {
            let mut stream = connect().await;
            let mut byte = [0];
            seen.set(Some(stream.read(&mut byte).await.map_err(|error| error.kind())));
        });
        sim.run_for(millis(10));
        if silent {
            sim.partition(nodes[0], nodes[1]);
        }
        sim.kill(nodes[0]);
        sim.run_for(Duration::from_secs(30));
        let expected = (!silent).then_some(Err(ErrorKind::ConnectionReset));
        assert_eq!(outcome.get(), expected);
    }
}

#[test]
fn bytes_to_a_node_that_died_unheard_are_answered_with_a_reset() {
    let (sim, nodes) = echo_world(7, SimConfig::default(), 2);
    let outcome = Rc::new(Cell::new(None));
    let seen = outcome.clone();
    sim.spawn_on(nodes[1], async move {
        let mut stream = connect().await;
        sleep(SECOND).await;
        seen.set(Some(ping(&mut stream).await));
    });
    sim.run_for(millis(10));
    sim.partition(nodes[0], nodes[1]);
    sim.kill(nodes[0]);
    sim.run_for(millis(100));
    sim.spawn_on(nodes[0], serve_echo());
    sim.heal(nodes[0], nodes[1]);
    sim.run_for(Duration::from_secs(3));
    assert_eq!(outcome.get(), Some(Err(ErrorKind::ConnectionReset)));
}

#[test]
fn a_paused_peer_is_silent_and_answers_afterwards() {
    let (sim, nodes) = echo_world(8, SimConfig::default(), 2);
    sim.pause(nodes[0], SECOND);
    let answer = sim.block_on(
        nodes[1],
        async {
            let begin = crate::sim::now();
            let mut stream = connect().await; // the kernel accepts
            (elapsed(begin), ping(&mut stream).await, elapsed(begin))
        },
        Duration::from_secs(5),
    );
    let (connected, byte, answered) = answer.expect("it answers");
    assert!(connected < millis(10));
    assert_eq!(byte, Ok(7));
    assert!(answered > millis(900));
}

#[test]
fn links_reset_connections_at_their_rate() {
    let (sim, nodes) = echo_world(9, SimConfig::default(), 2);
    let link = Link { reset_rate: 0.05, ..SimConfig::default().link };
    sim.set_link(nodes[0], nodes[1], link);
    let resets = sim.block_on(
        nodes[1],
        async {
            let mut resets = 0;
            let mut stream = connect().await;
            for _ in 0..1000 {
                if let Err(error) = ping(&mut stream).await {
                    assert_eq!(error, ErrorKind::ConnectionReset);
                    resets += 1;
                    stream = connect().await;
                }
            }
            resets
        },
        Duration::from_secs(60),
    );
    let resets = resets.expect("it ends");
    assert!((50..200).contains(&resets), "{resets} of 1000 round trips at 5% each way");
}

#[test]
fn latency_is_what_the_link_says() {
    let (sim, nodes) = echo_world(10, SimConfig::default(), 2);
    let link = Link { latency: millis(40), jitter: millis(5), reset_rate: 0.0 };
    sim.set_link(nodes[0], nodes[1], link);
    let trips = sim.block_on(
        nodes[1],
        async {
            let mut stream = connect().await;
            let mut trips = Vec::new();
            for _ in 0..20 {
                let begin = crate::sim::now();
                ping(&mut stream).await.expect("calm");
                trips.push(elapsed(begin));
            }
            trips
        },
        Duration::from_secs(5),
    );
    for trip in trips.expect("it ends") {
        assert!((millis(80)..millis(91)).contains(&trip), "{trip:?}");
    }
}

#[test]
fn one_direction_may_be_slow_for_a_while() {
    let (sim, nodes) = echo_world(11, SimConfig::default(), 2);
    let slow = Link { latency: millis(300), jitter: millis(0), reset_rate: 0.0 };
    let trip = |stream: SimStream| {
        let mut stream = stream;
        let trip = async move {
            let begin = crate::sim::now();
            ping(&mut stream).await.expect("calm");
            (elapsed(begin), stream)
        };
        sim.block_on(nodes[1], trip, SECOND).expect("it ends")
    };
    let stream = sim.block_on(nodes[1], connect(), SECOND).expect("connected");
    let (usual, stream) = trip(stream);
    sim.set_link_one_way(nodes[0], nodes[1], Some(slow));
    let (slowed, stream) = trip(stream);
    sim.set_link_one_way(nodes[0], nodes[1], None);
    let (again, _) = trip(stream);
    assert!(usual < millis(10) && again < millis(10), "{usual:?}, {again:?}");
    assert!((millis(300)..millis(310)).contains(&slowed), "{slowed:?}");
}

#[test]
fn a_full_window_makes_the_writer_wait() {
    let config = SimConfig { window_bytes: 1000, short_io_one_in: 0, ..SimConfig::default() };
    let (sim, nodes) = world(11, config, 2);
    let kept = Rc::new(RefCell::new(None));
    let keep = kept.clone();
    sim.spawn_on(nodes[0], async move {
        let listener = SimListener::bind(address(SERVER)).await.expect("free");
        *keep.borrow_mut() = Some(listener.accept().await.expect("one comes").0);
    });
    sim.run_for(millis(1));
    let (written, bumped) = counter();
    sim.spawn_on(nodes[1], async move {
        let mut stream = connect().await;
        while stream.write(&[0; 100]).await.is_ok() {
            bump(&bumped);
        }
    });
    sim.run_for(SECOND);
    assert_eq!(written.get(), 10);
    let mut stream = kept.take().expect("accepted");
    let stream = sim.block_on(nodes[0], async move { stream.read_exact(&mut [0; 250]).await.map(|_| stream) }, SECOND);
    sim.run_for(SECOND);
    assert_eq!(written.get(), 13, "as much again as was read, in writes of 100 and 50 bytes");
    drop(stream);
}

#[test]
fn closing_with_unread_bytes_resets_and_without_ends_the_stream() {
    for unread in [false, true] {
        let (sim, nodes) = world(12, SimConfig::default(), 2);
        sim.spawn_on(nodes[0], async {
            let listener = SimListener::bind(address(SERVER)).await.expect("free");
            let (stream, _) = listener.accept().await.expect("one comes");
            sleep(millis(50)).await;
            drop(stream);
        });
        sim.run_for(millis(1));
        let end = sim.block_on(
            nodes[1],
            async move {
                let mut stream = connect().await;
                if unread {
                    stream.write_all(b"hello").await.expect("sent");
                }
                stream.read(&mut [0; 9]).await.map_err(|error| error.kind())
            },
            SECOND,
        );
        let expected = if unread { Err(ErrorKind::ConnectionReset) } else { Ok(0) };
        assert_eq!(end, Some(expected));
    }
}

#[test]
fn a_stream_is_handed_from_core_to_core() {
    let (sim, nodes) = world(13, SimConfig::default(), 2);
    let place: std::sync::Arc<std::sync::Mutex<Vec<SimHandoff>>> = std::sync::Arc::default();
    let shared = place.clone();
    sim.start(nodes[0], 2, move |core| {
        let place = shared.clone();
        Box::pin(async move {
            if core.0 == 0 {
                let listener = SimListener::bind(address(SERVER)).await.expect("free");
                let (mut stream, _) = listener.accept().await.expect("one comes");
                stream.write_all(b"0").await.expect("sent");
                place.lock().expect("not poisoned").push(stream.into_handoff());
                return std::future::pending().await;
            }
            loop {
                sleep(millis(1)).await;
                let handoff = place.lock().expect("not poisoned").pop();
                if let Some(handoff) = handoff {
                    let mut stream = SimStream::from_handoff(handoff);
                    stream.write_all(b"1").await.expect("sent");
                }
            }
        })
    });
    sim.run_for(millis(1));
    let all = async {
        let mut all = Vec::new();
        connect().await.read_to_end(&mut all).await.expect("closed in the end");
        all
    };
    assert_eq!(sim.block_on(nodes[1], all, SECOND).as_deref(), Some(&b"01"[..]));
}

#[test]
fn a_full_backlog_makes_clients_try_again() {
    let config = SimConfig { backlog: 2, ..SimConfig::default() };
    let (sim, nodes) = world(14, config, 2);
    sim.spawn_on(nodes[0], async {
        let listener = SimListener::bind(address(SERVER)).await.expect("free");
        sleep(SECOND).await;
        loop {
            drop(listener.accept().await);
        }
    });
    sim.run_for(millis(1));
    let (connected, bumped) = counter();
    for _ in 0..5 {
        let bumped = bumped.clone();
        sim.spawn_on(nodes[1], async move {
            let _stream = connect().await;
            bump(&bumped);
        });
    }
    sim.run_for(millis(900));
    assert_eq!(connected.get(), 2);
    sim.run_for(Duration::from_secs(3));
    assert_eq!(connected.get(), 5);
}
