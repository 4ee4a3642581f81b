//! `basalt dev`: a whole cluster on this machine. It starts `basalt pd` and `basalt serve` as processes of their own and
//! ends them when it ends, however it ends.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::config::{Config, Error};
use crate::security;

#[derive(clap::Args)]
pub(crate) struct DevArgs {
    /// Number of nodes.
    #[arg(long, default_value_t = 1)]
    nodes: usize,
    /// Number of members of the placement driver: 1, 3 or 5. The others listen on the ports behind the first one's.
    #[arg(long, default_value_t = 1)]
    pds: u16,
    /// Cores of each node; 0 takes every CPU that this process may use.
    #[arg(long, default_value_t = 0)]
    cores: usize,
    /// Port of the placement driver; 0 picks a free one.
    #[arg(long, default_value_t = 2379)]
    pd_port: u16,
    /// Folder that holds everything of this cluster.
    #[arg(long, default_value = "basalt-data")]
    data_dir: PathBuf,
    /// How cores do I/O: auto, uring or epoll.
    #[arg(long, default_value = "auto")]
    io: String,
    /// Allow a filesystem without O_DIRECT (tmpfs). For tests.
    #[arg(long)]
    allow_buffered: bool,
    /// Configuration file of the nodes (TOML, TiKV's names).
    #[arg(long)]
    config: Option<PathBuf>,
    /// A fault to plant in the nodes, for tests that must notice it.
    #[arg(long, default_value = "none", hide = true)]
    plant: String,
    /// End when the process that started this one ends.
    #[arg(long, hide = true)]
    die_with_parent: bool,
}

/// How long a child may take until it is ready. A large log to replay takes seconds.
const START_LIMIT: Duration = Duration::from_secs(120);
/// How long a child may take to stop before it is killed.
const STOP_LIMIT: Duration = Duration::from_secs(20);

struct Running {
    name: String,
    child: Child,
    /// One of several nodes: the cluster goes on without it.
    is_spare: bool,
}

impl Running {
    /// A member of the placement driver, not a node.
    fn is_member(&self) -> bool {
        self.name.starts_with("pd")
    }
}

pub(crate) fn run(args: DevArgs) -> Result<(), Error> {
    if args.die_with_parent {
        executor::die_with_parent()?;
    }
    std::fs::create_dir_all(&args.data_dir).map_err(|error| format!("{}: {error}", args.data_dir.display()))?;
    executor::run_one(executor::IoChoice::Epoll, move || async move {
        let mut children = Vec::new();
        let result = match start(&args, &mut children).await {
            Ok(ready) => {
                println!("{ready}");
                print_hints(&ready, &args);
                watch(&mut children).await
            }
            Err(error) => Err(error),
        };
        stop(&mut children).await;
        result
    })
}

async fn start(args: &DevArgs, children: &mut Vec<Running>) -> Result<serde_json::Value, Error> {
    let binary = std::env::current_exe()?;
    let data_dir = std::path::absolute(&args.data_dir)?;
    let pds = start_pds(args, &binary, &data_dir, children).await?;
    let address = |pd: &serde_json::Value| pd["address"].as_str().map(str::to_owned);
    let addresses: Option<Vec<String>> = pds.iter().map(address).collect();
    let pd_address = addresses.ok_or("pd did not say its address")?.join(",");
    let mut nodes = Vec::new();
    for number in 1..=args.nodes {
        let command = node_command(args, &binary, &data_dir, number, &pd_address);
        nodes.push(launch(format!("node {number}"), command, children).await?);
        if let Some(node) = children.last_mut() {
            node.is_spare = args.nodes > 1;
        }
    }
    let first = &pds[0];
    Ok(serde_json::json!({
        "ready": { "pd": first["address"], "pd_pid": first["pid"], "pds": pds, "nodes": nodes },
    }))
}

/// Starts the members of the placement driver.
async fn start_pds(
    args: &DevArgs,
    binary: &Path,
    data_dir: &Path,
    children: &mut Vec<Running>,
) -> Result<Vec<serde_json::Value>, Error> {
    let mut ports = vec![args.pd_port];
    while ports.len() < usize::from(args.pds) {
        ports.push(if args.pd_port == 0 { 0 } else { args.pd_port + ports.len() as u16 });
    }
    if ports.len() > 1 && args.pd_port == 0 {
        // The members must know each other's ports before they start.
        let mut held = Vec::new();
        for port in &mut ports {
            let listener = executor::net::TcpListener::bind(([127, 0, 0, 1], 0).into()).await?;
            *port = listener.local_addr()?.port();
            held.push(listener);
        }
    }
    let folder = |at: usize| if at == 0 { "pd".to_owned() } else { format!("pd-{}", at + 1) };
    let members = ports.iter().enumerate().map(|(at, port)| format!("{}=127.0.0.1:{port}", folder(at)));
    let cluster = members.collect::<Vec<_>>().join(",");
    let config = Config::load(args.config.as_deref())?;
    let mut pds = Vec::new();
    for (at, port) in ports.iter().enumerate() {
        let mut command = Command::new(binary);
        command
            .args(["pd", "--die-with-parent", "--addr", &format!("127.0.0.1:{port}"), "--name", &folder(at)])
            .arg("--data-dir")
            .arg(data_dir.join(folder(at)));
        if ports.len() > 1 {
            command.args(["--initial-cluster", &cluster]);
        }
        if args.allow_buffered {
            command.arg("--allow-buffered");
        }
        command.args(security::flags(&config.security));
        pds.push(launch(folder(at), command, children).await?);
        if let Some(member) = children.last_mut() {
            member.is_spare = ports.len() > 1;
        }
    }
    Ok(pds)
}

