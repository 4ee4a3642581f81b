//! `basalt ctl`: looks into a running cluster through the same protocol as any client, asks its placement driver for
//! what operators do, in the words of `pd-ctl`, and looks into the folder of a node that does not run.

mod ask;
mod cluster;
mod consistency;
mod damage;
mod keys;
mod lists;
mod show;

use clap::Subcommand;

use crate::config::Error;
use crate::security::SecurityArgs;
use cluster::Cluster;

#[derive(clap::Args)]
pub(crate) struct CtlArgs {
    /// Addresses of the placement driver, separated by commas.
    #[arg(long, value_delimiter = ',', default_value = "127.0.0.1:2379", env = "BASALT_PD")]
    pd: Vec<String>,
    #[command(flatten)]
    security: SecurityArgs,
    #[command(subcommand)]
    command: CtlCommand,
}

#[derive(Subcommand)]
enum CtlCommand {
    /// List the stores as clients see them.
    Stores,
    /// List the regions in key order.
    Regions {
        /// At most so many.
        #[arg(long, default_value_t = 1000)]
        limit: i32,
    },
    /// Print the value of a raw key.
    Get {
        /// The key, as text.
        key: String,
    },
    /// Set a raw key.
    Put {
        /// The key, as text.
        key: String,
        /// The value, as text.
        value: String,
    },
    /// Remove a raw key.
    Delete {
        /// The key, as text.
        key: String,
    },
    /// Print raw pairs in key order.
    Scan {
        /// First key, as text.
        #[arg(default_value = "")]
        start: String,
        /// Last key, exclusive; empty is the end.
        #[arg(default_value = "")]
        end: String,
        /// At most so many.
        #[arg(long, default_value_t = 100)]
        limit: u32,
    },
    /// Split the region of a raw key at this key.
    Split {
        /// The key, as text.
        key: String,
    },
    #[command(about = "Stores: what they hold, and taking them out", after_help = ask::STORE_HELP)]
    Store {
        /// See below.
        words: Vec<String>,
    },
    #[command(about = "Operators: what is done with regions, and having it done", after_help = ask::OPERATOR_HELP)]
    Operator {
        /// See below.
        words: Vec<String>,
    },
    #[command(about = "Schedulers: what the placement driver does by itself", after_help = ask::SCHEDULER_HELP)]
    Scheduler {
        /// See below.
        words: Vec<String>,
    },
    #[command(about = "Settings of the placement driver", after_help = ask::CONFIG_HELP)]
    Config {
        /// See below.
        words: Vec<String>,
    },
    #[command(about = "Members of the placement driver: who they are, and who leads", after_help = ask::MEMBER_HELP)]
    Member {
        /// See below.
        words: Vec<String>,
    },
    /// Have all replicas of a region hash their data at the same entry, and compare. Ends with an error if they differ.
    Consistency(ConsistencyArgs),
    /// Look for damaged raft logs in the folder of a node that does not run.
    Damage(damage::DamageArgs),
}

#[derive(clap::Args)]
#[group(required = true, multiple = false)]
struct ConsistencyArgs {
    /// This one.
    #[arg(long)]
    region: Option<u64>,
    /// All regions, one after the other.
    #[arg(long)]
    all: bool,
}

pub(crate) fn run(args: CtlArgs) -> Result<(), Error> {
    executor::run_one(executor::IoChoice::Epoll, move || async move {
        // What cannot be understood is refused before anybody is asked.
        let ask = match &args.command {
            CtlCommand::Store { words } => Some(ask::store(&strs(words))?),
            CtlCommand::Operator { words } => Some(ask::operator(&strs(words))?),
            CtlCommand::Scheduler { words } => Some(ask::scheduler(&strs(words))?),
            CtlCommand::Config { words } => Some(ask::config(&strs(words))?),
            CtlCommand::Member { words } => Some(ask::member(&strs(words))?),
            _ => None,
        };
        let connect = async || Cluster::connect(&args.pd, args.security.config().load()?).await;
        if let Some(ask) = ask {
            let answer = connect().await?.ask(&ask).await?;
            print!("{}", show::text(ask.form, &answer));
            return Ok(());
        }
        match args.command {
            CtlCommand::Damage(args) => damage::damage(args).await,
            CtlCommand::Stores => connect().await?.stores().await,
            CtlCommand::Regions { limit } => connect().await?.regions(limit).await,
            CtlCommand::Get { key } => connect().await?.get(key.as_bytes()).await,
            CtlCommand::Put { key, value } => connect().await?.put(key.as_bytes(), value.into_bytes()).await,
            CtlCommand::Delete { key } => connect().await?.delete(key.as_bytes()).await,
            CtlCommand::Scan { start, end, limit } => {
                connect().await?.scan(start.into_bytes(), end.as_bytes(), limit).await
            }
            // Without a number it is all of them.
            CtlCommand::Consistency(ConsistencyArgs { region, .. }) => connect().await?.consistency(region).await,
            CtlCommand::Split { key } => connect().await?.split(key.as_bytes()).await,
            CtlCommand::Store { .. }
            | CtlCommand::Operator { .. }
            | CtlCommand::Scheduler { .. }
            | CtlCommand::Config { .. }
            | CtlCommand::Member { .. } => unreachable!("asked above"),
        }
    })
}

fn strs(words: &[String]) -> Vec<&str> {
    words.iter().map(String::as_str).collect()
}
