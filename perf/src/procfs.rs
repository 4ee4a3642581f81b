//! What the kernel counts about processes: CPU time, context switches, calls, bytes, memory. Source: proc(5).

use std::fs;
use std::path::Path;

/// The kernel's unit of CPU time in /proc for every architecture that we run on: 1/100 s.
const TICK_NANOS: u64 = 10_000_000;

/// Counters of one process, or their difference.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct ProcSample {
    /// CPU time in user mode, in nanoseconds; in steps of 10 ms.
    pub(crate) user_nanos: u64,
    /// CPU time in the kernel, in nanoseconds; in steps of 10 ms.
    pub(crate) system_nanos: u64,
    /// CPU time of all threads that are alive, in nanoseconds; exact. 0 where the kernel does not count it.
    pub(crate) run_nanos: u64,
    /// Context switches because there was nothing to do.
    pub(crate) switches_voluntary: u64,
    /// Context switches because the time was up.
    pub(crate) switches_forced: u64,
    /// Calls of `read` and its like. Sockets' `recv` and io_uring are not among them: a lower bound.
    pub(crate) read_calls: u64,
    /// Calls of `write` and its like, likewise.
    pub(crate) write_calls: u64,
    /// Bytes that went, or will go, to a disk.
    pub(crate) device_bytes: u64,
    /// Resident memory now.
    pub(crate) resident_bytes: u64,
    /// Threads now.
    pub(crate) threads: u64,
}

impl ProcSample {
    /// Reads the counters of process `pid`. What cannot be read stays 0.
    ///
    /// # Errors
    /// If there is no such process.
    pub(crate) fn read(pid: u32) -> Result<ProcSample, String> {
        let folder = Path::new("/proc").join(pid.to_string());
        let text = |name: &str| fs::read_to_string(folder.join(name)).unwrap_or_default();
        let mut sample = ProcSample::default();
        if !sample.add_stat(&text("stat")) {
            return Err(format!("process {pid} is gone"));
        }
        sample.add_io(&text("io"));
        sample.resident_bytes = field(&text("status"), "VmRSS:") * 1024;
        for task in fs::read_dir(folder.join("task")).into_iter().flatten().flatten() {
            let text = |name: &str| fs::read_to_string(task.path().join(name)).unwrap_or_default();
            sample.run_nanos += first_number(&text("schedstat"));
            sample.add_switches(&text("status"));
            sample.threads += 1;
        }
        Ok(sample)
    }

    /// What happened since `earlier`. Memory and threads are those of now.
    pub(crate) fn since(&self, earlier: &ProcSample) -> ProcSample {
        ProcSample {
            user_nanos: self.user_nanos.saturating_sub(earlier.user_nanos),
            system_nanos: self.system_nanos.saturating_sub(earlier.system_nanos),
            run_nanos: self.run_nanos.saturating_sub(earlier.run_nanos),
            switches_voluntary: self.switches_voluntary.saturating_sub(earlier.switches_voluntary),
            switches_forced: self.switches_forced.saturating_sub(earlier.switches_forced),
            read_calls: self.read_calls.saturating_sub(earlier.read_calls),
            write_calls: self.write_calls.saturating_sub(earlier.write_calls),
            device_bytes: self.device_bytes.saturating_sub(earlier.device_bytes),
            ..*self
        }
    }

    /// CPU time in nanoseconds, as exactly as the kernel says.
    pub(crate) fn cpu_nanos(&self) -> u64 {
        match self.run_nanos {
            0 => self.user_nanos + self.system_nanos,
            exact => exact,
        }
    }

    /// The part of the CPU time that was spent in the kernel, 0 to 1.
    pub(crate) fn system_share(&self) -> f64 {
        self.system_nanos as f64 / (self.user_nanos + self.system_nanos).max(1) as f64
    }

    /// Fields 14 and 15 of `stat`. The name before them may hold spaces, so counting begins at its last bracket.
    fn add_stat(&mut self, stat: &str) -> bool {
        let Some((_, rest)) = stat.rsplit_once(')') else {
            return false;
        };
        let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
        let ticks = |index: usize| fields.get(index).map_or(0, |field| first_number(field));
        self.user_nanos += ticks(11) * TICK_NANOS;
        self.system_nanos += ticks(12) * TICK_NANOS;
        fields.len() > 12
    }

