//! `basalt pd`: the placement driver.

use std::net::SocketAddr;
use std::path::PathBuf;

use futures_util::FutureExt as _;

use crate::config::Error;
use crate::security::SecurityArgs;

#[derive(clap::Args)]
pub(crate) struct PdArgs {
    /// Where clients, nodes and people connect (gRPC and HTTP on one port); port 0 picks a free one.
    #[arg(long, default_value = "127.0.0.1:2379")]
    addr: SocketAddr,
    /// The URL that clients are told; default: this member's URL of the initial cluster, or the address that was bound.
    #[arg(long, default_value = "")]
    advertise_url: String,
    /// All members of a new group of 1, 3 or 5, this one among them: name=http://host:port, separated by commas. Default:
    /// this member alone. A folder that is not empty knows its members; URLs given here are taken for newer than those that
    /// it knows.
    #[arg(long, value_delimiter = ',', value_parser = member)]
    initial_cluster: Vec<(String, String)>,
    /// URLs of members of a running group, separated by commas: with an empty folder this member is added to it. A folder
    /// that is not empty knows its group.
    #[arg(long, value_delimiter = ',', conflicts_with = "initial_cluster")]
    join: Vec<String>,
    /// Folder that holds everything of this member.
    #[arg(long, env = "BASALT_DATA_DIR")]
    data_dir: PathBuf,
    /// This member's name.
    #[arg(long, default_value = "pd")]
    name: String,
    #[command(flatten)]
    security: SecurityArgs,
    /// How it does I/O: auto, uring or epoll.
    #[arg(long, default_value = "auto")]
    io: executor::IoChoice,
    /// Allow a filesystem without O_DIRECT (tmpfs). For tests.
    #[arg(long)]
    allow_buffered: bool,
    /// End when the process that started this one ends.
    #[arg(long, hide = true)]
    die_with_parent: bool,
}

/// Reads `name=url`.
fn member(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, url)) if !name.is_empty() && !url.is_empty() => Ok((name.to_owned(), url.to_owned())),
        _ => Err(format!("{text:?} is not name=http://host:port")),
    }
}

pub(crate) fn run(args: PdArgs) -> Result<(), Error> {
    if args.die_with_parent {
        executor::die_with_parent()?;
    }
    std::fs::create_dir_all(&args.data_dir).map_err(|error| format!("{}: {error}", args.data_dir.display()))?;
    executor::LogFile::allow_buffered(args.allow_buffered);
    // Clients are many, and each is a file.
    executor::open_files_max();
    let io = executor::preflight(args.io, Some(&args.data_dir))?;
    let config = pd::PdConfig {
        listen: args.addr,
        advertise_url: Some(args.advertise_url).filter(|url| !url.is_empty()),
        data_dir: args.data_dir,
        name: args.name,
        server: net::ServerConfig { tls: args.security.config().load()?, ..Default::default() },
        initial_cluster: args.initial_cluster,
        join: args.join,
        ..Default::default()
    };
    executor::run_one(args.io, move || async move {
        let name = config.name.clone();
        let mut server = pd::PdServer::start(config).await?;
        let line = serde_json::json!({ "ready": {
            "name": name,
            "address": server.addr().to_string(),
            "cluster_id": server.cluster_id().0,
            "pid": std::process::id(),
            "io": format!("{:?}: {}", io.kind, io.reason),
        }});
        println!("{line}");
        let failure = futures_util::select_biased! {
            () = executor::shutdown_signal().fuse() => None,
            error = server.failed().fuse() => Some(error),
        };
        match failure {
            Some(error) => Err(error.into()),
            None => Ok(server.stop().await?),
        }
    })
}
