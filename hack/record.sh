#!/usr/bin/env bash
# record.sh: what `shiftoverlay info`, `warm` and `ls` look like in a terminal, in
# docs/pictures/terminal.svg (animated). Nothing in it is made up but the typing: the
# commands run in a sandbox while termtosvg records, on an image of 70,000 files, with
# the engine erofs and without idmapped mounts (as on Linux 5.10), so that there is
# something to see. Root only. Needs termtosvg (Debian's package).
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/sandbox.sh"

out=$REPO/docs/pictures/terminal.svg
case ${1:-} in
'') need termtosvg ;;
scene) ;;
*) die "no arguments" ;;
esac

# type_and_run COMMAND [PAUSE]: show a prompt and somebody who types the command, and run it.
type_and_run() {
	local i
	printf '# '
	for ((i = 0; i < ${#1}; i++)); do
		printf '%s' "${1:i:1}"
		sleep 0.03
	done
	sleep 0.4
	echo
	bash -c "$1"
	sleep "${2:-2}"
	echo
}

if [ "${1:-}" = scene ]; then
	type_and_run 'shiftoverlay info' 5
	type_and_run 'shiftoverlay warm --userns auto:size=65536 --count 3 debian' 3
	type_and_run 'podman run --rm --userns=auto:size=65536 debian cat /proc/self/uid_map' 3
	type_and_run 'shiftoverlay ls' 6
	exit
fi

sandbox_enter "$@"
# At the usual places, as a machine has them.
sed -e 's|^graphroot.*|graphroot = "/var/lib/containers/storage"|' -e 's|^runroot.*|runroot = "/run/containers/storage"|' \
	"$CONTAINERS_STORAGE_CONF" >/etc/containers/storage.conf
export SHIFTOVERLAY_CONF=/etc/containers/shiftoverlay.conf
sandbox_engine erofs 'erofs_without = "idmap"'
unset CONTAINERS_STORAGE_CONF SHIFTOVERLAY_CONF
podman import -q "$BUILD/images/big.tar" localhost/debian >/dev/null
podman run --rm localhost/debian true # what podman itself reads is in memory
cd /
# termtosvg ends with its standard input; script gives it a terminal.
script -qec "termtosvg '$SANDBOX/terminal.svg' -g 148x40 -m 40 -M 6000 -D 3000 -t window_frame -c '$REPO/hack/record.sh scene'" /dev/null </dev/null >"$SANDBOX/log" ||
	die "termtosvg failed: $(cat "$SANDBOX/log")"
[ "$(stat -c %s "$SANDBOX/terminal.svg")" -lt 300000 ] || die "the recording has more than 300 KB"
# Not every viewer knows the style sheet's white-space.
sed -e '0,/<svg /s//<svg xml:space="preserve" /' "$SANDBOX/terminal.svg" >"$out"
say "recorded: $out"
