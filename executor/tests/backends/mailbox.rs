//! Mailboxes between tasks, cores and threads.

use std::future::poll_fn;
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::time::Duration;

use executor::{
    Class, Closed, Full, IoChoice, LocalFuture, MailReceiver, MailSender, blocking, mailbox, spawn_local, timeout,
    yield_now,
};

use crate::support::{on_both, on_cores, with_both};

on_both! {
    messages_keep_their_order,
    a_full_mailbox_refuses_and_then_has_room,
    senders_in_wait_are_served_in_turn,
    a_sender_that_leaves_the_line_gives_its_room_on,
    without_senders_the_rest_is_received_and_then_none,
    without_a_receiver_nothing_is_sent,
    several_are_received_at_once,
    a_dropped_receive_takes_nothing,
    threads_wake_a_sleeping_receiver,
    results_of_short_work_reach_short_tasks,
}

with_both! {
    four_cores_send_to_each_other,
    a_question_to_a_core_that_leaves_is_never_left_open,
}

async fn messages_keep_their_order() {
    let (sender, mut receiver) = mailbox(8);
    let task = spawn_local(Class::Raft, async move {
        for number in 0..1000 {
            sender.send(number).await.expect("open");
        }
    });
    for number in 0..1000 {
        assert_eq!(receiver.recv().await, Some(number));
    }
    task.await;
    assert_eq!(receiver.recv().await, None);
}

async fn a_full_mailbox_refuses_and_then_has_room() {
    let (sender, mut receiver) = mailbox(2);
    assert_eq!(sender.capacity(), 2);
    sender.try_send(1).expect("room");
    sender.try_send(2).expect("room");
    assert_eq!(sender.try_send(3), Err(Full(3)));
    assert!(!sender.is_closed());
    assert_eq!((sender.len(), receiver.len()), (2, 2));
    assert_eq!(receiver.try_recv(), Some(1));
    sender.try_send(3).expect("room");
}

async fn senders_in_wait_are_served_in_turn() {
    let (sender, mut receiver) = mailbox(1);
    sender.try_send(0).expect("room");
    for number in 1..=4 {
        let sender = sender.clone();
        drop(spawn_local(Class::Foreground, async move { sender.send(number).await }));
        yield_now().await;
        yield_now().await;
    }
    drop(sender);
    for number in 0..=4 {
        assert_eq!(receiver.recv().await, Some(number));
    }
    assert_eq!(receiver.recv().await, None);
}

async fn a_sender_that_leaves_the_line_gives_its_room_on() {
    let (sender, mut receiver) = mailbox(1);
    sender.try_send(0).expect("room");
    let mut first = Box::pin(sender.send(1));
    assert!(poll_fn(|cx| Poll::Ready(first.as_mut().poll(cx))).await.is_pending());
    let second = {
        let sender = sender.clone();
        spawn_local(Class::Foreground, async move { sender.send(2).await })
    };
    yield_now().await;
    yield_now().await;
    assert_eq!(receiver.try_recv(), Some(0), "wakes the first in line");
    drop(first);
    second.await.expect("the room is the second's");
    assert_eq!(receiver.recv().await, Some(2));
}

async fn without_senders_the_rest_is_received_and_then_none() {
    let (sender, mut receiver) = mailbox(4);
    let clone = sender.clone();
    sender.try_send(1).expect("room");
    drop(sender);
    clone.try_send(2).expect("room");
    drop(clone);
    assert_eq!(receiver.recv().await, Some(1));
    assert_eq!(receiver.recv().await, Some(2));
    assert_eq!(receiver.recv().await, None);
    assert_eq!(receiver.recv_many(&mut Vec::new(), 4).await, 0);

    let (sender, mut receiver) = mailbox::<()>(1);
    let waits = spawn_local(Class::Foreground, async move { receiver.recv().await });
    yield_now().await;
    yield_now().await;
    drop(sender);
    assert_eq!(waits.await, None, "a sleeping receiver is told");
}

async fn without_a_receiver_nothing_is_sent() {
    let (sender, receiver) = mailbox(1);
    let held = Rc::new(());
    let message = Arc::new(());
    sender.try_send(Arc::clone(&message)).expect("room");
    let waits = {
        let (sender, message, held) = (sender.clone(), Arc::clone(&message), Rc::clone(&held));
        spawn_local(Class::Foreground, async move {
            let _held = held;
            sender.send(message).await.map_err(|Closed(_)| ())
        })
    };
    yield_now().await;
    yield_now().await;
    drop(receiver);
    assert_eq!(waits.await, Err(()));
    assert!(sender.is_closed());
    assert!(sender.try_send(Arc::clone(&message)).is_err());
    assert_eq!(Arc::strong_count(&message), 1, "what was not received is dropped");
}

async fn several_are_received_at_once() {
    let (sender, mut receiver) = mailbox(8);
    for number in 0..5 {
        sender.try_send(number).expect("room");
    }
    let mut batch = Vec::new();
    assert_eq!(receiver.recv_many(&mut batch, 3).await, 3);
    assert_eq!(receiver.recv_many(&mut batch, 3).await, 2);
    assert_eq!(batch, [0, 1, 2, 3, 4]);
}

