//! What concerns a whole process: each test runs itself again as a child, which then plays the part named in `PART`.

use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use executor::{
    Class, CoresConfig, IoChoice, IoKind, LocalFuture, blocking, mailbox, now, preflight, run_cores, shutdown_signal,
    sleep, spawn_local, yield_now,
};

use crate::support::available;

const PART: &str = "EXECUTOR_TEST_PART";

/// How long cores rest while their processor time is measured.
const REST: Duration = Duration::from_secs(2);

fn child(part: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("this test has a file"));
    command.args(["--exact", "process::plays_its_part", "--nocapture"]).env(PART, part);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn run(part: &str) -> (ExitStatus, String) {
    let output = child(part).output().expect("the child runs");
    let text = [output.stdout, output.stderr].concat();
    (output.status, String::from_utf8_lossy(&text).into_owned())
}

/// The child's side of all tests here; nothing in the parent.
#[test]
fn plays_its_part() {
    let Ok(part) = std::env::var(PART) else {
        return;
    };
    match part.as_str() {
        "core panics on uring" => cores(IoChoice::Uring, panics),
        "core panics on epoll" => cores(IoChoice::Epoll, panics),
        "task panics on uring" => cores(IoChoice::Uring, task_panics),
        "task panics on epoll" => cores(IoChoice::Epoll, task_panics),
        "helper panics on uring" => cores(IoChoice::Uring, helper_panics),
        "helper panics on epoll" => cores(IoChoice::Epoll, helper_panics),
        "waits for a signal on uring" => cores(IoChoice::Uring, waits),
        "waits for a signal on epoll" => cores(IoChoice::Epoll, waits),
        "ends after a long turn on uring" => cores(IoChoice::Uring, ends_after_a_long_turn),
        "ends after a long turn on epoll" => cores(IoChoice::Epoll, ends_after_a_long_turn),
        "rests on uring" => cores(IoChoice::Uring, rests),
        "rests on epoll" => cores(IoChoice::Epoll, rests),
        "ignores signals" => cores(IoChoice::Epoll, ignores),
        "has no io_uring" => {
            forbid_uring();
            tell_preflight();
        }
        "has little locked memory" => {
            limit_memlock();
            tell_preflight();
        }
        _ => panic!("no part {part}"),
    }
}

fn cores(io: IoChoice, main: fn() -> LocalFuture<()>) {
    let config = CoresConfig { cores: 2, io, ..CoresConfig::default() };
    run_cores(config, move |_| main()).expect("the cores start");
    println!("in all {}", processor_time().as_micros());
}

fn panics() -> LocalFuture<()> {
    Box::pin(async {
        if executor::core().0 == 1 {
            panic!("on purpose");
        }
        std::future::pending().await
    })
}

fn task_panics() -> LocalFuture<()> {
    Box::pin(async {
        drop(spawn_local(Class::Scan, async { panic!("on purpose") }));
        std::future::pending().await
    })
}

fn helper_panics() -> LocalFuture<()> {
    Box::pin(executor::blocking(Class::Foreground, || panic!("on purpose")))
}

/// Three waiters on each core; each core's `main` returns when all are woken.
fn waits() -> LocalFuture<()> {
    Box::pin(async {
        let waiters = [(); 3].map(|()| spawn_local(Class::Foreground, shutdown_signal()));
        drop(shutdown_signal());
        println!("ready");
        for waiter in waiters {
            waiter.await;
        }
        shutdown_signal().await;
    })
}

/// Returns while hundreds of tasks wait for the next turn, as this one has been used up.
fn ends_after_a_long_turn() -> LocalFuture<()> {
    Box::pin(async {
        for _ in 0..500 {
            drop(spawn_local(Class::Background, async {
                loop {
                    yield_now().await;
                }
            }));
        }
        for _ in 0..5 {
            yield_now().await;
        }
        let began = now();
        while now().since(began) < Duration::from_millis(2) {
            std::hint::spin_loop();
        }
    })
}

/// Sleeps, with a helper, a log thread and a sleeping mailbox beside it, as an idle node does.
fn rests() -> LocalFuture<()> {
    Box::pin(async {
        let (_sender, mut receiver) = mailbox::<()>(16);
        drop(spawn_local(Class::Raft, async move { receiver.recv().await }));
        blocking(Class::Background, || ()).await;
        let before = processor_time();
        sleep(REST).await;
        if executor::core().0 == 0 {
            println!("at rest {}", (processor_time() - before).as_micros());
        }
    })
}

fn ignores() -> LocalFuture<()> {
    Box::pin(async {
        let signal = shutdown_signal();
        println!("ready");
        signal.await;
        println!("ready");
        std::future::pending().await
    })
}

fn tell_preflight() {
    match preflight(IoChoice::Uring, None) {
        Ok(io) => println!("uring: {io:?}"),
        Err(error) => println!("uring: {error}"),
    }
    let io = preflight(IoChoice::Auto, None).expect("auto finds a way");
    println!("auto: {} because {}", io.kind, io.reason);
    assert_eq!(io.kind, IoKind::Epoll);
    let config = CoresConfig { cores: 1, ..CoresConfig::default() };
    run_cores(config, |_| {
        Box::pin(async {
            assert_eq!(executor::io_kind(), IoKind::Epoll);
            println!("serves");
        })
    })
    .expect("epoll starts");
}

fn limit_memlock() {
    let limit = libc::rlimit { rlim_cur: 64 << 10, rlim_max: 64 << 10 };
    // SAFETY: `limit` is initialized.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const limit) }, 0);
}

