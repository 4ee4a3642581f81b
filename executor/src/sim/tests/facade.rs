//! The crate's own functions and types, as upper crates call them, on simulated nodes.

use super::*;
use crate::io::{AsyncReadExt, AsyncWriteExt};
use crate::net::{TcpListener, TcpStream};
use crate::{AlignedBuf, Class, IoKind, LocalFuture, LogFile, LogSync, MailReceiver, MailSender, Notify};
use base::CoreId;
use std::cell::RefCell;

type Mail = (Vec<u8>, MailSender<Vec<u8>>);

/// A server of two cores: core 0 accepts and reads, core 1 logs what it is mailed and answers by mail.
fn server(
    inbox: Rc<RefCell<Option<MailReceiver<Mail>>>>,
    core_1: MailSender<Mail>,
) -> impl Fn(CoreId) -> LocalFuture<()> {
    move |core| {
        assert_eq!(crate::io_kind(), IoKind::Sim);
        match core {
            CoreId(0) => Box::pin(front(core_1.clone())),
            _ => Box::pin(back(inbox.take().expect("core 1 starts once"))),
        }
    }
}

async fn front(core_1: MailSender<Mail>) {
    let listener = TcpListener::bind(address("10.0.0.1:1")).await.expect("free");
    let serve = async {
        loop {
            let (stream, _) = listener.accept().await.expect("the simulator does not fail here");
            let handoff = stream.into_handoff().expect("never fails here");
            let mut stream = TcpStream::from_handoff(handoff).expect("nor here");
            let core_1 = core_1.clone();
            drop(crate::spawn_local(Class::Foreground, async move {
                let mut buf = [0; 100];
                while let Ok(len @ 1..) = stream.read(&mut buf).await {
                    let (answer, mut answers) = crate::mailbox(1);
                    core_1.send((buf[..len].to_vec(), answer)).await.expect("core 1 lives");
                    let bytes = answers.recv().await.expect("it answers");
                    stream.write_all(&bytes).await.expect("the client waits");
                }
            }));
        }
    };
    let _ = crate::timeout(Duration::from_secs(3600), serve).await;
}

async fn back(mut inbox: MailReceiver<Mail>) {
    crate::fs::create_dir_all("/data").await.expect("room");
    let file = LogFile::create("/data/log", 1 << 20, LogSync::Fdatasync).await.expect("room");
    let mut offset = 0;
    while let Some((bytes, answer)) = inbox.recv().await {
        let mut page = AlignedBuf::zeroed(bytes.len());
        page.as_mut_slice()[..bytes.len()].copy_from_slice(&bytes);
        file.write_durable(offset, page).await.expect("written");
        offset += 4096;
        let upper = crate::blocking(Class::Scan, move || bytes.to_ascii_uppercase()).await;
        answer.send(upper).await.unwrap_or_else(|_| unreachable!("core 0 waits"));
    }
}

#[test]
fn a_server_of_the_facade_runs_unchanged() {
    let (sim, nodes) = world(1, SimConfig::default(), 2);
    let (core_1, inbox) = crate::mailbox(4);
    sim.start(nodes[0], 2, server(Rc::new(RefCell::new(Some(inbox))), core_1));
    sim.run_for(millis(50));
    let answer = sim.block_on(
        nodes[1],
        async {
            let mut stream = TcpStream::connect(address("10.0.0.1:1")).await.expect("it listens");
            stream.set_nodelay(true).expect("nothing to set");
            stream.write_all(b"hello").await.expect("sent");
            let mut answer = [0; 5];
            stream.read_exact(&mut answer).await.expect("answered");
            answer
        },
        SECOND,
    );
    assert_eq!(answer.as_ref(), Some(b"HELLO"));
    sim.kill(nodes[0]);
    let log = sim.disk(nodes[0]).bytes("/data/log").expect("created durably");
    assert!(log.starts_with(b"h"), "the answered bytes are durable");
}

#[test]
fn timers_tasks_and_notifications_of_the_facade_work() {
    let (sim, nodes) = world(2, SimConfig::default(), 1);
    let done = sim.block_on(
        nodes[0],
        async {
            let begin = crate::now();
            let late = crate::timeout(millis(10), crate::sleep(millis(20))).await;
            assert!(late.is_err());
            let notify = Rc::new(Notify::new());
            let shared = notify.clone();
            let task = crate::spawn_local(Class::Raft, async move {
                shared.notified().await;
                crate::yield_now().await;
                crate::core()
            });
            crate::sleep(millis(1)).await;
            assert!(!task.is_done());
            notify.notify();
            assert_eq!(task.await, CoreId(0));
            assert!(crate::fs::lock_dir("/").await.is_ok());
            assert_eq!(crate::cores(), 1);
            crate::now().since(begin)
        },
        SECOND,
    );
    assert!(done.expect("it ends") >= millis(11));
}

#[test]
fn a_panic_of_a_task_leaves_the_context_clean_and_the_world_droppable() {
    let (sim, nodes) = world(3, SimConfig::default(), 1);
    let (dropped, bumped) = counter();
    sim.spawn_on(nodes[0], async move {
        let _guard = OnDrop(move || {
            assert!(crate::now() > Instant(0));
            bump(&bumped);
        });
        crate::yield_now().await;
        panic!("of the test");
    });
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| sim.run_for(SECOND)));
    assert!(outcome.is_err());
    assert!(!crate::sim::active());
    assert_eq!(dropped.get(), 1, "in its context, or this would have ended the process");
    drop(sim);
}