    fn add_io(&mut self, io: &str) {
        self.read_calls += field(io, "syscr:");
        self.write_calls += field(io, "syscw:");
        self.device_bytes += field(io, "write_bytes:");
    }

    fn add_switches(&mut self, status: &str) {
        self.switches_voluntary += field(status, "voluntary_ctxt_switches:");
        self.switches_forced += field(status, "nonvoluntary_ctxt_switches:");
    }
}

/// CPU time of the calling thread in nanoseconds.
pub(crate) fn thread_cpu_nanos() -> u64 {
    first_number(&fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default())
}

/// CPU time that all processes together, and the host in our stead, took since the machine started; in nanoseconds.
pub(crate) fn machine_cpu_nanos() -> u64 {
    machine_busy(&fs::read_to_string("/proc/stat").unwrap_or_default())
}

/// user, nice, system, irq, softirq and steal of the line `cpu`: all but idle and waiting.
fn machine_busy(stat: &str) -> u64 {
    let line = stat.lines().next().unwrap_or_default();
    let ticks: Vec<u64> = line.split_ascii_whitespace().skip(1).map(first_number).collect();
    let busy = [0, 1, 2, 5, 6, 7].iter().filter_map(|index| ticks.get(*index));
    busy.sum::<u64>() * TICK_NANOS
}

/// The number after `name` at the beginning of a line; 0 if there is none.
fn field(text: &str, name: &str) -> u64 {
    let value = text.lines().find_map(|line| line.strip_prefix(name));
    value.map_or(0, first_number)
}

fn first_number(text: &str) -> u64 {
    let word = text.split_ascii_whitespace().next();
    word.and_then(|word| word.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_is_read_past_a_name_with_brackets_and_spaces() {
        let mut sample = ProcSample::default();
        let stat = "42 (a) b (c)) S 1 42 42 0 -1 4194304 102 0 0 0 7 3 0 0 20 0 9 0 54 31 35";
        assert!(sample.add_stat(stat));
        assert_eq!(sample.user_nanos, 70_000_000);
        assert_eq!(sample.system_nanos, 30_000_000);
        assert!((sample.system_share() - 0.3).abs() < 1e-9);
        assert!(!ProcSample::default().add_stat(""));
    }

    #[test]
    fn voluntary_switches_are_not_taken_for_the_others() {
        let mut sample = ProcSample::default();
        sample.add_switches("Name:\tx\nvoluntary_ctxt_switches:\t12\nnonvoluntary_ctxt_switches:\t5\n");
        assert_eq!((sample.switches_voluntary, sample.switches_forced), (12, 5));
    }

    #[test]
    fn cancelled_bytes_are_not_taken_for_written_ones() {
        let mut sample = ProcSample::default();
        sample.add_io("rchar: 9\nsyscr: 12\nsyscw: 1\nwrite_bytes: 4096\ncancelled_write_bytes: 7\n");
        assert_eq!((sample.read_calls, sample.write_calls, sample.device_bytes), (12, 1, 4096));
    }

    #[test]
    fn exact_cpu_time_comes_first() {
        let coarse = ProcSample { user_nanos: 10, system_nanos: 20, ..ProcSample::default() };
        assert_eq!(coarse.cpu_nanos(), 30);
        let exact = ProcSample { run_nanos: 33, ..coarse };
        assert_eq!(exact.cpu_nanos(), 33);
        assert_eq!(exact.since(&coarse).cpu_nanos(), 33);
    }

    #[test]
    fn a_machine_is_busy_with_all_but_waiting() {
        let stat = "cpu  10 1 5 1000 50 2 3 4 0 0\ncpu0 1 1 1 1 1\n";
        assert_eq!(machine_busy(stat), 25 * TICK_NANOS);
        assert_eq!(machine_busy(""), 0);
    }

    #[test]
    fn this_process_can_be_read() {
        let sample = ProcSample::read(std::process::id()).expect("alive");
        assert!(sample.resident_bytes > 0 && sample.threads > 0);
        assert!(ProcSample::read(u32::MAX).is_err());
    }
}