fn node_command(args: &DevArgs, binary: &Path, data_dir: &Path, number: usize, pd: &str) -> Command {
    let mut command = Command::new(binary);
    command
        .args(["serve", "--die-with-parent", "--addr", "127.0.0.1:0", "--status-addr", "127.0.0.1:0"])
        .args(["--idle-spin-us", "0", "--pd", pd, "--io", &args.io, "--cores", &args.cores.to_string()])
        .args(["--plant", &args.plant])
        .arg("--data-dir")
        .arg(data_dir.join(format!("node-{number}")));
    if let Some(config) = &args.config {
        command.arg("--config").arg(config);
    }
    if args.allow_buffered {
        command.arg("--allow-buffered");
    }
    if args.nodes > 1 {
        // Pinned nodes of one machine would share their first CPUs.
        command.arg("--no-pin");
    }
    command
}

/// Starts a child and waits for its line `{"ready":…}`.
async fn launch(name: String, mut command: Command, children: &mut Vec<Running>) -> Result<serde_json::Value, Error> {
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
    let stdout = child.stdout.take().ok_or("a child without standard output")?;
    children.push(Running { name: name.clone(), child, is_spare: false });
    let read = executor::blocking(executor::Class::Background, move || {
        let mut line = String::new();
        let read = BufReader::new(stdout).read_line(&mut line);
        read.map(|_| line)
    });
    let line = executor::timeout(START_LIMIT, read)
        .await
        .map_err(|_| format!("{name} was not ready within {} s", START_LIMIT.as_secs()))??;
    let value: serde_json::Value =
        serde_json::from_str(&line).map_err(|_| format!("{name} did not start; its log above says why"))?;
    value.get("ready").cloned().ok_or_else(|| format!("{name} said {line}").into())
}

/// Returns when a signal asks to stop, or with an error when a child ends by itself: of several nodes or
/// members of the placement driver, the last one.
async fn watch(children: &mut Vec<Running>) -> Result<(), Error> {
    use futures_util::FutureExt as _;
    loop {
        futures_util::select_biased! {
            () = executor::shutdown_signal().fuse() => return Ok(()),
            () = executor::sleep(Duration::from_millis(100)).fuse() => {}
        }
        let mut at = 0;
        while let Some(running) = children.get_mut(at) {
            let Some(status) = running.child.try_wait()? else {
                at += 1;
                continue;
            };
            let ended = children.remove(at);
            let is_peer = |other: &&Running| other.is_spare && other.is_member() == ended.is_member();
            let others = children.iter().filter(is_peer).count();
            if !ended.is_spare || others == 0 {
                return Err(format!("{} ended: {status}", ended.name).into());
            }
            eprintln!("{} ended: {status}; others that are left to go on: {others}", ended.name);
        }
    }
}

/// Nodes first, then the placement driver: a node tells it goodbye.
async fn stop(children: &mut [Running]) {
    for running in children.iter_mut().rev() {
        executor::terminate(running.child.id());
        let mut waited = Duration::ZERO;
        while matches!(running.child.try_wait(), Ok(None)) {
            if waited >= STOP_LIMIT {
                tracing::warn!(name = running.name, "did not stop; killed");
                // It may have ended in this moment.
                drop(running.child.kill());
                drop(running.child.wait());
                break;
            }
            executor::sleep(Duration::from_millis(10)).await;
            waited += Duration::from_millis(10);
        }
    }
}

fn print_hints(ready: &serde_json::Value, args: &DevArgs) {
    let ready = &ready["ready"];
    let pd = ready["pd"].as_str().unwrap_or_default();
    eprintln!("placement driver  {pd}");
    for node in ready["nodes"].as_array().into_iter().flatten() {
        let text = |key: &str| node[key].as_str().unwrap_or_default().to_string();
        eprintln!("node {:<13}{}   status page {}", node["store_id"].to_string(), text("address"), text("status"));
    }
    let binary = std::env::current_exe().map_or_else(|_| "basalt".into(), |path| path.display().to_string());
    let flags =
        Config::load(args.config.as_deref()).map(|config| security::flags(&config.security)).unwrap_or_default();
    let flags: String = flags.iter().map(|flag| format!(" {}", flag.to_string_lossy())).collect();
    let ctl = format!("{binary} ctl --pd {pd}{flags}");
    eprintln!("try               {ctl} put hello world && {ctl} get hello");
}
