# All tasks of developers and CI in this repository. `make` without a target lists them.

SHELL := /bin/bash
CARGO ?= cargo
TARGET := $(or $(CARGO_TARGET_DIR),target)
export CARGO_TERM_COLOR ?= auto

.DEFAULT_GOAL := help
.PHONY: help build cni-plugin demo test fmt fmt-check clippy doc unit kernel attacks cluster control-plane scenarios deny bench bench-node \
        bench-cluster bench-tenants bench-guard bench-gate bench-drops bench-smoke netpol upgrade fuzz fuzz-smoke soak soak-flows mutants mutants-sample manifests image image-rootfs packages \
        ui screenshots clean

help: ## This list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

build: ## The release binary: target/release/towpath
	$(CARGO) build --release --locked

cni-plugin: ## The CNI plugin, one static file (Rust's musl target, which rustup installs); prints its path
	@./scripts/cni-plugin

demo: packages ## A demo on two simulated nodes with real packets (root)
	$(CARGO) build --release --locked --features lab
	$(TARGET)/release/towpath demo $(DEMO_ARGS)

test: packages fmt-check clippy doc deny unit ## All checks: fmt, clippy, docs, dependencies, all tests (as root also the kernel tests)

fmt: ## Formats the source
	$(CARGO) fmt --all

fmt-check: ## Checks that the source is formatted
	$(CARGO) fmt --all --check

clippy: ## Lints, warnings denied: the program as it is released, and everything with the lab
	$(CARGO) clippy --locked --workspace -- -D warnings
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings

doc: ## Checks that the documentation builds without warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --workspace --features lab --no-deps --document-private-items

unit: packages ## All tests; those that need root, a control plane or a browser report when they are skipped
	@./scripts/control-plane --optional >/dev/null
	@./scripts/ui --optional
	$(CARGO) test --locked --workspace

kernel: packages ## Only the tests with real packets and the real kernel (root)
	$(CARGO) test --locked --test dataplane --test lab --test kernel --test faults -- --nocapture

# The table is printed even if an attack got through: it shows which one.
attacks: packages ## Attacks by a hostile pod, on every topology and variant, as a table (root)
	@export TOWPATH_ATTACK_TABLE="$${TOWPATH_ATTACK_TABLE:-$(TARGET)/attacks.md}"; rm -f "$$TOWPATH_ATTACK_TABLE"; \
	$(CARGO) test --locked --test attacks -- --nocapture; status=$$?; \
	[ ! -e "$$TOWPATH_ATTACK_TABLE" ] || cat "$$TOWPATH_ATTACK_TABLE"; exit $$status

cluster: packages control-plane ## Only the tests with a real kube-apiserver (root)
	$(CARGO) test --locked --test cluster -- --nocapture

control-plane: ## Builds etcd, kube-apiserver and kubectl once (Go), unless KUBEBUILDER_ASSETS has them; prints where
	@./scripts/control-plane

ui: ## Builds what the browser loads, from ui/src into ui/dist, which is committed (npm)
	@./scripts/ui
	node ui/build.mjs

screenshots: ## The pictures of docs/page.md, taken from the page in a browser, into docs/images (npm, chromium)
	@./scripts/packages page
	./scripts/screenshots

scenarios: ## Only the truth tables of the standard's clauses
	$(CARGO) test --locked --test scenarios -- --nocapture

deny: ## Licences, sources and bans of dependencies; known vulnerabilities, if their database can be fetched
	@./scripts/deny

bench: ## Criterion benches of the core: three sizes, and the worst policies
	$(CARGO) bench --locked --bench core --bench hostile

bench-node: packages ## A whole node, end to end, with real packets (root)
	$(CARGO) bench --locked --bench node

bench-cluster: packages control-plane ## From an API change to the packets, with a real kube-apiserver; memory (root)
	$(CARGO) bench --locked --bench cluster

bench-tenants: packages ## How one tenant's policies can affect another's packets; memory (root)
	$(CARGO) bench --locked --bench tenants

bench-guard: packages ## The interface guard's cost per packet, and that of alternatives (root)
	$(CARGO) bench --locked --bench guard

bench-gate: packages ## What the gate adds to a pod's start (root)
	$(CARGO) bench --locked --bench gate

