#!/usr/bin/env bash
# Everything that CI checks, in the order of what fails first. Each step says how long it took.
set -euo pipefail
cd "$(dirname "$0")/.."

step() {
  local name=$1 started=$SECONDS
  shift
  echo "== $name"
  "$@"
  echo "== $name: $((SECONDS - started)) s"
}

check_wire() {
  # The reference stands beside the repository where the project is developed; elsewhere proto's own test holds the facts.
  if [ -f ../shared/wire/check.py ]; then
    python3 -c 'import google.protobuf' 2>/dev/null || pip install -q protobuf
    cargo run --release -q -p proto --example descriptor > target/ours.desc
    python3 ../shared/wire/check.py target/ours.desc
  fi
}

step "check" scripts/check.sh
step "unit, script and model tests" cargo test --release --workspace --exclude basalt-tests --lib --bins
# Of the suites with a binary of their own, those that are finished; docs/plan.md names the others.
step "suites" cargo test --release -p proto -p raftstore -p shard --test facts --test rpc --test shallow --test commands \
  --test model --test scripts --test log_crash --test log_damage --test log_model --test log_size \
  --test engine_differential --test engine_twin
step "pd suites" cargo test --release -p pd --test '*'
step "wire facts" check_wire
step "binary" cargo build --release --bin basalt
step "simulator, wire and process tests" cargo test --release -p basalt-tests
