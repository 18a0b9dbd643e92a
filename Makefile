# `make demo` and `make test` are all the set-up there is; see README.md.

CARGO ?= cargo
export PATH := $(PATH):/usr/sbin:/sbin

BUILD_TOOLS := cc:gcc cc:libc6-dev
RUN_TOOLS := ip:iproute2 nft:nftables curl:curl unshare:util-linux
TEST_TOOLS := $(RUN_TOOLS) kubectl:kubernetes-client iptables:iptables ipset:ipset conntrack:conntrack

.PHONY: demo test check package-check page-check bench fmt docs-files

## Three pods, a Service and a client in namespaces of their own; nothing is left behind.
demo:
	@scripts/setup $(BUILD_TOOLS) $(RUN_TOOLS)
	$(CARGO) build --release --locked -p kube-proxy -p demo
	target/release/demo target/release/kube-proxy

## All tests. Those that program a kernel need root.
test:
	@scripts/setup $(BUILD_TOOLS) $(TEST_TOOLS)
	$(CARGO) test --workspace --locked

## What CI runs: format, lints, borders between crates, documentation, licences, tests, and what is in deploy/. Among the tests, what a change costs is counted at two
## sizes (crates/agent/tests/cost.rs); where valgrind is installed, instructions too.
check: package-check
	@scripts/setup $(BUILD_TOOLS) $(TEST_TOOLS)
	$(CARGO) fmt --all --check
	scripts/layers-check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --workspace --no-deps --document-private-items --locked
	command -v cargo-deny >/dev/null || $(CARGO) install --locked --debug cargo-deny
	$(CARGO) deny --all-features check licenses bans sources
	INSTA_UPDATE=no $(CARGO) test --workspace --locked

## What is in deploy/: manifests, chart, alert rules, dashboard, unit. Says which parts no tool was there for.
package-check:
	@scripts/setup python3:python3 kubectl:kubernetes-client
	@python3 -c 'import yaml' 2>/dev/null || scripts/setup the-python-module-yaml:python3-yaml
	scripts/package-check

## What it costs, at SERVICES="100 1000 ..." (up to 100000) x ENDPOINTS; beside any other kube-proxy with
## PEER=/path/to/kube-proxy PEER_ARGS='...'; in MODE=iptables with FLAVOUR=nft or legacy. Results are in target/bench;
## BENCH_ARGS=--help tells of the rest.
SERVICES ?= 100 1000 10000
ENDPOINTS ?= 10
MODE ?= nftables
FLAVOUR ?= nft
PEER ?=
PEER_ARGS ?=
BENCH_ARGS ?=
empty :=
comma := ,
bench:
	@scripts/setup $(BUILD_TOOLS) $(RUN_TOOLS) $(if $(filter iptables,$(MODE)),iptables:iptables)
	$(CARGO) build --release --locked -p kube-proxy -p bench
	target/release/bench --services $(subst $(empty) $(empty),$(comma),$(strip $(SERVICES))) --endpoints $(ENDPOINTS) \
		--mode $(MODE) --flavour $(FLAVOUR) $(if $(PEER),--peer '$(PEER)' --peer-arguments='$(PEER_ARGS)') $(BENCH_ARGS) target/release/kube-proxy

fmt:
	$(CARGO) fmt --all

## Drives the page in headless Chromium, and makes docs/screenshots anew. As root.
page-check:
	@scripts/setup $(BUILD_TOOLS) $(RUN_TOOLS) chromium:chromium chromedriver:chromium-driver
	$(CARGO) build --locked -p kube-proxy
	scripts/page-check target/debug/kube-proxy --screenshots docs/screenshots

## docs/flags.md; and in dist/, for packages, the manual pages and completions for bash, zsh and fish.
docs-files:
	$(CARGO) run --locked -p cli --example docs_files -- docs dist
