//! What a run found: as text for people, as JSON for programs.

use std::fmt::Write as _;
use std::fs;

use crate::cell::{Cell, Settings};
use crate::cpus::Cpus;
use crate::empty::EmptyNode;
use crate::rocks::{self, RocksCell};
use crate::table::{Table, grouped, short};
use crate::workload::BATCH;

/// A generator that uses this much of its CPU is what limits the rate.
const GENERATOR_LIMIT: f64 = 0.95;
/// Other processes that use more than this of a CPU disturb.
const DISTURBANCE: f64 = 0.1;

/// The machine that was measured.
#[derive(Clone, Debug, serde::Serialize)]
pub(crate) struct Machine {
    cpu_model: String,
    cpus: usize,
    kernel: String,
    memory_kib: u64,
    load_before: String,
    load_after: String,
}

impl Machine {
    /// Looks around.
    pub(crate) fn read() -> Machine {
        let text = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let (cpuinfo, meminfo) = (text("/proc/cpuinfo"), text("/proc/meminfo"));
        let value = |text: &str, name: &str| {
            let line = text.lines().find(|line| line.starts_with(name));
            let value = line.and_then(|line| line.split_once(':'));
            value.map(|(_, value)| value.trim().to_owned()).unwrap_or_default()
        };
        let memory = value(&meminfo, "MemTotal");
        Machine {
            cpu_model: value(&cpuinfo, "model name"),
            cpus: executor::allowed_cpus(),
            kernel: text("/proc/sys/kernel/osrelease").trim().to_owned(),
            memory_kib: memory.trim_end_matches(" kB").parse().unwrap_or(0),
            load_before: load(),
            load_after: String::new(),
        }
    }
}

/// Processes that ran or wanted to, on average over 1, 5 and 15 minutes.
fn load() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let numbers: Vec<&str> = text.split_ascii_whitespace().take(3).collect();
    numbers.join(" ")
}

/// All results of a run.
#[derive(Clone, Debug, serde::Serialize)]
pub(crate) struct Report {
    version: &'static str,
    began_unix_seconds: u64,
    machine: Machine,
    placement: String,
    seconds_per_cell: f64,
    keys: u64,
    seed: u64,
    notes: Vec<String>,
    pub(crate) cells: Vec<Cell>,
    pub(crate) rocks: Vec<RocksCell>,
    pub(crate) empty: Option<EmptyNode>,
}

impl Report {
    pub(crate) fn new(machine: Machine, cpus: Cpus, settings: Settings) -> Report {
        let mut notes = Vec::new();
        if cpus.is_shared() {
            notes.push("server and generator share one CPU: rates and latencies mean little".to_owned());
        }
        Report {
            version: env!("CARGO_PKG_VERSION"),
            began_unix_seconds: executor::unix_time().seconds(),
            machine,
            placement: cpus.describe(),
            seconds_per_cell: settings.window.as_secs_f64(),
            keys: settings.keys,
            seed: settings.seed,
            notes,
            cells: Vec::new(),
            rocks: Vec::new(),
            empty: None,
        }
    }

    /// Adds a remark on the run.
    pub(crate) fn note(&mut self, note: String) {
        self.notes.push(note);
    }

    /// The run is over.
    pub(crate) fn finish(&mut self) {
        self.machine.load_after = load();
    }

    /// The report as text.
    pub(crate) fn render(&self) -> String {
        let mut out = String::new();
        let machine = &self.machine;
        // Writing to a string cannot fail.
        let _ = write!(
            out,
            "\n{} × {}, {} MiB, Linux {}, load {} before and {} after\n{}; {} keys of 16 bytes, values of 128, {} s a cell\n",
            machine.cpus,
            machine.cpu_model,
            machine.memory_kib / 1024,
            machine.kernel,
            machine.load_before,
            machine.load_after,
            self.placement,
            grouped(self.keys as f64),
            self.seconds_per_cell,
        );
        for note in &self.notes {
            let _ = writeln!(out, "Note: {note}.");
        }
        if !self.cells.is_empty() {
            let _ = write!(out, "\nRates and latencies (µs)\n{}", self.rates().render());
            out.push_str(RATE_LEGEND);
            let _ = write!(out, "\nThe server's work per operation\n{}", self.work().render());
            out.push_str(WORK_LEGEND);
        }
        if !self.rocks.is_empty() {
            let _ = write!(out, "\nBare RocksDB, write-ahead log off, one thread\n{}", self.engine().render());
            let _ = write!(out, "\nDistance to the floor\n{}", self.distance().render());
            out.push_str(DISTANCE_LEGEND);
        }
        if let Some(empty) = &self.empty {
            let _ = write!(out, "\n{}", render_empty(empty));
        }
        out
    }

