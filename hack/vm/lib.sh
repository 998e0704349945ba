# Common ground of hack/vm: a small virtual machine in software emulation, made
# of Debian packages below $BUILD/vm. Sourced, not run.
# shellcheck shell=bash
#
# Never KVM: a machine may have /dev/kvm and yet be unable to boot Debian's kernels.
#
# Variables (all optional):
#   DEBIAN_MIRROR  default: what apt uses for this machine, else debootstrap's own
. "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"

VM=$BUILD/vm
export VM VM_SUITE=trixie # the first whose policy knows containers

# vm_install PACKAGE...: install what is missing; with -t SUITE first.
vm_install() {
	local from=() p missing=()
	[ "$1" != -t ] || { from=(-t "$2") && shift 2; }
	for p in "$@"; do
		[ "$(dpkg-query -W -f '${db:Status-Status}' "$p" 2>/dev/null)" = installed ] || missing+=("$p")
	done
	[ ${#missing[@]} -gt 0 ] || return 0
	say "installing: ${missing[*]}"
	DEBIAN_FRONTEND=noninteractive apt-get -q -y --no-install-recommends -o Dpkg::Use-Pty=0 \
		"${from[@]}" install "${missing[@]}" </dev/null >>"$VM/install.log" 2>&1 ||
		die "cannot install ${missing[*]}; the whole output is in $VM/install.log"
}

# vm_qemu: qemu of backports. Bookworm's own (7.2) emulates cmpxchg16b wrongly:
# Linux 6.12 panics in it at random places.
vm_qemu() {
	local version
	if command -v qemu-system-x86_64 >/dev/null; then
		version=$(qemu-system-x86_64 --version | sed -n 's/.*version \([0-9]*\).*/\1/p')
		[ "${version:-0}" -lt 8 ] || return 0
	fi
	# The machine's own package sources stay as they are: the archive is named
	# for this installation only.
	if [ "$(. /etc/os-release && echo "${VERSION_CODENAME:-}")" = bookworm ]; then
		local list=$VM/backports.list
		printf 'deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] %s/debian bookworm-backports main\n' "$(vm_mirror)" >"$list"
		local state=$VM/backports
		mkdir -p "$state/partial"
		cat /etc/apt/sources.list /etc/apt/sources.list.d/*.list 2>/dev/null >>"$list" || true
		printf 'Dir::Etc::sourcelist "%s";\nDir::State::lists "%s";\n' "$list" "$state" >"$VM/backports.conf"
		APT_CONFIG=$VM/backports.conf apt-get -q update </dev/null >>"$VM/install.log" 2>&1 ||
			die "the package archive does not answer; see $VM/install.log"
		APT_CONFIG=$VM/backports.conf vm_install -t bookworm-backports qemu-system-x86
	else
		apt-get -q update </dev/null >>"$VM/install.log" 2>&1 || true
		vm_install qemu-system-x86
	fi
}

# vm_mirror: where Debian's packages come from.
vm_mirror() {
	local m=${DEBIAN_MIRROR:-}
	[ -n "$m" ] || m=$(cat /etc/apt/sources.list.d/*.sources /etc/apt/sources.list 2>/dev/null |
		grep -oE 'https?://[^ @]+/debian/?( |$)' | head -n 1 | sed -E 's#/debian/? *$##')
	[ -n "$m" ] || m=$(sed -nE 's,^DEF_MIRROR="(.*)/debian/?"$,\1,p' "$(command -v debootstrap)")
	[ -n "$m" ] || die 'where are Debian packages to be had? Set DEBIAN_MIRROR, without /debian at its end'
	echo "$m"
}

# vm_setup: everything but kernels: programs, the private apt state, the root image.
vm_setup() {
	[ "$(id -u)" = 0 ] || die 'needs root (debootstrap, labels on files)'
	[ -e /etc/debian_version ] || die 'needs Debian or Ubuntu: kernels and root image are made of their packages'
	need apt-get dpkg unshare flock
	mkdir -p "$VM"
	exec {vm_lock}>"$VM/.lock"
	flock -n "$vm_lock" || { say 'another one is using build/vm: waiting' && flock "$vm_lock"; }
	local p=(kmod cpio busybox-static debootstrap e2fsprogs xz-utils zstd file debian-archive-keyring jq)
	for c in "${p[@]}"; do
		dpkg-query -W -f '${db:Status-Status}' "$c" 2>/dev/null | grep -q '^installed' || { apt-get -q update </dev/null >>"$VM/install.log" 2>&1 || true; break; }
	done
	vm_install "${p[@]}"
	vm_qemu
	"$REPO/hack/vm/apt.sh"
	"$REPO/hack/vm/rootfs.sh"
}