/// Forbids `io_uring_setup` to this process as Docker's default filter does: EPERM.
fn forbid_uring() {
    let statement = |code: u32, k: u32| libc::sock_filter { code: code as u16, jt: 0, jf: 0, k };
    let mut filter = [
        statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0), // the number of the system call
        libc::sock_filter {
            code: (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16,
            jt: 0,
            jf: 1,
            k: libc::SYS_io_uring_setup as u32,
        },
        statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ERRNO | libc::EPERM as u32),
        statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    // SAFETY: no pointer is involved.
    assert_eq!(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }, 0);
    // SAFETY: `program` describes `filter`, which lives through the call. Threads started later inherit the filter.
    let result = unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) };
    assert_eq!(result, 0);
}

fn a_panic_ends_the_process(part: &str) {
    let (status, text) = run(part);
    assert_eq!(status.signal(), Some(libc::SIGABRT), "{text}");
    assert!(text.contains("on purpose"), "{text}");
}

#[test]
fn a_panic_on_any_core_ends_the_process() {
    for (io, name) in [(IoChoice::Uring, "uring"), (IoChoice::Epoll, "epoll")] {
        if available(io) {
            for who in ["core", "task", "helper"] {
                a_panic_ends_the_process(&format!("{who} panics on {name}"));
            }
        }
    }
}

/// Of all threads of this process so far.
fn processor_time() -> Duration {
    // SAFETY: all-zero is a valid value of plain numbers.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: `usage` is a valid place for the result.
    assert_eq!(unsafe { libc::getrusage(libc::RUSAGE_SELF, &raw mut usage) }, 0);
    let time =
        |time: libc::timeval| Duration::from_secs(time.tv_sec as u64) + Duration::from_micros(time.tv_usec as u64);
    time(usage.ru_utime) + time(usage.ru_stime)
}

/// The number in a line of the child's.
fn micros(text: &str, label: &str) -> u64 {
    let line = text.lines().find_map(|line| line.split_once(label)).expect("a line");
    line.1.trim().parse().expect("a number")
}

/// The processor time of an end is what it costs, however busy the machine is.
#[test]
fn a_core_ends_at_once_though_its_turn_is_over() {
    for (io, name) in [(IoChoice::Uring, "uring"), (IoChoice::Epoll, "epoll")] {
        if available(io) {
            let (status, text) = run(&format!("ends after a long turn on {name}"));
            assert!(status.success(), "{text}");
            let used = micros(&text, "in all");
            assert!(used < 500_000, "two cores took {used} us of processor time to start and end on {name}");
        }
    }
}

/// An idle core wakes ten times a second. The bound, a twentieth of one processor for two cores, leaves room for a machine that
/// is slow at it.
#[test]
fn a_resting_core_takes_no_processor() {
    for (io, name) in [(IoChoice::Uring, "uring"), (IoChoice::Epoll, "epoll")] {
        if available(io) {
            let (status, text) = run(&format!("rests on {name}"));
            assert!(status.success(), "{text}");
            let used = micros(&text, "at rest");
            assert!(used < REST.as_micros() as u64 / 20, "two resting cores took {used} us of {REST:?} on {name}");
        }
    }
}

fn send(signal: libc::c_int, child: &std::process::Child) {
    // SAFETY: no pointer is involved; the child has not been waited for, so the number is its own.
    assert_eq!(unsafe { libc::kill(child.id() as libc::pid_t, signal) }, 0);
}

/// Reads lines of the child until `count` times "ready".
fn ready(output: &mut impl BufRead, count: usize) {
    let mut seen = 0;
    let mut line = String::new();
    while seen < count {
        line.clear();
        assert_ne!(output.read_line(&mut line).expect("read"), 0, "the child ended early");
        seen += usize::from(line.contains("ready"));
    }
}

#[test]
fn a_signal_wakes_every_waiter() {
    for (io, name) in [(IoChoice::Uring, "uring"), (IoChoice::Epoll, "epoll")] {
        for signal in [libc::SIGTERM, libc::SIGINT] {
            if available(io) {
                let mut child = child(&format!("waits for a signal on {name}")).spawn().expect("the child runs");
                let mut output = BufReader::new(child.stdout.take().expect("piped"));
                ready(&mut output, 2);
                send(signal, &child);
                assert!(child.wait().expect("wait").success());
            }
        }
    }
}

#[test]
fn a_second_interrupt_ends_the_process_at_once() {
    let mut child = child("ignores signals").stderr(Stdio::null()).spawn().expect("the child runs");
    let mut output = BufReader::new(child.stdout.take().expect("piped"));
    ready(&mut output, 2);
    send(libc::SIGINT, &child);
    ready(&mut output, 2);
    send(libc::SIGINT, &child);
    assert_eq!(child.wait().expect("wait").code(), Some(130));
}

#[test]
fn without_io_uring_auto_serves_on_epoll_and_says_why() {
    let (status, text) = run("has no io_uring");
    assert!(status.success(), "{text}");
    assert!(text.contains("uring: io_uring cannot be used: the kernel forbids it (EPERM)"), "{text}");
    assert!(text.contains("seccomp") && text.contains("--io epoll"), "{text}");
    assert!(text.contains("auto: epoll because io_uring cannot be used") && text.contains("serves"), "{text}");
}

#[test]
fn with_little_locked_memory_auto_serves_on_epoll_and_says_why() {
    let (status, text) = run("has little locked memory");
    assert!(status.success(), "{text}");
    assert!(text.contains("the limit of locked memory is 64 KiB, and 512 KiB are needed"), "{text}");
    assert!(text.contains("ulimit -l") && text.contains("serves"), "{text}");
}
