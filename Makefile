# `make demo` and `make test` are all the set-up there is; see README.md.

CARGO ?= cargo
empty :=
comma := ,
export PATH := $(PATH):/usr/sbin:/sbin
# Most tests wait for packets or for time to pass, so more of them at a time than there are processors.
export RUST_TEST_THREADS ?= 4

BUILD_TOOLS := cc:gcc cc:libc6-dev
# netbase: without it nft shows the numbers of protocols, not their names.
RUN_TOOLS := ip:iproute2 nft:nftables curl:curl unshare:util-linux /etc/protocols:netbase
BPF_TOOLS := clang-14:clang-14 llvm-objdump-14:llvm-14
TEST_TOOLS := $(RUN_TOOLS) $(BPF_TOOLS) iptables:iptables ipset:ipset conntrack:conntrack tmux:tmux h2load:nghttp2-client

.PHONY: demo bpf test ebpf-memory guest-test guest-smoke kernels neighbours windows windows-check check package-check page-check kubectl-check image release install upgrade-test cluster bench bench-http bench-questions conformance fuzz fmt docs-files

## Three pods, a Service and a client in namespaces of their own; nothing is left behind.
demo:
	@scripts/setup $(BUILD_TOOLS) $(RUN_TOOLS)
	$(CARGO) build --profile demo --locked -p kube-proxy -p demo
	target/demo/demo target/demo/kube-proxy

## The listing of bpf/ in crates/ebpf anew, after a change there.
bpf:
	@scripts/setup $(BUILD_TOOLS) $(BPF_TOOLS)
	UPDATE_LISTING=1 $(CARGO) test --locked -p ebpf --test listing

## All tests. Those that program a kernel need root.
test:
	@scripts/setup $(BUILD_TOOLS) $(TEST_TOOLS)
	$(CARGO) test --workspace --locked

## Maps that the kernel has no memory for: as root, with cgroups of version 1 for memory.
ebpf-memory:
	$(CARGO) test --locked -p backend-ebpf --test socket -- --ignored

## Tests that need IPVS, dummy devices or SCTP, in a guest whose kernel has them, emulated by QEMU: half an hour, and several times that on
## a machine that does much else. What passed is not run again until a program or the kernel is another one, so that a run that was
## interrupted can be taken up. The results are in docs/guest-test.md. With KUBERNETES_BIN=/folder/of/upstream's/kube-proxy, the take-over
## is from that.
GUEST_TOOLS := qemu-system-x86_64:qemu-system-x86 depmod:kmod cpio:cpio mke2fs:e2fsprogs xz:xz-utils python3:python3
guest-test:
	@scripts/setup $(BUILD_TOOLS) $(GUEST_TOOLS)
	CARGO='$(CARGO)' scripts/guest test --timeout 1800 --per-boot 8 --report docs/guest-test.md \
		kernel/ipvs fakes/ipvs_parity kube-proxy/e2e:ignored,-neighbours::,-upgrade::,-userspace::,-matrix::userspace::

## The packet contract of every mode, and programs at the socket, with Debian's kernels in the guest. The results are in docs/kernels.md.
KERNELS ?= 5.10 6.1 6.12 7
KERNEL_E2E := matrix::nftables matrix::iptables_nft matrix::iptables_legacy matrix::ipvs matrix::ebpf matrix::userspace
KERNEL_E2E := $(addsuffix ::every_line_of_the_contract_holds,$(KERNEL_E2E)) \
	traffic::nftables::what_goes_through_is_counted_in_every_mode \
	sctp::sctp_is_served_in_mode_nftables sctp::sctp_is_served_in_mode_iptables sctp::sctp_is_served_in_mode_ipvs
KERNEL_SOCKET := verifier::the_verifier_needs_few_steps \
	translation::a_connection_goes_to_an_endpoint_and_shows_the_service translation::connections_over_ipv6_are_translated_too \
	translation::node_ports_are_served_at_the_nodes_addresses_only \
	translation::what_has_to_be_masqueraded_is_translated_for_the_host_alone \
	translation::what_is_pinned_serves_while_nobody_is_there_and_is_taken_over_without_a_write \
	datagrams::answers_are_those_of_the_service_over_ipv4 datagrams::answers_are_those_of_the_service_over_ipv6 \
	endings::sockets_of_an_endpoint_that_is_gone_are_ended_in_every_namespace_and_no_others
joined = $(subst $(empty) $(empty),$(comma),$(strip $(1)))
kernels:
	@scripts/setup $(BUILD_TOOLS) $(GUEST_TOOLS)
	CARGO='$(CARGO)' scripts/guest test --timeout 1800 $(addprefix --kernel ,$(KERNELS)) --report docs/kernels.md \
		backend-ebpf/socket:$(call joined,$(KERNEL_SOCKET)) kube-proxy/e2e:$(call joined,$(KERNEL_E2E))

