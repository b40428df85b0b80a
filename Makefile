# `make` lists what there is. Everything that a target needs beside Rust is installed by tests/setup.sh.

CARGO ?= cargo
TARGET_DIR := $(or $(CARGO_TARGET_DIR),target)
PROGRAMS := meshd meshctl mesh-relay
# What the benchmark compares with beside Debian's packages, from crates.io.
BENCH_TOOLS := boringtun-cli@0.7.1 vpncloud@2.3.0
SUDO := $(shell [ "$$(id -u)" -eq 0 ] || command -v sudo)
# The lab needs root; without root and without sudo it says so and skips.
AS_ROOT := $(if $(SUDO),--config 'target."cfg(unix)".runner="$(SUDO)"')

.DEFAULT_GOAL := help
.PHONY: help build release demo test test-fast test-unit test-sim test-lab test-system bench bench-docs bench-no-cipher bench-scale bench-heal bench-heal-docs bench-tools fmt lint deny setup
.PHONY: test-instructions lint-instructions bench-micro bench-nat nat-matrix nat-matrix-docs

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | sort | awk -F'\t' '{ printf "  make %-12s %s\n", $$1, $$2 }'

build: ## build everything, unoptimised
	$(CARGO) build --workspace

release: ## build meshd, meshctl and mesh-relay as they are shipped
	$(CARGO) build --release --locked $(addprefix -p ,$(PROGRAMS))

demo: ## two hosts behind two NATs: first relayed, then direct
	@tests/setup.sh build demo
	@$(MAKE) --no-print-directory release
	@$(CARGO) build --release --locked -p mesh-tests --bin mesh-demo
	@$(SUDO) $(TARGET_DIR)/release/mesh-demo

test: setup lint test-unit test-sim test-instructions test-lab ## everything that CI runs

setup:
	@tests/setup.sh build test

fmt: ## format the code
	$(CARGO) fmt --all

lint: ## formatting and clippy, warnings denied
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings
	$(CARGO) clippy --locked -p mesh-tests --all-targets --test lab -- -D warnings
	$(CARGO) clippy --locked -p mesh-tests --features sim,scale,heal --lib --bins --test sim -- -D warnings

test-unit: ## unit tests
	$(CARGO) test --locked --workspace

test-sim: ## the simulator
	$(CARGO) test --locked --release -p mesh-tests --features sim --test sim

MATRIX := $(CARGO) test --locked --release -p mesh-tests --features sim --test sim -- --ignored --nocapture the_whole_matrix

nat-matrix: ## every pair of NATs in the simulator, with as many seeds as chance needs; some minutes
	$(MATRIX)

nat-matrix-docs: ## the same, written to docs/nat-matrix.*
	MATRIX_DOCS=1 $(MATRIX)

# Most of these tests wait most of the time, two of them for a session to age, so more of them run than there are CPUs.
test-lab: setup release ## the real programs in network namespaces (root); LAB="paths --nocapture" for some of them
	@tests/kernel/image $(TARGET_DIR)/kernel-wg
	$(CARGO) test --locked --release -p mesh-tests --test lab $(AS_ROOT) -- --test-threads=4 $(LAB)

test-system: ## the Debian package in a booted systemd container (root)
	tests/system/run

bench: bench-tools bench-no-cipher ## meshd beside other tunnels (root); BENCH="--quick" and other options of mesh-bench
	@$(MAKE) --no-print-directory release
	@$(CARGO) build --release --locked -p mesh-tests --bin mesh-bench
	@$(SUDO) $(TARGET_DIR)/release/mesh-bench $(BENCH)

bench-docs: ## the same, written to docs/benchmarks.*
	@$(MAKE) --no-print-directory bench BENCH="--write $(BENCH)"

# A meshd that does not encrypt, which shows what encryption costs; in a directory of its own, so that it is never taken
# for the real one.
bench-no-cipher:
	@$(CARGO) build --release --locked -p meshd --features null-cipher --target-dir $(TARGET_DIR)/no-cipher
	@mkdir -p $(TARGET_DIR)/release && ln -sf ../no-cipher/release/meshd $(TARGET_DIR)/release/meshd-no-cipher

# Once. What cannot be installed, the table names as missing.
bench-tools:
	@tests/setup.sh build
	@tests/setup.sh bench || echo "bench: going on with what is there"
	@for tool in $(BENCH_TOOLS); do \
	  [ -x $(TARGET_DIR)/bench-tools/bin/$${tool%@*} ] \
	    || $(CARGO) install --quiet --locked --root $(TARGET_DIR)/bench-tools $$tool \
	    || echo "bench: $$tool cannot be installed, going on without it"; \
	done

bench-scale: ## what a relay forwards, and what peers cost (root); SCALE="relay --runs 3" for a part
	@tests/setup.sh build demo bench
	@$(MAKE) --no-print-directory release
	@$(CARGO) build --release --locked -p mesh-tests --features scale --bin mesh-bench-scale
	@$(SUDO) $(TARGET_DIR)/release/mesh-bench-scale $(SCALE)

bench-heal: ## how long connections stand still when something below them breaks (root); HEAL="--runs 3 relay" for a part
	@tests/setup.sh build test
	@$(MAKE) --no-print-directory release
	@$(CARGO) build --release --locked -p mesh-tests --features heal --bin mesh-bench-heal
	@$(SUDO) $(TARGET_DIR)/release/mesh-bench-heal $(HEAL)

bench-heal-docs: ## the same, written to docs/healing.md
	@$(MAKE) --no-print-directory bench-heal HEAL="--write $(HEAL)"

bench-nat: ## how long hosts stay relayed before they are direct, by their NATs (root); NAT="birthday --runs 100" for a part
	@tests/setup.sh build demo
	@$(MAKE) --no-print-directory release
	@$(CARGO) build --release --locked -p mesh-tests --bin mesh-bench-nat
	@$(SUDO) $(TARGET_DIR)/release/mesh-bench-nat $(NAT)

bench-micro: ## what the parts of the core cost, each alone; MICRO="seal" and other options of criterion
	$(CARGO) bench --locked -p mesh-core --bench micro -- $(MICRO)

# The core comes without its cipher here, so in the directory of `bench-no-cipher`.
INSTRUCTIONS := --locked -p mesh-tests --features instructions --bin mesh-instructions

test-instructions: setup ## instructions of the core's hot paths against their baseline; ACCEPT=1 makes a new one
	$(CARGO) build --release --target-dir $(TARGET_DIR)/no-cipher $(INSTRUCTIONS)
	@$(TARGET_DIR)/no-cipher/release/mesh-instructions $(if $(ACCEPT),--accept)

# What only this build has.
lint: lint-instructions
lint-instructions:
	$(CARGO) clippy $(INSTRUCTIONS) -- -D warnings

deny: ## licences, advisories and bans of all dependencies (cargo-deny)
	$(CARGO) deny check

-include packaging/*.mk
