#!/usr/bin/env bash
# Everything that CI checks, in the order of what fails first. Each step says how long it took.
#
# Every step selects the whole workspace with the features of all its targets: another selection would give the
# dependencies other features, and compile the house once more.
set -euo pipefail
cd "$(dirname "$0")/.."

step() {
  local name=$1 started=$SECONDS
  shift
  echo "== $name"
  "$@"
  echo "== $name: $((SECONDS - started)) s"
}

# Runs the test binaries of these names, wherever in the workspace they are.
suites() {
  cargo test --release --workspace "${@/#/--test=}"
}

check_wire() {
  # The reference stands beside the repository where the project is developed; elsewhere proto's own test holds the facts.
  if [ -f ../shared/wire/check.py ]; then
    python3 -c 'import google.protobuf' 2>/dev/null || pip install -q protobuf
    target/release/examples/descriptor > target/ours.desc
    python3 ../shared/wire/check.py target/ours.desc
  fi
}

step "check" scripts/check.sh
step "build" cargo build --release --workspace --all-targets
step "wire facts" check_wire
step "unit tests" cargo test --release --workspace --lib --bins
step "proto" suites facts rpc shallow
step "executor" suites backends
step "net" suites tonic channel http1 hostile lifecycle
step "base, raftstore and mvcc" suites bucket commands model raw_reads raw_model txn_codec txn_reads txn_scripts txn_model
step "raft log" suites log_crash log_damage log_files log_model log_size
step "engine and recovery" suites engine_differential engine_twin engine_rocks recovery_model shard_size spread_scripts
step "placement driver" suites service etcd sim newer_calls calls scripts schedule_model gc_model raft_model group members
step "simulator" suites simulator pd_events
step "wire and process tests" suites readme raw_api txn_api rpc batch_commands bad_input forbidden_uring durability damaged_log crash three_nodes snapshots pd_members replica_read consistency tls operations disk_full disk_trouble namespaces
step "the same over mutual TLS" env BASALT_TLS=1 cargo test --release --workspace --test=raw_api --test=txn_api --test=pd_members