## Of those, what shows soonest whether mode ipvs works; part of `check`.
GUEST_SMOKE := matrix::ipvs::every_line_of_the_contract_holds \
	ipvs::kills_and_restarts_fail_no_connection_and_change_nothing \
	ipvs::a_drain_of_a_thousand_connections_cuts_none_and_ends_with_them \
	ipvs::switches::a_change_of_mode_and_back_fails_no_connection \
	sctp::sctp_is_served_in_mode_ipvs
guest-smoke:
	@scripts/setup $(BUILD_TOOLS) $(GUEST_TOOLS)
	CARGO='$(CARGO)' scripts/guest test --again --timeout 1800 kernel/ipvs fakes/ipvs_parity \
		kube-proxy/e2e:$(call joined,$(GUEST_SMOKE))

## The program for Windows, and what it does under wine beside an HNS in memory (crates/kube-proxy/tests/windows). Debian 12 has
## what is needed. Nothing of it was ever run on Windows.
WINDOWS_DIR := target/windows/x86_64-pc-windows-gnu/debug
windows:
	@scripts/setup $(BUILD_TOOLS) wine:wine /usr/lib/wine/wine64:wine64
	CARGO='$(CARGO)' scripts/windows build --locked -p kube-proxy -p hns --bins --example hns_stub
	x86_64-w64-mingw32-gcc -shared -O2 -o $(WINDOWS_DIR)/bcryptprimitives.dll crates/kube-proxy/tests/windows/bcryptprimitives.c -ladvapi32
	env -u DISPLAY WINEDEBUG=-all WINEPREFIX=$(CURDIR)/target/windows/wine wineboot --init
	WINEPREFIX=$(CURDIR)/target/windows/wine KUBE_PROXY_EXE=$(CURDIR)/$(WINDOWS_DIR)/kube-proxy.exe \
		HNS_STUB=$(CURDIR)/$(WINDOWS_DIR)/examples/hns_stub.dll BCRYPTPRIMITIVES=$(CURDIR)/$(WINDOWS_DIR)/bcryptprimitives.dll \
		$(CARGO) test --locked -p kube-proxy --test windows -- --ignored
	WINEPREFIX=$(CURDIR)/target/windows/wine wineserver -k || true

## Whether the program compiles for Windows, and lints of what is there alone; part of `check` where nothing can be run.
windows-check:
	@scripts/setup $(BUILD_TOOLS)
	CARGO='$(CARGO)' scripts/windows lint --locked -p kube-proxy -p hns --bins --lib --examples

## The packet contract in each mode beside the rules of CNIs, firewalls and agents, and beside those programs of them that Debian has: docs/cnis.md. Twenty
## minutes.
NEIGHBOUR_TOOLS := ufw:ufw firewalld:firewalld dbus-daemon:dbus /usr/sbin/dockerd:docker.io
neighbours:
	@scripts/setup $(BUILD_TOOLS) $(TEST_TOOLS) $(NEIGHBOUR_TOOLS)
	$(CARGO) test --locked -p kube-proxy --test e2e -- --include-ignored --test-threads 2 neighbours::

## From an earlier version (FROM=tag or commit; without it the last release) to this one and back, under load. Builds both; the results are in
## docs/upgrades.md.
upgrade-test:
	@scripts/setup $(BUILD_TOOLS) $(TEST_TOOLS) git:git python3:python3
	CARGO='$(CARGO)' scripts/upgrade-test

## A cluster on this machine, and restarts, kills, changes of the ConfigMap and of the mode under load; as root. With KUBERNETES_BIN=/folder, the control plane is
## the real one of that folder; if it has a kubelet too, kube-controller-manager and kube-scheduler, a second cluster has real kubelets, and HELM=/path/of/helm[:/another] and FLANNELD=/path are tried
## there. Builds the images unless CLUSTER_ARGS="--program FILE". The results are in docs/cluster.md.
KUBELET_TOOLS := containerd:containerd runc:runc /usr/lib/cni/bridge:containernetworking-plugins iptables:iptables gcc:gcc
cluster:
	@scripts/setup podman:podman runc:runc debootstrap:debootstrap python3:python3 kubectl:kubernetes-client openssl:openssl git:git $(RUN_TOOLS) sysctl:procps
	@python3 -c 'import yaml' 2>/dev/null || scripts/setup the-python-module-yaml:python3-yaml
	CARGO='$(CARGO)' $(if $(KUBERNETES_BIN),KUBERNETES_BIN='$(KUBERNETES_BIN)') scripts/cluster $(CLUSTER_ARGS)
