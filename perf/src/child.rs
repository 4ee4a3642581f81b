//! Processes that a benchmark starts: this program with other arguments.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use executor::Class;

/// How long a child may take until it is ready.
const START_TIME: Duration = Duration::from_secs(60);
/// How long it may take to stop before it is killed.
const STOP_TIME: Duration = Duration::from_secs(25);
const POLL: Duration = Duration::from_millis(5);

/// A child that said that it is ready.
pub(crate) struct Child {
    process: std::process::Child,
    /// What stands behind `"ready":`.
    pub(crate) ready: serde_json::Value,
}

impl Child {
    /// Starts this program with `arguments` and waits for its line `{"ready":…}`; it may use the CPUs that the calling
    /// thread may, and ends when that thread ends. What it logs goes to the file `log`.
    ///
    /// # Errors
    /// If it does not get ready; with its last words.
    pub(crate) async fn start(arguments: &[&str], log: &Path) -> Result<Child, String> {
        let text = |error: std::io::Error| format!("cannot start {}: {error}", arguments.join(" "));
        let program = std::env::current_exe().map_err(text)?;
        let mut process = Command::new(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(File::create(log).map_err(text)?)
            .env("BASALT_LOG", "warn")
            .spawn()
            .map_err(text)?;
        let output = process.stdout.take().ok_or("a child without standard output")?;
        let mut child = Child { process, ready: serde_json::Value::Null };
        let line = executor::blocking(Class::Background, move || {
            let mut line = String::new();
            BufReader::new(output).read_line(&mut line).map(|_| line)
        });
        let line = executor::timeout(START_TIME, line).await;
        let line = line.unwrap_or_else(|_| Ok(String::new())).unwrap_or_default();
        let value = serde_json::from_str::<serde_json::Value>(&line).unwrap_or_default();
        match value.get("ready") {
            Some(ready) => {
                child.ready = ready.clone();
                Ok(child)
            }
            None => {
                child.stop().await;
                let log = fs::read_to_string(log).unwrap_or_default();
                let last = log.lines().next_back().unwrap_or("it said nothing");
                Err(format!("{} did not get ready: {last}", arguments.join(" ")))
            }
        }
    }

    /// Asks it to stop and waits until it has; kills it if that takes too long.
    pub(crate) async fn stop(mut self) {
        executor::terminate(self.process.id());
        let mut waited = Duration::ZERO;
        while matches!(self.process.try_wait(), Ok(None)) && waited < STOP_TIME {
            executor::sleep(POLL).await;
            waited += POLL;
        }
    }
}

/// A child that was not stopped, because something failed, ends now.
impl Drop for Child {
    fn drop(&mut self) {
        if matches!(self.process.try_wait(), Ok(None)) {
            // It may have ended in this moment.
            let _ = self.process.kill();
            let _ = self.process.wait();
        }
    }
}

/// A new folder for one run's data, removed with all that is in it.
pub(crate) struct Folder(PathBuf);

impl Folder {
    /// Makes `parent/bench-<process id>`.
    ///
    /// # Errors
    /// If it cannot be made, or is there.
    pub(crate) fn create(parent: &Path) -> Result<Folder, String> {
        let path = parent.join(format!("bench-{}", std::process::id()));
        let made = fs::create_dir_all(parent).and_then(|()| fs::create_dir(&path));
        made.map_err(|error| format!("{}: {error}", path.display()))?;
        Ok(Folder(path))
    }

    /// A place inside of it.
    pub(crate) fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            eprintln!("cannot remove {}: {error}", self.0.display());
        }
    }
}
