#!/usr/bin/env bash
# run.sh [--quick]: other projects' own test suites, with the stock overlay driver
# and then with each engine of shiftoverlay: containers/storage (tests/*.bats, and
# drivers/graphtest on three file systems), podman (test/system) and buildah
# (tests). Ends with status 1 if something passes with overlay and not with
# shiftoverlay. Root only; the suites run in sandboxes (hack/sandbox.sh), and
# suite.sh says what is changed in them.
#
# --quick: a selection that takes less than ten minutes, overlay and auto only,
# for hack/test.sh; the table goes to $BUILD/conformance/quick.md.
#
# Variables:
#   CONF_SUITES   default "storage graphtest podman buildah"
#   CONF_DRIVERS  default "overlay auto idmap erofs metacopy"; also copyup. Without
#                 overlay, its results of an earlier run are compared with.
#   CONF_FILES    only these files, e.g. "idmaps.bats 170-run-userns.bats xfs"
#   CONF_FILTER   only tests whose names match; no table is made
#   CONF_JOBS     sandboxes at a time, default 2
#   CONF_LIMIT    seconds after which a file is ended, default 2400
#   CONF_OUT      default docs/conformance.md; with CONF_SUITES, CONF_DRIVERS or
#                 CONF_FILES default $BUILD/conformance/conformance.md
# The table has what is in the logs, $BUILD/conformance/logs; a run replaces those
# of its own suites, drivers and files. All of it takes about two hours.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"
here=$REPO/hack/conformance dir=$BUILD/conformance

# Left out: files that need a registry to log in to, the network, systemd, pasta,
# ssh, gpg, a terminal, CRIU, a remote podman or hardware, or that are about the
# command line, logs, events and limits only.
not_podman='^(012|015|032|035|085|090|150|180|220|250|251|252|253|255|260|270|271|272|280|300|420|450|500|505|520|550|600|610|620|700|750|760|850|900|950|999)-'
not_buildah='^(authenticate|cdi|help|mkcw|platforms|pull|push|registries|sbom|sign|source|ssh|lists|tutorial|blobcache)\.'
# Of the 464 tests of bud.bats, those that can say something about storage.
: "${CONF_BUD:=userns|user.?ns|idmap|volume|squash|chown|hard.?link|xattr|setuid|overlay|layer|leak|store|umask|mount|perms|permission|whiteout|special|symlink|stage|copy|add}"

partial=${CONF_SUITES:-}${CONF_DRIVERS:-}${CONF_FILES:-}
: "${CONF_LOGS:=$dir/logs}" "${CONF_JOBS:=2}" "${CONF_LIMIT:=2400}"
case ${1:-} in
'') ;;
--quick)
	CONF_LOGS=$dir/quick CONF_OUT=$dir/quick.md
	rm -rf "$CONF_LOGS"
	: "${CONF_DRIVERS:=overlay auto}"
	: "${CONF_FILES:=check.bats diff.bats idmaps.bats layers.bats split-store.bats stores.bats ext4 \
		005-info.bats 060-mount.bats 140-diff.bats 170-run-userns.bats 330-corrupt-images.bats 331-system-check.bats \
		mount.bats overlay.bats rename.bats squash.bats loglevel.bats}"
	;;
*)
	awk 'NR > 1 && !/^#/ { exit } NR > 1 { sub(/^# ?/, ""); print }' "$0"
	exit 2
	;;
esac
: "${CONF_SUITES:=storage graphtest podman buildah}" "${CONF_DRIVERS:=overlay auto idmap erofs metacopy}"
if [ -z "${CONF_OUT:-}" ]; then
	CONF_OUT=$REPO/docs/conformance.md
	if [ -n "$partial" ]; then
		CONF_OUT=$dir/conformance.md
	elif [ -z "${CONF_FILTER:-}" ]; then
		rm -rf "$CONF_LOGS"
	fi
fi
[ -z "${CONF_FILTER:-}" ] || CONF_LOGS=$dir/filtered
export CONF_LOGS CONF_LIMIT CONF_FILTER CONF_BUD

# files SUITE: which of its files are wanted.
files() {
	local all f
	case $1 in
	graphtest) all='ext4 xfs btrfs' ;;
	storage) all=$(cd "$dir/suites/storage" && ls ./*.bats) ;;
	podman) all=$(cd "$dir/suites/podman/system" && ls ./[0-9]*.bats) ;;
	buildah) all=$(cd "$dir/suites/buildah/tests" && ls ./*.bats) ;;
	*) die "unknown suite $1: one of storage, graphtest, podman, buildah" ;;
	esac
	for f in $all; do
		f=${f#./}
		if [ -n "${CONF_FILES:-}" ]; then
			[[ " ${CONF_FILES//[[:space:]]/ } " == *" $f "* ]] || continue
		else
			case $1 in
			podman) [[ ! $f =~ $not_podman ]] || continue ;;
			buildah) [[ ! $f =~ $not_buildah ]] || continue ;;
			esac
		fi
		echo "$f"
	done
}

# run DRIVER...: every suite with these drivers, CONF_JOBS sandboxes at a time.
run() {
	local suite driver list
	for driver; do
		for suite in $CONF_SUITES; do
			mapfile -t list < <(files "$suite")
			[ ${#list[@]} -gt 0 ] || continue
			while [ "$(jobs -rp | wc -l)" -ge "$CONF_JOBS" ]; do wait -n || failed=1; done
			"$here/suite.sh" "$suite" "$driver" "${list[@]}" &
		done
	done
	while [ -n "$(jobs -rp)" ]; do wait -n || failed=1; done
}

[ "$(id -u)" = 0 ] || die 'needs root (the suites run containers)'
need bats jq go busybox mkfs.ext4 mkfs.xfs mkfs.btrfs unshare
for driver in $CONF_DRIVERS; do
	case $driver in
	overlay | auto | idmap | erofs | metacopy | copyup) ;;
	*) die "unknown driver $driver: overlay, or an engine: auto, idmap, erofs, metacopy, copyup" ;;
	esac
done
"$here/build.sh"
failed=''
# shellcheck disable=SC2046 # process numbers
trap 'kill $(jobs -p) 2>/dev/null; wait; exit 143' TERM INT HUP
[[ " $CONF_DRIVERS " != *" overlay "* ]] || run overlay
# shellcheck disable=SC2046,SC2086 # lists
run $(printf '%s\n' $CONF_DRIVERS | grep -vx overlay || true)
[ -z "$failed" ] || die 'a sandbox could not be set up; see above'
if [ -n "${CONF_FILTER:-}" ]; then
	say "logs: $CONF_LOGS"
	exit
fi
"$dir/bin/conform" table -logs "$CONF_LOGS" -out "$CONF_OUT" \
	-head "kernel $(uname -r | sed 's/-.*//'), stores on ${SANDBOX_FS_TYPE:-ext4}; $(cat "$dir/versions"), $(bats --version | tr B b)"
