#!/usr/bin/env python3
"""Checks the walls of the house: which crate may import which, and what only `executor` may name.

ARCHITECTURE.md, "Invariants of absence", lists the rules. Prints each breach; exits 1 if there is one.
"""
import json
import pathlib
import re
import subprocess
import sys

ALLOWED = {
    "base": set(),
    "proto": {"base"},
    "executor": {"base"},
    "net": {"base", "proto", "executor"},
    "raftstore": {"base", "proto"},
    "mvcc": {"base", "proto"},
    "shard": {"base", "proto", "executor", "net", "raftstore", "mvcc"},
    "pd": {"base", "proto", "executor", "net", "raftstore"},
}
# Third-party crates that only these crates may name (dev-dependencies are free).
OWNERS = {
    "rocksdb": {"shard"},
    "h2": {"net", "perf"},
    "rustls": {"net"},
    "x509-cert": {"net"},
    "glommio": {"executor"},
    "tokio": {"executor"},
    "raft": {"raftstore"},
}
# Look at everything, and nobody imports them but tests.
TESTERS = {"basalt-tests", "basalt-wire", "perf", "test-certificates"}
# What must not be written outside of `executor`, in code that ships.
FORBIDDEN = re.compile(
    r"std::time::(Instant|SystemTime)|\bInstant::now\(\)|SystemTime::now\(\)|std::thread\b|std::net::(Tcp|Udp)|"
    r"thread_rng\(\)|rand::rng\(\)|\b(glommio|tokio)::"
)
PURE = re.compile(r"\.await\b|\basync (fn|move|\{)|\b(shard|executor|net|pd)::")
PURE_CRATES = ("base", "mvcc", "raftstore")


def main():
    bad = []
    metadata = json.loads(
        subprocess.check_output(["cargo", "metadata", "--format-version", "1", "--no-deps"])
    )
    root = pathlib.Path(metadata["workspace_root"])
    members = {package["name"] for package in metadata["packages"]}
    for package in metadata["packages"]:
        name = package["name"]
        for dependency in package["dependencies"]:
            if dependency["kind"] == "dev":
                continue
            other = dependency["name"]
            if other in members and name in ALLOWED and other not in ALLOWED[name]:
                if other != "raft-proto":
                    bad.append(f"{name} must not import {other}")
            if other in OWNERS and name not in OWNERS[other] and name not in TESTERS:
                bad.append(f"{name} must not name {other}; only {', '.join(sorted(OWNERS[other]))} may")
    for crate in [*ALLOWED, "src"]:
        folder = root / crate / ("src" if crate != "src" else "")
        if crate == "executor":
            continue
        for path in sorted(folder.rglob("*.rs")):
            text = path.read_text()
            text = text.split("#[cfg(test)]\nmod tests {")[0]
            for number, line in enumerate(text.splitlines(), 1):
                code = line.split("//")[0]
                place = f"{path.relative_to(root)}:{number}"
                if FORBIDDEN.search(code):
                    bad.append(f"{place}: clock, thread, socket or runtime outside of executor: {line.strip()}")
                if crate in PURE_CRATES and PURE.search(code):
                    bad.append(f"{place}: {crate} is pure: {line.strip()}")
    for line in bad:
        print(line)
    print(f"layering: {len(bad)} breaches")
    return 1 if bad else 0


sys.exit(main())
