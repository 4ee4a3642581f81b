//! A node where io_uring is forbidden, as it is in containers with Docker's default seccomp filter.

mod common;

use std::io;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};

use basalt_wire::process::{Cluster, Start, binary};
use common::{Node, on_a_runtime};

/// io_uring_setup, io_uring_enter, io_uring_register: the same numbers on every architecture.
const CALLS: [u32; 3] = [425, 426, 427];

const fn instruction(code: u32, k: u32, jt: u8) -> libc::sock_filter {
    libc::sock_filter { code: code as u16, jt, jf: 0, k }
}

/// Refuses the calls with EPERM and allows all others.
static FILTER: [libc::sock_filter; 6] = [
    // The number of the call.
    instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0),
    instruction(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, CALLS[0], 3),
    instruction(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, CALLS[1], 2),
    instruction(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, CALLS[2], 1),
    instruction(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW, 0),
    instruction(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ERRNO | libc::EPERM as u32, 0),
];

fn forbid() -> io::Result<()> {
    let program = libc::sock_fprog { len: FILTER.len() as u16, filter: FILTER.as_ptr().cast_mut() };
    // SAFETY: the first call takes numbers; the second reads the program, which lives until it returns.
    let failed = unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0
            || libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) != 0
    };
    if failed { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The command, whose process and children may not use io_uring.
fn without_uring(mut command: Command) -> Command {
    // SAFETY: between fork and exec only two system calls are made.
    unsafe { command.pre_exec(forbid) };
    command
}

#[test]
fn auto_serves_on_epoll_and_says_why() {
    let dir = tempfile::tempdir().expect("a folder");
    let start = Start { data_dir: dir.path().join("data"), cores: 2, io: "auto".into(), ..Default::default() };
    let cluster = Cluster::launch(without_uring(start.command()));
    assert!(cluster.io.starts_with("Epoll: io_uring cannot be used"), "{}", cluster.io);
    assert!(cluster.io.contains("seccomp") && cluster.io.contains("io_uring_setup"), "{}", cluster.io);
    assert!(cluster.page("/status").contains("io_uring cannot be used"), "the status page says so, too");
    on_a_runtime(async {
        let node = Node::connect(cluster, dir).await;
        node.put(b"k", b"v").await;
        assert_eq!(node.get(b"k").await.as_deref(), Some(&b"v"[..]));
        let Node { cluster, .. } = node;
        cluster.stop();
    });
}

#[test]
fn uring_ends_with_a_message_that_tells_how_to_allow_it() {
    let dir = tempfile::tempdir().expect("a folder");
    let run = |arguments: &[&str]| {
        let mut command = Command::new(binary());
        command.args(arguments).arg("--data-dir").arg(dir.path().join(arguments[0]));
        command.args(["--allow-buffered", "--io", "uring"]).stdin(Stdio::null());
        without_uring(command).output().expect("it runs")
    };
    // A node does not ask for its placement driver before it knows that it can work here.
    for arguments in [&["serve", "--pd", "127.0.0.1:1"][..], &["pd", "--addr", "127.0.0.1:0"]] {
        let output = run(arguments);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(output.stdout.is_empty(), "it is not ready");
        let last = said.lines().last().expect("a message");
        for part in
            ["basalt: io_uring cannot be used", "seccomp", "io_uring_setup", "docker", "--io epoll", "--io auto"]
        {
            assert!(last.contains(part), "{part} is missing: {last}");
        }
    }
    let output = run(&["dev", "--pd-port", "0", "--cores", "1"]);
    assert!(!output.status.success(), "dev ends with its node");
    assert!(String::from_utf8_lossy(&output.stderr).contains("Allow io_uring_setup"));
}