bench-drops: packages ## What the drop log costs under a flood of denied packets, and how soon it tells (root)
	$(CARGO) bench --locked --bench drops

bench-smoke: packages ## Runs every bench once, unoptimised
	@./scripts/control-plane --optional >/dev/null
	$(CARGO) test --locked --bench core --bench hostile --bench node --bench cluster --bench tenants \
		--bench guard --bench gate --bench drops -- --test

netpol: ## Kubernetes' own NetworkPolicy suite against the image, on a real cluster of two nodes (root, Go)
	@./scripts/netpol "$(NETPOL)"

upgrade: packages ## Swaps this tree's program with that of another revision (REV=...) under traffic, forth and back (root); not in CI
	@./scripts/upgrade "$(REV)"

FUZZ_SECONDS ?= 720

fuzz: ## Fuzzes what reads foreign input: each target for FUZZ_SECONDS, all of them an hour of processor time (cargo-fuzz)
	@./scripts/fuzz $(FUZZ_SECONDS)

fuzz-smoke: ## The same, a minute for each target
	@./scripts/fuzz 60

soak: packages ## Two nodes under random churn for TOWPATH_SOAK_SECONDS (600) with each variant of iptables, as a table (root)
	TOWPATH_SOAK_SECONDS=$${TOWPATH_SOAK_SECONDS:-600} $(CARGO) test --locked --test soak -- --nocapture

soak-flows: packages ## A million flows in random clusters, and many more restarts and packets (root)
	TOWPATH_FLOWS=1000000 TOWPATH_SEED=$${TOWPATH_SEED:-1000} $(CARGO) test --release --locked --test agreement -- --nocapture
	TOWPATH_CLUSTERS=200 $(CARGO) test --release --locked --test restart -- --nocapture
	TOWPATH_CLUSTERS=100 $(CARGO) test --release --locked --test kernel -- --nocapture
	TOWPATH_CLUSTERS=10 TOWPATH_FRAMES=10000 $(CARGO) test --release --locked --test attacks fuzz -- --nocapture

mutants: packages ## Mutates the source place by place and reports mutants that no test detects (cargo-mutants; hours)
	./scripts/mutants

mutants-sample: packages ## A few of these mutants, different ones for each commit; at most five minutes
	./scripts/mutants --sample

manifests: ## Renders deploy/towpath.yaml from deploy/ (needs kubectl), and the PrometheusRule from its rules
	@rule=$$(./scripts/prometheus-rule) && printf '%s\n' "$$rule" > deploy/components/alerts/prometheusrule.yaml
	@manifests=$$(./scripts/manifests) && printf '%s\n' "$$manifests" > deploy/towpath.yaml

VERSION = $(shell sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -1)
IMAGE ?= ghcr.io/towpath/towpath:$(VERSION)

image: ## The container image (needs docker or a compatible tool: DOCKER=podman)
	$(or $(DOCKER),docker) build -f deploy/Dockerfile -t $(IMAGE) .

image-rootfs: build ## The image's root filesystem in target/image/root, without docker; its size must be under 40 MiB
	plugin=$$(./scripts/cni-plugin) && ./deploy/rootfs $(TARGET)/image/root $(TARGET)/release/towpath "$$plugin"
	@$(TARGET)/image/root/usr/bin/towpath demo 2>&1 | grep -q "this build has no demo" || \
		{ echo "image: the program is built with the feature lab" >&2; exit 1; }
	@bytes=$$(du -s --apparent-size --block-size=1 $(TARGET)/image/root | cut -f1); \
	packed=$$(tar -C $(TARGET)/image/root -c . | gzip -9 | wc -c); \
	echo "image: $$bytes bytes, packed $$packed bytes"; \
	[ $$bytes -lt $$((40 * 1024 * 1024)) ] || { echo "image: more than 40 MiB" >&2; exit 1; }

# The programs that the kernel tests, the demo and the daemon run. Installs missing ones if permitted, and otherwise
# prints what to install.
packages: ## Installs the missing Debian packages that tests and the demo need, and names them; without root it only lists them
	@./scripts/packages

clean: ## Removes build output
	$(CARGO) clean
