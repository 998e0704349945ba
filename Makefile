# `make help` lists the targets. Everything that is built goes to $(BUILD).

BUILD ?= $(CURDIR)/build
GO ?= go
# The storage library's btrfs driver and gpgme want headers that we do not need.
TAGS := containers_image_openpgp,exclude_graphdriver_btrfs
COMMANDS = $(notdir $(wildcard cmd/*))

export BUILD := $(abspath $(BUILD))
export GOFLAGS := -tags=$(TAGS) $(GOFLAGS)
export FILTER FILES FUZZTIME STEPS DESTDIR PREFIX

SHELL := /bin/bash
.DEFAULT_GOAL := build
.DELETE_ON_ERROR:

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo
	@echo '  Variables: BUILD=folder  FILTER=regexp and FILES=list (bats)  FUZZTIME=10s  STEPS="lint unit" (test)'

.PHONY: build
build: ## Build our own commands
	@mkdir -p $(BUILD)
	$(GO) build ./...
	@for c in $(COMMANDS); do $(GO) build -trimpath -o $(BUILD)/$$c ./cmd/$$c && echo "$(BUILD)/$$c" || exit 1; done

.PHONY: deps
deps: ## Install the Debian packages that are missing
	@hack/deps.sh

.PHONY: podman buildah crio runc
podman: deps ## Build podman with the driver compiled in
	@hack/build-tools.sh podman
buildah: deps ## Build buildah with the driver compiled in
	@hack/build-tools.sh buildah
crio: deps ## Build CRI-O with the driver compiled in, and what its tests need
	@hack/build-tools.sh crio runc cri conform
runc: deps ## Build runc
	@hack/build-tools.sh runc
.PHONY: plugin-test
plugin-test: deps ## Build plugin-test, the test host without podman
	@hack/build-tools.sh plugin-test
.PHONY: shiftoverlay
shiftoverlay: deps ## Build shiftoverlay, the operator's tool
	@hack/build-tools.sh shiftoverlay

.PHONY: shiftoverlay-mount stock
shiftoverlay-mount: deps ## Build shiftoverlay-mount, the mount_program for an unmodified podman
	@hack/build-tools.sh shiftoverlay-mount
stock: deps ## Fetch the distribution's own podman and buildah, to try shiftoverlay-mount with
	@hack/stock.sh

.PHONY: newer test-newer
newer: deps ## Build podman 5.8 and 6.0 and their buildahs as they are, to try shiftoverlay-mount with
	@hack/build-tools.sh newer
test-newer: newer runc shiftoverlay-mount images ## The tests of shiftoverlay-mount with those (about 20 minutes the first time, 7 later; not part of test)
	@hack/test-newer.sh

.PHONY: images
images: deps ## Make the test images (busybox, minbase, big)
	@hack/images.sh

.PHONY: lint
lint: ## golangci-lint, shellcheck, house rules
	@hack/lint.sh

.PHONY: fmt
fmt: ## Format the Go code and apply the linter's own fixes
	@hack/lint.sh --fix

.PHONY: unit
unit: ## Unit tests with the race detector (root tests too, when root)
	@hack/go-test.sh $(BUILD)/test/unit.json -race ./...

.PHONY: root-test
root-test: ## All Go tests as root in a sandbox; none may be skipped
	@SHIFT_TEST_MUST_RUN=all hack/go-test.sh $(BUILD)/test/root.json ./...

.PHONY: bats
bats: podman buildah crio runc plugin-test shiftoverlay shiftoverlay-mount stock packages images ## Integration tests with real podman and buildah (FILTER=regexp: some)
	@hack/bats.sh

.PHONY: fuzz
fuzz: ## Every fuzz test for ten minutes (FUZZTIME)
	@FUZZTIME=$${FUZZTIME:-10m} hack/fuzz.sh

.PHONY: bats-rootless
bats-rootless: podman buildah runc plugin-test shiftoverlay images ## Integration tests again, as an ordinary user
	@ROOTLESS=1 hack/bats.sh $(BUILD)/test/bats-rootless.tap

.PHONY: fuzz-short
fuzz-short: ## Every fuzz test for FUZZTIME
	@hack/fuzz.sh

.PHONY: demo
demo: podman runc images ## podman run --userns=auto on shiftoverlay, timed beside plain overlay
	@hack/demo.sh

.PHONY: bench
bench: podman runc ## Every way to shift, measured: tables, samples and plots to docs/bench (takes a while; hack/bench.sh says how to do less)
	@hack/bench.sh

.PHONY: record
record: podman runc shiftoverlay images ## Record shiftoverlay in a terminal: docs/pictures/terminal.svg
	@hack/record.sh

.PHONY: bench-commit
bench-commit: plugin-test podman runc images ## What commit, diff and build of one changed file cost on a big image
	@hack/bench-commit.sh

.PHONY: bench-warm
bench-warm: shiftoverlay podman runc images ## What `shiftoverlay warm` costs those who work beside it
	@hack/bench-warm.sh
.PHONY: torture torture-short
torture: podman runc images ## Break stores on purpose and see that nothing is lost: kills, full disks, power cuts, ... (up to an hour; hack/torture.sh says how to do less)
	@hack/torture.sh
torture-short: podman runc images ## The same in five minutes, from TORTURE_SEED
	@hack/torture.sh --short

.PHONY: bench-rootless
bench-rootless: podman runc images ## What a mapping costs an ordinary user: table to docs/bench/rootless.md
	@hack/bench-rootless.sh

.PHONY: conformance
conformance: deps ## The storage library's, podman's and buildah's own tests with overlay and every engine: table to docs/conformance.md (hours; hack/conformance/run.sh says how to do less)
	@hack/conformance/run.sh

.PHONY: vm-matrix vm-selinux
vm-matrix: podman runc ## The driver on Debian's kernels, in emulation: docs/kernels.md (hours; hack/vm/matrix.sh says how to do less)
	@hack/vm/matrix.sh
vm-selinux: deps ## Containers with SELinux enforcing, in emulation
	@hack/vm/selinux.sh

.PHONY: install uninstall packages
install: deps ## Build and install our programs, manual pages and completions below $(DESTDIR)$(PREFIX), default /usr/local
	@hack/install.sh
uninstall: ## Remove what install installs
	@hack/install.sh --remove
packages: deps ## Make .deb and .rpm packages in $(BUILD)/packages
	@hack/packages.sh

.PHONY: test
test: ## Everything CI runs, with a summary at the end
	@hack/test.sh

.PHONY: clean
clean: ## Remove the build folder
	rm -rf -- "$(BUILD)"
