#!/usr/bin/env bash
# selinux.sh: containers with levels of their own on shiftoverlay in a virtual
# machine that enforces SELinux (trixie's policy), beside plain overlay. Software
# emulation; nothing stays behind but $BUILD/vm. Root only.
#
# Variables: KERNEL (series; default newest); TIMEOUT (seconds); RETRY (1)
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
: "${KERNEL:=newest}"
need go
vm_setup
mkdir -p "$VM/bin"
(cd "$REPO" && CGO_ENABLED=0 go build -trimpath -o "$VM/bin/plugin-test" ./cmd/plugin-test)
"$REPO/hack/images.sh" busybox
dir=$("$REPO/hack/vm/kernel.sh" "$KERNEL")
say "booting ${dir##*/}, SELinux enforcing"
rm -rf "$VM/selinux"
mkdir -p "$VM/selinux"
SELINUX=1 TIMEOUT=${TIMEOUT:-3600} MEM=2048 SMP=${SMP:-2} OUTDIR=$VM/selinux CONSOLE=$VM/selinux/console RETRY=${RETRY:-1} \
	"$REPO/hack/vm/run.sh" "$dir" "$REPO/tests/vm/selinux.sh" "$VM/bin/plugin-test" "$BUILD/images/busybox.tar" {vm_lock}>&- || die "failed with $?; see above and $VM/selinux"
say 'SELinux: all well'
