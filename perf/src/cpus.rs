//! Which CPU is whose: the server gets the first that this process may use, the generator the last.

use core_affinity::CoreId;

/// The CPUs of a run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cpus {
    server: CoreId,
    generator: CoreId,
}

impl Cpus {
    /// The first and the last allowed CPU.
    ///
    /// # Errors
    /// If the kernel does not say which are allowed.
    pub(crate) fn choose() -> Result<Cpus, String> {
        let mut allowed = core_affinity::get_core_ids().unwrap_or_default();
        allowed.sort_by_key(|cpu| cpu.id);
        match (allowed.first(), allowed.last()) {
            (Some(server), Some(generator)) => Ok(Cpus { server: *server, generator: *generator }),
            _ => Err("the kernel does not say which CPUs may be used".into()),
        }
    }

    /// Whether server and generator share a CPU, which makes rates meaningless.
    pub(crate) fn is_shared(self) -> bool {
        self.server.id == self.generator.id
    }

    /// In words, for the report.
    pub(crate) fn describe(self) -> String {
        format!("server on CPU {}, generator on CPU {}", self.server.id, self.generator.id)
    }

    /// Pins the calling thread to the server's CPU. Processes and threads that it starts from then on inherit that.
    pub(crate) fn pin_to_server(self) {
        pin(self.server);
    }

    /// Pins the calling thread to the generator's CPU.
    pub(crate) fn pin_to_generator(self) {
        pin(self.generator);
    }
}

fn pin(cpu: CoreId) {
    if !core_affinity::set_for_current(cpu) {
        eprintln!("cannot pin to CPU {}: numbers are worth less", cpu.id);
    }
}
