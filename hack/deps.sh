#!/usr/bin/env bash
# deps.sh: installs the Debian or Ubuntu packages that building and testing
# need and that are missing. Never prompts; asks no archive when all are there.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

packages=(
	# building podman, buildah, CRI-O and runc
	gcc make libc6-dev pkg-config libseccomp-dev libgpgme-dev libsystemd-dev
	# running them
	conmon catatonit netavark containernetworking-plugins iptables fuse-overlayfs uidmap ca-certificates
	# images, scratch file systems, tests
	busybox-static debootstrap e2fsprogs xfsprogs btrfs-progs erofs-utils util-linux mount acl attr libcap2-bin
	bats jq shellcheck xz-utils procps iproute2
)

[ -e /etc/debian_version ] ||
	die "not a Debian or Ubuntu system: install the equivalents of these packages by hand: ${packages[*]}"
missing=()
for p in "${packages[@]}"; do
	case $(dpkg-query -W -f '${db:Status-Status}' "$p" 2>/dev/null || true) in
	installed) ;;
	*) missing+=("$p") ;;
	esac
done

if [ ${#missing[@]} -eq 0 ]; then
	say "all ${#packages[@]} Debian packages are installed"
else
	install_packages "${missing[@]}"
fi

command -v go >/dev/null ||
	die "no Go toolchain on PATH: install Go $(sed -n 's/^go //p' "$REPO/go.mod") or newer (https://go.dev/doc/install)"
# Go of another version fetches the one that go.mod asks for by itself.
(cd "$REPO" && go version >/dev/null) || die "this Go cannot build the module: go.mod asks for $(sed -n 's/^go //p' "$REPO/go.mod")"
