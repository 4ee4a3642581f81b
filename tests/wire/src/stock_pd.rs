//! The stock placement driver (tikv/pd) as a process that can be killed and started again. `make interop` builds it and says
//! where it is, in `BASALT_STOCK_PD`.

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::http;

/// No limit on how many operators there are at a time; no merges, which are ordered one by one. Patient regions: an operator
/// is never given up because the machine is busy.
const CONFIG: &str = "[schedule]\nmerge-schedule-limit = 0\nreplica-schedule-limit = 256\nregion-schedule-limit = 256\n\
                      low-space-ratio = 0.999\n[replication]\nmax-replicas = 3\n";

/// How long one may take until it leads: it elects itself after a lease of three seconds.
const PATIENCE: Duration = Duration::from_secs(60);

/// A running server, ended with this value.
pub struct StockPd {
    /// Where it answers, `host:port`; the same in every life.
    pub address: String,
    peer_address: String,
    child: Option<Child>,
    // Removed after the process has ended.
    dir: tempfile::TempDir,
}

/// An address that was free a moment ago. The server must be told one that others can reach it at before it has it.
fn free_address() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("its address").to_string()
}

impl StockPd {
    /// Starts a new cluster's placement driver and waits until it leads.
    ///
    /// # Panics
    /// If it is not built, or does not start.
    pub fn start() -> StockPd {
        let dir = tempfile::tempdir().expect("a folder");
        std::fs::write(dir.path().join("pd.toml"), CONFIG).expect("a configuration file");
        let mut pd = StockPd { address: free_address(), peer_address: free_address(), child: None, dir };
        pd.launch();
        pd
    }

    /// Starts it again on its data and waits until it leads.
    ///
    /// # Panics
    /// If it runs, or does not start.
    pub fn launch(&mut self) {
        assert!(self.child.is_none(), "it runs");
        let binary = std::env::var("BASALT_STOCK_PD").expect("BASALT_STOCK_PD names a pd-server: run `make interop`");
        let path = |name: &str| self.dir.path().join(name);
        // It ends with the test, however that ends.
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", &binary, "--name", "stock"])
            .arg("--data-dir")
            .arg(path("data"))
            .arg("--config")
            .arg(path("pd.toml"))
            .arg("--log-file")
            .arg(path("pd.log"))
            .args(["--client-urls", &format!("http://{}", self.address)])
            .args(["--peer-urls", &format!("http://{}", self.peer_address)])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .expect("setpriv (util-linux) starts it");
        self.child = Some(child);
        let limit = Instant::now() + PATIENCE;
        while !self.leads() {
            let ended = self.child.as_mut().and_then(|child| child.try_wait().ok().flatten());
            assert!(ended.is_none() && Instant::now() < limit, "it does not lead:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn leads(&self) -> bool {
        let asked = http::try_ask(&self.address, None, &http::get("/pd/api/v1/leader"));
        asked.is_ok_and(|answer| answer.is_ok() && answer.body.contains("client_urls"))
    }

    /// Kills it (SIGKILL) and waits for its end.
    ///
    /// # Panics
    /// If it does not run.
    pub fn kill(&mut self) {
        let mut child = self.child.take().expect("it runs");
        child.kill().expect("it runs");
        child.wait().expect("it ends");
    }

    /// What it has logged in all its lives.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("pd.log")).unwrap_or_default()
    }
}

impl Drop for StockPd {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            // It may have ended by itself.
            drop(child.kill());
            drop(child.wait());
        }
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            eprintln!("== the end of its log\n{}", lines[lines.len().saturating_sub(200)..].join("\n"));
        }
    }
}