ifneq ($(wildcard $(KUBERNETES_BIN)/kubelet),)
	@scripts/setup $(KUBELET_TOOLS)
	CARGO='$(CARGO)' KUBERNETES_BIN='$(KUBERNETES_BIN)' HELM='$(HELM)' FLANNELD='$(FLANNELD)' scripts/kubelet-cluster $(CLUSTER_ARGS)
endif

## What CI runs: format, lints, borders between crates, documentation, licences, tests, and what is in deploy/. Among the tests, what a change costs is counted at two
## sizes (crates/agent/tests/cost.rs); where valgrind is installed, instructions too.
# With wine, which root can have, the program for Windows is also run.
WINDOWS := $(if $(filter 0,$(shell id -u))$(shell command -v wine),windows,windows-check)
check: package-check
	@scripts/setup $(BUILD_TOOLS) $(TEST_TOOLS)
	$(CARGO) fmt --all --check
	scripts/layers-check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --workspace --no-deps --document-private-items --locked
	command -v cargo-deny >/dev/null || $(CARGO) install --locked --debug cargo-deny
	$(CARGO) deny --all-features check licenses bans sources
	INSTA_UPDATE=no $(CARGO) test --workspace --locked --no-fail-fast
	$(MAKE) guest-smoke
	$(MAKE) $(WINDOWS)

## HTTP by request between clients and servers that are not ours: gRPC and WebSocket of PyPI; traces for a collector of OpenTelemetry. Not part of `check`, since it asks PyPI.
conformance:
	@scripts/setup $(BUILD_TOOLS) python3:python3 /usr/share/doc/python3-venv:python3-venv
	test -x target/conformance/bin/python3 || python3 -m venv target/conformance
	target/conformance/bin/python3 -m pip install -q grpcio==1.85.3 websockets==17.4 opentelemetry-proto==1.45.0
	$(CARGO) build --locked -p http-proxy --example serve -p backend-userspace --example export
	target/conformance/bin/python3 scripts/http-conformance target/debug/examples/serve target/debug/examples/export

## What connections and requests through a worker cost, beside nginx and HAProxy, on this machine. As root.
REQUESTS ?= 100000
bench-http:
	@scripts/setup $(BUILD_TOOLS) $(RUN_TOOLS) python3:python3 h2load:nghttp2-client ab:apache2-utils nginx:nginx-light \
		/usr/lib/nginx/modules/ngx_stream_module.so:libnginx-mod-stream haproxy:haproxy
	$(CARGO) build --release --locked -p proxy --example carry
	scripts/http-bench target/release/examples/carry $(REQUESTS)

## What is in deploy/: manifests, chart, alert rules, dashboard, unit. Says which parts no tool was there for.
package-check:
	@scripts/setup python3:python3 kubectl:kubernetes-client
	@python3 -c 'import yaml' 2>/dev/null || scripts/setup the-python-module-yaml:python3-yaml
	scripts/package-check

## Builds the images and runs them as the DaemonSet does, without any image registry. As root; not part of `check`, since it is a release build.
image:
	@scripts/setup podman:podman runc:runc debootstrap:debootstrap python3:python3 kubectl:kubernetes-client $(RUN_TOOLS) sysctl:procps
	@python3 -c 'import yaml' 2>/dev/null || scripts/setup the-python-module-yaml:python3-yaml
	scripts/image-check

## All that is released, in dist/VERSION: static programs for amd64 and arm64, Debian packages, an image, chart, manifests, manual pages, what it
## is made of, checksums. Two release builds; equal sources give equal bytes (`scripts/release --again FOLDER` compares).
RELEASE_TOOLS := musl-gcc:musl-tools aarch64-linux-gnu-gcc:gcc-aarch64-linux-gnu /usr/aarch64-linux-gnu/include:libc6-dev-arm64-cross \
	qemu-aarch64-static:qemu-user-static objcopy:binutils python3:python3 git:git /etc/protocols:netbase \
	/etc/ssl/certs/ca-certificates.crt:ca-certificates
release:
	@scripts/setup $(BUILD_TOOLS) $(RELEASE_TOOLS)
	CARGO='$(CARGO)' scripts/release $(RELEASE_ARGS)