    fn rates(&self) -> Table {
        let head = [
            "io",
            "path",
            "in flight",
            "ops/s",
            "p50",
            "p99",
            "p99.9",
            "max",
            "server CPU",
            "generator CPU",
            "others",
            "",
        ];
        let mut table = Table::new(&head, 2);
        for cell in &self.cells {
            let mut marks = String::new();
            if cell.generator_cpus >= GENERATOR_LIMIT {
                marks.push('G');
            }
            if cell.other_cpus >= DISTURBANCE {
                marks.push('!');
            }
            table.row(vec![
                cell.io.clone(),
                cell.path.clone(),
                cell.in_flight.to_string(),
                grouped(cell.operations_per_second),
                short(cell.latency.p50),
                short(cell.latency.p99),
                short(cell.latency.p999),
                short(cell.latency.max),
                percent(cell.server_cpus),
                percent(cell.generator_cpus),
                percent(cell.other_cpus),
                marks,
            ]);
        }
        table
    }

    fn work(&self) -> Table {
        let head = [
            "io",
            "path",
            "in flight",
            "CPU µs",
            "kernel µs",
            "switches",
            "calls",
            "socket reads",
            "socket writes",
            "durable writes",
            "log bytes",
            "disk bytes",
        ];
        let mut table = Table::new(&head, 2);
        for cell in &self.cells {
            let each = &cell.per_operation;
            let numbers = [
                each.cpu_micros,
                each.system_micros,
                each.context_switches,
                each.system_calls,
                each.socket_reads,
                each.socket_writes,
                each.durable_writes,
                each.log_bytes,
                each.device_bytes,
            ];
            let mut row = vec![cell.io.clone(), cell.path.clone(), cell.in_flight.to_string()];
            row.extend(numbers.map(short));
            table.row(row);
        }
        table
    }

    fn engine(&self) -> Table {
        let head = ["call", "keys a call", "keys/s", "CPU µs/key", "call p50", "p99", "p99.9"];
        let mut table = Table::new(&head, 1);
        for cell in &self.rocks {
            table.row(vec![
                cell.call.clone(),
                cell.keys_per_call.to_string(),
                grouped(cell.keys_per_second),
                short(cell.cpu_micros),
                short(cell.latency.p50),
                short(cell.latency.p99),
                short(cell.latency.p999),
            ]);
        }
        table
    }

    fn distance(&self) -> Table {
        let head = ["io", "path", "in flight", "CPU µs", "floor µs", "ratio"];
        let mut table = Table::new(&head, 2);
        for cell in &self.cells {
            if let Some(floor) = self.floor(cell) {
                let cpu = cell.per_operation.cpu_micros;
                table.row(vec![
                    cell.io.clone(),
                    cell.path.clone(),
                    cell.in_flight.to_string(),
                    short(cpu),
                    short(floor),
                    format!("{:.2}", cpu / floor),
                ]);
            }
        }
        table
    }

    /// CPU per operation of the same bytes through the bare echo, and of RocksDB's part of the work.
    fn floor(&self, cell: &Cell) -> Option<f64> {
        let (operation, carriage) = cell.path.strip_prefix("raw ")?.split_once(", ")?;
        let is_batch = carriage == "batched" && cell.in_flight >= BATCH;
        let call = match (operation, is_batch) {
            ("get", false) => rocks::GET,
            ("get", true) => rocks::MULTI_GET,
            ("put", false) => rocks::PUT,
            ("put", true) => rocks::PUT_BATCH,
            _ => return None,
        };
        let engine = self.rocks.iter().find(|rocks| rocks.call == call)?;
        let path = format!("echo, {carriage}");
        let is_echo = |other: &&Cell| other.path == path && other.io == cell.io && other.in_flight == cell.in_flight;
        let echo = self.cells.iter().find(is_echo)?;
        Some(echo.per_operation.cpu_micros + engine.cpu_micros)
    }
}

