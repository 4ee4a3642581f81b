//! A small filesystem of a test's own, which can be filled and emptied.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A tmpfs, until it is dropped. Whatever has files open in it must have ended by then.
pub struct SmallDisk {
    dir: tempfile::TempDir,
}

impl SmallDisk {
    /// Mounts one of `mebibytes`; `None`, with a line that says so, if this process may not.
    ///
    /// # Panics
    /// If there is no folder for it.
    pub fn mount(mebibytes: u64) -> Option<SmallDisk> {
        let dir = tempfile::tempdir().expect("a folder");
        let mut command = Command::new("mount");
        command.args(["-t", "tmpfs", "-o", &format!("size={mebibytes}m"), "tmpfs"]).arg(dir.path());
        let mounted = command.stdin(Stdio::null()).stderr(Stdio::null()).status();
        if mounted.is_ok_and(|status| status.success()) {
            return Some(SmallDisk { dir });
        }
        println!("skipped: no tmpfs can be mounted here, which takes root");
        None
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    fn ballast(&self) -> PathBuf {
        self.dir.path().join("ballast")
    }

    /// Bytes that are free.
    ///
    /// # Panics
    /// If `df` does not tell.
    pub fn free_bytes(&self) -> u64 {
        let output = Command::new("df").args(["--output=avail", "-B1"]).arg(self.path()).output().expect("df runs");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.lines().nth(1).and_then(|line| line.trim().parse().ok()).expect("a number")
    }

    /// Has a file of somebody else's take all but `bytes`; with 0 until nothing fits any more.
    ///
    /// # Panics
    /// If it cannot be written.
    pub fn leave_free(&self, bytes: u64) {
        let mut file = File::options().create(true).append(true).open(self.ballast()).expect("a file");
        let piece = vec![0; 64 << 10];
        while bytes == 0 || self.free_bytes() > bytes + piece.len() as u64 {
            // The last piece need not fit.
            if file.write_all(&piece).is_err() {
                break;
            }
        }
    }

    /// Removes that file.
    ///
    /// # Panics
    /// If it is not there.
    pub fn empty(&self) {
        std::fs::remove_file(self.ballast()).expect("it was filled");
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg(self.path()).status();
        if !unmounted.is_ok_and(|status| status.success()) {
            eprintln!("{} stays mounted", self.path().display());
        }
    }
}
