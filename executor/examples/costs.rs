//! What the executor's parts cost on this machine: `cargo run --release -p executor --example costs`.
//!
//! Each line is the mean of many rounds, on both runtimes, with two cores that are pinned if there are two CPUs.

use std::sync::Mutex;
use std::time::Duration;

use executor::io::{AsyncReadExt, AsyncWriteExt};
use executor::net::{TcpListener, TcpStream};
use executor::{
    AlignedBuf, Class, CoresConfig, IoChoice, LogFile, LogSync, MailReceiver, MailSender, blocking, mailbox, now,
    run_cores, spawn_local, yield_now,
};

const ROUNDS: u64 = 20_000;

type Ends = (Vec<MailSender<u64>>, Option<MailReceiver<u64>>);

fn main() {
    for (io, spin) in [(IoChoice::Uring, 0), (IoChoice::Uring, 20), (IoChoice::Epoll, 0)] {
        let (to_first, at_first) = mailbox::<u64>(1024);
        let (to_second, at_second) = mailbox::<u64>(1024);
        let senders = vec![to_first, to_second];
        let ends: Vec<Mutex<Ends>> =
            [at_first, at_second].map(|end| Mutex::new((senders.clone(), Some(end)))).into_iter().collect();
        drop(senders);
        let config = CoresConfig { cores: 2, io, idle_spin: Duration::from_micros(spin), ..CoresConfig::default() };
        let started = run_cores(config, move |core| {
            let (senders, receiver) = {
                let mut ends = ends[usize::from(core.0)].lock().expect("no panic");
                (std::mem::take(&mut ends.0), ends.1.take().expect("once"))
            };
            Box::pin(async move {
                if core.0 == 0 {
                    println!("{} idle_spin={spin}us", executor::io_kind());
                    alone().await;
                    first(&senders, receiver).await;
                } else {
                    second(&senders, receiver).await;
                }
            })
        });
        if let Err(error) = started {
            println!("{io}: {error}");
        }
    }
}

fn line(what: &str, began: base::Instant, rounds: u64) {
    println!("  {what:<44}{:>10} ns", now().since(began).as_nanos() as u64 / rounds);
}

async fn alone() {
    let began = now();
    for _ in 0..ROUNDS {
        spawn_local(Class::Foreground, async {}).await;
    }
    line("spawn a task and await it", began, ROUNDS);

    let task = spawn_local(Class::Foreground, async {
        for _ in 0..10 * ROUNDS {
            yield_now().await;
        }
    });
    let began = now();
    task.await;
    line("yield", began, 10 * ROUNDS);

    let (sender, mut receiver) = mailbox(1024);
    let began = now();
    for _ in 0..ROUNDS {
        for number in 0..100u64 {
            let _ = sender.try_send(number);
        }
        while receiver.try_recv().is_some() {}
    }
    line("mailbox: send and receive, awake", began, 100 * ROUNDS);

    let began = now();
    for _ in 0..ROUNDS / 4 {
        blocking(Class::Foreground, || ()).await;
    }
    line("blocking: nothing, there and back", began, ROUNDS / 4);

    let listener = TcpListener::bind(([127, 0, 0, 1], 0).into()).await.expect("bind");
    let address = listener.local_addr().expect("address");
    let echo = spawn_local(Class::Foreground, async move {
        let (mut stream, _) = listener.accept().await.expect("accept");
        let mut bytes = [0; 64];
        while stream.read_exact(&mut bytes).await.is_ok() {
            stream.write_all(&bytes).await.expect("write");
        }
    });
    let mut stream = TcpStream::connect(address).await.expect("connect");
    stream.set_nodelay(true).expect("nodelay");
    let mut bytes = [0; 64];
    let began = now();
    for _ in 0..ROUNDS {
        stream.write_all(&bytes).await.expect("write");
        stream.read_exact(&mut bytes).await.expect("read");
    }
    line("TCP: 64 bytes to a task of this core and back", began, ROUNDS);
    drop(stream);
    echo.await;

    let path = std::env::current_dir().expect("folder").join(format!("costs-{}.log", std::process::id()));
    for sync in [LogSync::Fdatasync, LogSync::Dsync] {
        let file = LogFile::create(&path, 16 << 20, sync).await.expect("create");
        let mut bytes = AlignedBuf::zeroed(4096);
        let began = now();
        for round in 0..500 {
            bytes = file.write_durable(round * 4096, bytes).await.expect("write");
        }
        line(&format!("log: 4 KiB, durable, {sync:?}"), began, 500);
        executor::fs::remove_file(&path).await.expect("remove");
    }
}

/// Sends a number and waits for it to come back, then floods.
async fn first(senders: &[MailSender<u64>], mut receiver: MailReceiver<u64>) {
    let began = now();
    for number in 0..ROUNDS {
        senders[1].send(number).await.expect("open");
        receiver.recv().await;
    }
    line("mailbox: to a sleeping core and back", began, ROUNDS);
    let began = now();
    for number in 0..50 * ROUNDS {
        senders[1].send(number).await.expect("open");
    }
    receiver.recv().await;
    line("mailbox: one-way flood to another core", began, 50 * ROUNDS);
}

async fn second(senders: &[MailSender<u64>], mut receiver: MailReceiver<u64>) {
    for _ in 0..ROUNDS {
        let number = receiver.recv().await.expect("open");
        senders[0].send(number).await.expect("open");
    }
    let mut left = 50 * ROUNDS;
    let mut batch = Vec::new();
    while left > 0 {
        left -= receiver.recv_many(&mut batch, 256).await as u64;
        batch.clear();
    }
    senders[0].send(0).await.expect("open");
}