async fn a_dropped_receive_takes_nothing() {
    let (sender, mut receiver) = mailbox(1);
    {
        let mut waits = std::pin::pin!(receiver.recv());
        assert!(poll_fn(|cx| Poll::Ready(waits.as_mut().poll(cx))).await.is_pending());
        sender.try_send(1).expect("room");
    }
    assert_eq!(receiver.recv().await, Some(1));
}

async fn threads_wake_a_sleeping_receiver() {
    const EACH: u64 = 2000;
    let (sender, mut receiver) = mailbox(16);
    for thread in 0..4u64 {
        let sender = sender.clone();
        std::thread::spawn(move || {
            for number in 0..EACH {
                let mut message = thread * EACH + number;
                while let Err(Full(again)) = sender.try_send(message) {
                    message = again;
                    std::thread::yield_now();
                }
            }
        });
    }
    drop(sender);
    let (mut count, mut sum) = (0, 0);
    while let Some(number) = receiver.recv().await {
        count += 1;
        sum += number;
    }
    assert_eq!((count, sum), (4 * EACH, (0..4 * EACH).sum()));
}

/// Each task ends right after a helper woke it, often while the helper still holds the waker.
async fn results_of_short_work_reach_short_tasks() {
    for _ in 0..50 {
        let tasks: Vec<_> = (0..40u64)
            .map(|number| {
                spawn_local(Class::Foreground, async move { blocking(Class::Foreground, move || number).await })
            })
            .collect();
        for (number, task) in tasks.into_iter().enumerate() {
            assert_eq!(task.await, number as u64);
        }
    }
}

const CORES: usize = 4;
const EACH: u64 = 5000;

type Ends = Vec<Option<MailReceiver<u64>>>;

/// Every core sends to every core through mailboxes that are nearly always full, and receives from all.
fn four_cores_send_to_each_other(io: IoChoice) {
    let (senders, receivers): (Vec<MailSender<u64>>, Ends) = (0..CORES)
        .map(|_| {
            let (sender, receiver) = mailbox(4);
            (sender, Some(receiver))
        })
        .unzip();
    let senders = Mutex::new((0..CORES).map(|_| Some(senders.clone())).collect::<Vec<_>>());
    let receivers = Mutex::new(receivers);
    on_cores(io, CORES, move |core| {
        let at = usize::from(core.0);
        let senders = senders.lock().expect("no panic")[at].take().expect("each core starts once");
        let receiver = receivers.lock().expect("no panic")[at].take().expect("each core starts once");
        Box::pin(exchange(senders, receiver)) as LocalFuture<()>
    });
}

async fn exchange(senders: Vec<MailSender<u64>>, mut receiver: MailReceiver<u64>) {
    let tasks: Vec<_> = senders
        .into_iter()
        .map(|sender| {
            spawn_local(Class::Raft, async move {
                for number in 0..EACH {
                    sender.send(number).await.expect("all receive until all have sent");
                }
            })
        })
        .collect();
    let (mut count, mut sum) = (0, 0);
    let mut batch = Vec::new();
    while count < CORES as u64 * EACH {
        let got = receiver.recv_many(&mut batch, 3).await;
        assert!(got > 0, "senders live until all is received");
        count += got as u64;
        sum += batch.drain(..).sum::<u64>();
    }
    assert_eq!(sum, CORES as u64 * (0..EACH).sum::<u64>());
    for task in tasks {
        task.await;
    }
}

/// One core's questions: each carries the mailbox for its answer.
type Questions = MailReceiver<MailSender<()>>;

/// Core 1 asks, core 0 goes away without an answer, at any moment: also between the asker's look whether somebody is
/// there and its send. The asker always hears of it, by the end of the mailbox that it waits at.
fn a_question_to_a_core_that_leaves_is_never_left_open(io: IoChoice) {
    const ROUNDS: usize = 3000;
    let (give, take) = mailbox::<Questions>(1);
    let (give, take) = (Mutex::new(Some(give)), Mutex::new(Some(take)));
    on_cores(io, 2, move |core| {
        if core.0 == 0 {
            let mut take = take.lock().expect("no panic").take().expect("each core starts once");
            return Box::pin(async move {
                while let Some(mut questions) = take.recv().await {
                    drop(questions.recv().await);
                }
            });
        }
        let give = give.lock().expect("no panic").take().expect("each core starts once");
        Box::pin(async move {
            for _ in 0..ROUNDS {
                let (sender, questions) = mailbox(4);
                give.send(questions).await.expect("core 0 takes them all");
                loop {
                    let (answer, mut answers) = mailbox(1);
                    if sender.send(answer).await.is_err() {
                        break;
                    }
                    let answer = timeout(Duration::from_secs(60), answers.recv()).await;
                    assert_eq!(answer, Ok(None), "the question is dropped, and its answer's mailbox with it");
                }
            }
        })
    });
}
