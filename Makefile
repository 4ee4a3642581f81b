# The verbs of the project. CI, the README and people run the same ones.

SHELL := /bin/bash
# RocksDB's C++ goes through ccache where it is installed, so that a clean clone does not pay for it again.
CCACHE := $(shell command -v ccache 2>/dev/null)
ifneq ($(CCACHE),)
export CC := ccache cc
export CXX := ccache c++
endif

N ?= 200
SIM_NODES ?= 1
WHAT ?= kills
NUMBER ?=
NODES ?= 3
CORES ?= 0
PD_PORT ?= 2379
DATA_DIR ?= basalt-data

.PHONY: run build deps test interop check sim bench measure clean

## Build, start a cluster on this machine, and say how to reach it.
run: build
	exec target/release/basalt dev --nodes $(NODES) --cores $(CORES) --pd-port $(PD_PORT) --data-dir $(DATA_DIR)

build: deps
	cargo build --release --bin basalt

## Install what the build needs and is missing (with apt, as root or by sudo), or say what to install.
deps:
	@scripts/deps.sh

## Everything that CI checks.
test: deps
	scripts/test.sh

## Basalt under the stock placement driver, which is built from its Go module. Without Go there is nothing to do.
interop: deps
	scripts/interop.sh

## Formatting, lints, layering.
check: deps
	scripts/check.sh

## The simulator: `make sim SEED=42` replays one seed, `make sim N=2000` runs many.
sim: deps
	cargo build --release -p basalt-tests --bin sim
	target/release/sim $(if $(SEED),--seed $(SEED),--count $(N)) --nodes $(SIM_NODES)

## Measure: Basalt, the bare HTTP/2 echo and bare RocksDB in one run.
bench: deps
	cargo build --release --bin basalt
	target/release/basalt perf bench

## Measure failures and growth on real processes: WHAT=kills, disk, balance or scale; NUMBER of kills, rounds or regions.
measure: deps
	cargo build --release --workspace --bin basalt --example measure
	target/release/examples/measure $(WHAT) $(NUMBER)

clean:
	cargo clean
