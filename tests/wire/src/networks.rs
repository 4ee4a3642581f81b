//! A network of a test's own: a namespace for each node, joined by a bridge, whose links can be cut in one direction and
//! made slow. It takes root, and does not leave this machine.

use std::process::{Command, Stdio};

/// See the module. It is taken down when it is dropped.
pub struct Networks {
    /// Unique among those that run at a time, and short: names of interfaces have 15 characters.
    name: String,
    /// Third octet of its addresses.
    net: u32,
    nodes: usize,
}

/// Runs `ip` or `tc`; false if it refuses.
fn run(program: &str, arguments: &[&str]) -> bool {
    let mut command = Command::new(program);
    let status = command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
    status.is_ok_and(|status| status.success())
}

impl Networks {
    /// Makes one for `nodes` nodes; `None`, with a line that says so, if this process may not.
    pub fn make(nodes: usize) -> Option<Networks> {
        let pid = std::process::id();
        let networks = Networks { name: format!("bs{pid}"), net: pid % 250, nodes };
        if networks.build() {
            return Some(networks);
        }
        println!("skipped: no network namespaces can be made here, which takes root, `ip` and veth interfaces");
        None
    }

    fn build(&self) -> bool {
        let bridge = &self.name;
        run("ip", &["link", "add", bridge, "type", "bridge"])
            && run("ip", &["addr", "add", &format!("{}/24", self.host()), "dev", bridge])
            && run("ip", &["link", "set", bridge, "up"])
            && (0..self.nodes).all(|node| self.build_node(node))
    }

    fn build_node(&self, node: usize) -> bool {
        let (namespace, outer, inner) = (self.namespace(node), self.outer(node), format!("{}i{node}", self.name));
        let inside = |arguments: &[&str]| run("ip", &[&["-n", &namespace][..], arguments].concat());
        run("ip", &["netns", "add", &namespace])
            && run("ip", &["link", "add", &outer, "type", "veth", "peer", "name", &inner])
            && run("ip", &["link", "set", &inner, "netns", &namespace])
            && run("ip", &["link", "set", &outer, "master", &self.name, "up"])
            && inside(&["link", "set", "lo", "up"])
            && inside(&["addr", "add", &format!("{}/24", self.address(node)), "dev", &inner])
            && inside(&["link", "set", &inner, "up"])
    }

    fn namespace(&self, node: usize) -> String {
        format!("{}n{node}", self.name)
    }

    /// The end of a node's link that is at the bridge.
    fn outer(&self, node: usize) -> String {
        format!("{}o{node}", self.name)
    }

    /// The address of this process.
    pub fn host(&self) -> String {
        format!("10.213.{}.1", self.net)
    }

    /// The address of a node.
    pub fn address(&self, node: usize) -> String {
        format!("10.213.{}.{}", self.net, 10 + node)
    }

    /// What a node's command begins with.
    pub fn prefix(&self, node: usize) -> Vec<String> {
        ["ip", "netns", "exec", &self.namespace(node)].map(str::to_string).into()
    }

    fn route(&self, action: &str, from: usize, to: usize) -> bool {
        let target = format!("{}/32", self.address(to));
        run("ip", &["-n", &self.namespace(from), "route", action, "blackhole", &target])
    }

    /// Loses all that `from` sends to `to`; what `to` sends arrives.
    ///
    /// # Panics
    /// If it cannot be done.
    pub fn cut(&self, from: usize, to: usize) {
        assert!(self.route("replace", from, to), "a route from {from} to {to}");
    }

    /// Undoes [`Networks::cut`].
    ///
    /// # Panics
    /// If it was not cut.
    pub fn heal(&self, from: usize, to: usize) {
        assert!(self.route("del", from, to), "a route from {from} to {to}");
    }

    /// Lets no more than so much reach a node, for example `"1mbit"` a second; what waits longer than a second is lost.
    ///
    /// # Panics
    /// If it cannot be done.
    pub fn slow(&self, node: usize, rate: &str) {
        let outer = self.outer(node);
        let shaped = run(
            "tc",
            &["qdisc", "replace", "dev", &outer, "root", "tbf", "rate", rate, "burst", "16kb", "latency", "1s"],
        );
        assert!(shaped, "a rate of {rate} to node {node}");
    }

    /// Undoes [`Networks::slow`].
    ///
    /// # Panics
    /// If it was not slow.
    pub fn restore(&self, node: usize) {
        assert!(run("tc", &["qdisc", "del", "dev", &self.outer(node), "root"]), "node {node} was slow");
    }
}

impl Drop for Networks {
    fn drop(&mut self) {
        // What was not made is not there; a pair of interfaces ends with one of them.
        for node in 0..self.nodes {
            run("ip", &["link", "del", &self.outer(node)]);
            run("ip", &["netns", "del", &self.namespace(node)]);
        }
        run("ip", &["link", "del", &self.name]);
    }
}