## The program on this machine, with its plugin of kubectl, manual pages and completions, and the unit of systemd.
PREFIX ?= /usr/local
DESTDIR ?=
install:
	@scripts/setup $(BUILD_TOOLS)
	$(CARGO) build --release --locked -p kube-proxy
	$(CARGO) run --locked -p cli --example docs_files -- target dist
	install -D -m 0755 target/release/kube-proxy $(DESTDIR)$(PREFIX)/bin/kube-proxy
	ln -sf kube-proxy $(DESTDIR)$(PREFIX)/bin/kubectl-kproxy
	install -d $(DESTDIR)$(PREFIX)/share/man/man8 $(DESTDIR)/etc/systemd/system $(DESTDIR)/etc/kube-proxy
	install -m 0644 dist/man/*.8 $(DESTDIR)$(PREFIX)/share/man/man8
	install -D -m 0644 dist/kube-proxy.bash $(DESTDIR)$(PREFIX)/share/bash-completion/completions/kube-proxy
	install -D -m 0644 dist/_kube-proxy $(DESTDIR)$(PREFIX)/share/zsh/site-functions/_kube-proxy
	install -D -m 0644 dist/kube-proxy.fish $(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d/kube-proxy.fish
	sed 's,/usr/local/bin/,$(PREFIX)/bin/,' deploy/systemd/kube-proxy.service > $(DESTDIR)/etc/systemd/system/kube-proxy.service
	test -e $(DESTDIR)/etc/kube-proxy/config.yaml || install -m 0644 deploy/systemd/config.yaml $(DESTDIR)/etc/kube-proxy/config.yaml

## What it costs, at SERVICES="100 1000 ..." (up to 100000) x ENDPOINTS; beside any other kube-proxy with
## PEER=/path/to/kube-proxy PEER_ARGS='...'; in MODE=iptables with FLAVOUR=nft or legacy. Results are in target/bench;
## BENCH_ARGS=--help tells of the rest. MODE=ipvs runs in the guest, beside mode nftables there: only ratios count. MODE=ebpf is
## measured beside mode nftables, too.
SERVICES ?= 100 1000 10000
ENDPOINTS ?= 10
MODE ?= nftables
FLAVOUR ?= nft
PEER ?=
PEER_ARGS ?=
BENCH_ARGS ?=
BENCH_GUEST_ARGS := --rounds 1 --changes 20 --churn-rate 50
bench:
	@scripts/setup $(BUILD_TOOLS) $(RUN_TOOLS) $(if $(filter iptables,$(MODE)),iptables:iptables) $(if $(filter ipvs,$(MODE)),$(GUEST_TOOLS))
	$(CARGO) build --release --locked -p kube-proxy -p bench
ifeq ($(MODE),ipvs)
	scripts/guest run --timeout 14400 --memory 3072 --file target/release/bench --file target/release/kube-proxy --out target/bench -- \
		./bench --services $(subst $(empty) $(empty),$(comma),$(strip $(SERVICES))) --endpoints $(ENDPOINTS) --mode ipvs \
		--peer ./kube-proxy --peer-arguments=--proxy-mode=nftables $(BENCH_GUEST_ARGS) $(BENCH_ARGS) --folder /out ./kube-proxy
else
	target/release/bench --services $(subst $(empty) $(empty),$(comma),$(strip $(SERVICES))) --endpoints $(ENDPOINTS) \
		--mode $(MODE) --flavour $(FLAVOUR) $(if $(filter ebpf,$(MODE)),--peer target/release/kube-proxy --peer-arguments=--proxy-mode=nftables) $(if $(PEER),--peer '$(PEER)' --peer-arguments='$(PEER_ARGS)') $(BENCH_ARGS) target/release/kube-proxy
endif

## Damaged input for all decoders and parsers, for SECONDS each, with other random numbers every time.
SECONDS ?= 60
FUZZ_PROFILE ?= release
fuzz:
	@scripts/setup $(BUILD_TOOLS)
	scripts/fuzz $(SECONDS) $(FUZZ_PROFILE)

fmt:
	$(CARGO) fmt --all

## Drives the page in headless Chromium, and makes docs/screenshots anew. As root.
page-check:
	@scripts/setup $(BUILD_TOOLS) $(RUN_TOOLS) chromium:chromium chromedriver:chromium-driver
	$(CARGO) build --locked -p kube-proxy
	scripts/page-check target/debug/kube-proxy --screenshots docs/screenshots

## The plugin of kubectl by a real kubectl, 1.31 or newer, which Debian 12 does not have. As root.
KUBECTL ?= kubectl
kubectl-check:
	@scripts/setup $(BUILD_TOOLS) $(RUN_TOOLS) python3:python3
	$(CARGO) build --locked -p kube-proxy
	scripts/kubectl-check "$$(command -v $(KUBECTL))" target/debug/kube-proxy

## How long commands and the page's first paint take with 10,000 Services, which has limits. As root. With QUESTIONS_PROFILE=demo it is sooner built.
QUESTIONS_PROFILE ?= release
bench-questions:
	@scripts/setup $(BUILD_TOOLS) $(RUN_TOOLS) chromium:chromium chromedriver:chromium-driver
	$(CARGO) build --profile $(QUESTIONS_PROFILE) --locked -p kube-proxy
	scripts/page-check target/$(QUESTIONS_PROFILE)/kube-proxy --limits

## docs/flags.md; and in dist/, for packages, the manual pages and completions for bash, zsh and fish.
docs-files:
	$(CARGO) run --locked -p cli --example docs_files -- docs dist
