# Common ground of the scripts in hack/; sourced, not run.
# shellcheck shell=bash
#
# Variables (all optional, from the environment):
#   BUILD  where everything that is built goes; default build/ in the repository

REPO=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
: "${BUILD:=$REPO/build}"
case $BUILD in /*) ;; *) BUILD=$REPO/$BUILD ;; esac
export REPO BUILD

# The storage library's btrfs driver and gpgme want headers that we do not need.
case ${GOFLAGS:-} in
*-tags=*) ;;
*) export GOFLAGS="-tags=containers_image_openpgp,exclude_graphdriver_btrfs ${GOFLAGS:-}" ;;
esac

# die MESSAGE: say why, and stop.
die() {
	echo "${0##*/}: $*" >&2
	exit 1
}

# say MESSAGE: progress, on standard error, with the time since the start.
say() {
	printf '[%4ds] %s\n' "$SECONDS" "$*" >&2
}

# install_packages PACKAGE...: Debian packages. Never prompts.
install_packages() {
	local apt=(apt-get -q -y --no-install-recommends -o Dpkg::Use-Pty=0 -o Dpkg::Options::=--force-confold)
	[ "$(id -u)" = 0 ] || die "missing packages: $*; run as root: apt-get install $*"
	say "installing: $*"
	export DEBIAN_FRONTEND=noninteractive
	# An index that is there may do; if not, fetch a new one and try again.
	if ! "${apt[@]}" install "$@" </dev/null >/dev/null 2>&1; then
		apt-get -q update </dev/null >&2
		"${apt[@]}" install "$@" </dev/null >&2
	fi
	say "installed $# packages"
}

# tree_version: the version of this tree: the newest tag's, or else 0~DATE of the
# last commit.
tree_version() {
	local v
	v=$(git -C "$REPO" describe --tags --abbrev=0 2>/dev/null ||
		git -C "$REPO" log -1 --format=0~%cd --date=format:%Y%m%d%H%M 2>/dev/null || echo 0~unknown)
	echo "${v#v}"
}

# need PROGRAM...: stop with the remedy when a program is missing.
need() {
	local p missing=()
	for p in "$@"; do
		command -v "$p" >/dev/null || missing+=("$p")
	done
	[ ${#missing[@]} -eq 0 ] || die "not found: ${missing[*]} (hack/deps.sh installs what is missing)"
}
