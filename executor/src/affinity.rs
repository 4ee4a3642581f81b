//! Which CPUs this process may use, and which thread runs where.

use std::io;

/// A set of CPUs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CpuSet(Vec<usize>);

impl CpuSet {
    /// The CPUs that the calling thread may run on: its affinity mask, which the kernel keeps inside the cpuset of
    /// its control group.
    pub(crate) fn allowed() -> CpuSet {
        // SAFETY: all-zero is a valid, empty set.
        let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
        // SAFETY: `set` is a valid place of the given size for the result.
        let result = unsafe { libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &raw mut set) };
        if result != 0 {
            // More CPUs than the set holds (1024): ask the crate that knows how to size it.
            let cores = core_affinity::get_core_ids().unwrap_or_default();
            return CpuSet(cores.into_iter().map(|core| core.id).collect());
        }
        // SAFETY: each number is below the size of the set.
        CpuSet((0..libc::CPU_SETSIZE as usize).filter(|cpu| unsafe { libc::CPU_ISSET(*cpu, &set) }).collect())
    }

    /// The CPUs, ascending.
    pub(crate) fn cpus(&self) -> &[usize] {
        &self.0
    }

    /// The set without `others`.
    pub(crate) fn without(&self, others: &[usize]) -> CpuSet {
        CpuSet(self.0.iter().copied().filter(|cpu| !others.contains(cpu)).collect())
    }

    /// Lets the calling thread run on exactly this set.
    pub(crate) fn apply(&self) -> io::Result<()> {
        // SAFETY: all-zero is a valid, empty set.
        let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
        for cpu in self.0.iter().filter(|cpu| **cpu < libc::CPU_SETSIZE as usize) {
            // SAFETY: `cpu` is below the size of the set.
            unsafe { libc::CPU_SET(*cpu, &mut set) };
        }
        // SAFETY: `set` is initialized and of the given size.
        match unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

/// Pins the calling thread to one CPU.
pub(crate) fn pin(cpu: usize) -> io::Result<()> {
    CpuSet(vec![cpu]).apply()
}

/// Where the threads of a process run.
#[derive(Debug)]
pub(crate) struct Plan {
    /// The CPU of each core; empty if the cores are not pinned.
    pub(crate) cores: Vec<usize>,
    /// Where helpers and log threads run: on CPUs without a core if there are any, else anywhere allowed.
    pub(crate) helpers: CpuSet,
}

impl Plan {
    /// Gives each of `cores` cores a CPU of `allowed`, if there are enough and `pin` asks for it.
    pub(crate) fn new(allowed: &CpuSet, cores: usize, pin: bool) -> Plan {
        if !pin || cores > allowed.cpus().len() {
            return Plan { cores: Vec::new(), helpers: allowed.clone() };
        }
        let pinned = allowed.cpus()[..cores].to_vec();
        let spare = allowed.without(&pinned);
        let helpers = if spare.cpus().is_empty() { allowed.clone() } else { spare };
        Plan { cores: pinned, helpers }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cores_get_cpus_of_the_mask_and_helpers_the_rest() {
        let plan = Plan::new(&CpuSet(vec![2, 5, 7]), 2, true);
        assert_eq!(plan.cores, [2, 5]);
        assert_eq!(plan.helpers, CpuSet(vec![7]));
    }

    #[test]
    fn without_spare_cpus_helpers_run_anywhere() {
        let plan = Plan::new(&CpuSet(vec![2, 5]), 2, true);
        assert_eq!(plan.cores, [2, 5]);
        assert_eq!(plan.helpers, CpuSet(vec![2, 5]));
    }

    #[test]
    fn more_cores_than_cpus_are_not_pinned() {
        let plan = Plan::new(&CpuSet(vec![2, 5]), 3, true);
        assert!(plan.cores.is_empty());
        assert!(Plan::new(&CpuSet(vec![2, 5]), 1, false).cores.is_empty());
    }

    #[test]
    fn a_pinned_thread_runs_on_its_cpu_alone() {
        let allowed = CpuSet::allowed();
        let cpu = *allowed.cpus().last().expect("a running thread has a CPU");
        let seen = std::thread::spawn(move || pin(cpu).map(|()| CpuSet::allowed())).join().expect("no panic");
        assert_eq!(seen.expect("allowed"), CpuSet(vec![cpu]));
        assert_eq!(CpuSet::allowed(), allowed);
    }
}