const RATE_LEGEND: &str = "\
Closed loop; in flight are commands, batched ones 32 to a message. CPU: 100% is one CPU; others are all processes that\n\
belong to neither. G: the generator is the limit, the server could do more. !: others disturb.\n";
const WORK_LEGEND: &str = "\
CPU and switches are those of all threads of the server. calls: system calls, counted by the kernel's trace point in half\n\
a second of their own; where tracing is not allowed, read and write calls alone. disk bytes: what /proc counts as sent to\n\
a disk.\n";
const DISTANCE_LEGEND: &str = "\
Floor: the bare echo of a get's bytes at the same load, and RocksDB's call. A put's log and its durable writes are not\n\
in the floor.\n";

fn percent(cpus: f64) -> String {
    format!("{:.0}%", cpus * 100.0)
}

fn render_empty(empty: &EmptyNode) -> String {
    format!(
        "Empty node, {} cores: {:.0} MiB resident (aim < 100), {:.2}% of a CPU (aim < 1%), {:.0} context switches/s, \
         {} threads, watched {:.0} s\n\
         Start of the cluster to the first answer: {:.0} ms on an empty folder, {:.0} ms the second time (aim < 1000)\n",
        empty.cores,
        empty.resident_bytes as f64 / f64::from(1 << 20),
        empty.cpus * 100.0,
        empty.switches_per_second,
        empty.threads,
        empty.seconds,
        empty.first_start_millis,
        empty.second_start_millis,
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cell::PerOperation;
    use crate::latency::Latency;
    use std::time::Duration;

    fn cell(path: &str, in_flight: usize, cpu_micros: f64) -> Cell {
        let mut latency = Latency::new();
        latency.record(Duration::from_micros(50), 10);
        Cell {
            io: "uring".into(),
            path: path.into(),
            in_flight,
            connections: 1,
            operations: 10,
            seconds: 1.0,
            operations_per_second: 10.0,
            latency: latency.summary(),
            per_operation: PerOperation { cpu_micros, ..PerOperation::default() },
            server_cpus: 0.5,
            generator_cpus: 0.96,
            other_cpus: 0.2,
            server_resident_bytes: 0,
        }
    }

    fn report() -> Report {
        let settings =
            Settings { warm_up: Duration::ZERO, window: Duration::from_secs(1), connections: 1, keys: 1000, seed: 1 };
        let cpus = Cpus::choose().expect("this test runs on a CPU");
        let mut report = Report::new(Machine::read(), cpus, settings);
        report.cells =
            vec![cell("echo, unary", 64, 10.0), cell("raw get, unary", 64, 15.0), cell("raw put, unary", 1, 90.0)];
        report.rocks = vec![RocksCell {
            call: rocks::GET.into(),
            keys_per_call: 1,
            keys_per_second: 1.0,
            cpu_micros: 2.0,
            latency: report.cells[0].latency,
        }];
        report
    }

    #[test]
    fn the_floor_is_the_echo_at_the_same_load_and_the_engines_call() {
        let report = report();
        assert_eq!(report.floor(&report.cells[1]), Some(12.0));
        assert_eq!(report.floor(&report.cells[0]), None, "the echo has no floor");
        assert_eq!(report.floor(&report.cells[2]), None, "no echo at this load");
    }

    #[test]
    fn a_generator_that_is_the_limit_is_marked() {
        let text = report().render();
        let line = text.lines().find(|line| line.contains("raw get, unary")).expect("a row");
        assert!(line.ends_with("G!"), "{line}");
        assert!(text.contains("1.25"), "15 / (10 + 2): {text}");
    }

    #[test]
    fn the_report_is_json_too() {
        let value = serde_json::to_value(report()).expect("plain data");
        assert_eq!(value["cells"][1]["per_operation"]["cpu_micros"], 15.0);
        assert!(value["machine"]["cpus"].as_u64().is_some_and(|cpus| cpus > 0));
    }
}
