#!/usr/bin/env bash
# Formatting, lints and the walls between the crates.
set -euo pipefail
cd "$(dirname "$0")/.."

cargo fmt --all --check
cargo clippy --release --workspace --all-targets -- -D warnings
python3 scripts/layering.py
