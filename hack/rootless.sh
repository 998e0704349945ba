#!/usr/bin/env bash
# rootless.sh [--unshare] COMMAND [ARG...]
#
# Runs COMMAND in a sandbox (sandbox.sh) as an ordinary user who was made for it:
# in the sandbox's /etc/passwd, /etc/group, /etc/subuid and /etc/subgid, with a
# home and a runtime folder, newuidmap and newgidmap, and no other privilege. With
# --unshare COMMAND is root of the user namespace in which the user's podman works
# (podman unshare), and can look at files that belong to containers.
#
# COMMAND starts in the repository, which it cannot write to, and finds a store as with sandbox.sh: through XDG_CONFIG_HOME instead of
# CONTAINERS_STORAGE_CONF, from which podman would take it for the system's file.
#
# Variables: those of sandbox.sh. COMMAND sees SANDBOX_ROOTLESS=1, and SANDBOX_FS
# is the user's own folder on the scratch file system, and $SANDBOX/user-disk a
# small file system of his.
. "$(dirname "${BASH_SOURCE[0]}")/sandbox.sh"

USER_NAME=shifter USER_ID=1500

# user_make: the user, with sub IDs 100000 to 1099999.
user_make() {
	need setpriv newuidmap newgidmap
	echo "$USER_NAME:x:$USER_ID:$USER_ID::$SANDBOX_FS/user/home:/bin/bash" >>/etc/passwd
	echo "$USER_NAME:x:$USER_ID:" >>/etc/group
	echo "$USER_NAME:100000:1000000" >>/etc/subuid
	echo "$USER_NAME:100000:1000000" >>/etc/subgid
	local run=/run/user/$USER_ID
	mkdir -p "$run" "$SANDBOX_FS/user"/{home,tmp}
	chmod 700 "$run"
	sandbox_disk "$SANDBOX/user-disk.img" "$SANDBOX/user-disk" 200M
	rmdir "$SANDBOX/user-disk/lost+found" 2>/dev/null || true
	chown -R "$USER_ID:$USER_ID" "$run" "$SANDBOX_FS/user" "$SANDBOX/user-disk"
	ln -s "$SANDBOX_FS/user/system-storage.conf" /etc/containers/storage.conf
	# Repository and tools may be where only root can go.
	local dir
	for dir in REPO BUILD; do
		mkdir -p "$SANDBOX/${dir,,}"
		mount --bind -o ro "${!dir}" "$SANDBOX/${dir,,}"
	done
}

# user_enter ARGS...: become the user, and this script again.
user_enter() {
	local fs=$SANDBOX_FS/user
	PATH=$SANDBOX/build:$PATH REPO=$SANDBOX/repo
	cd "$REPO" || exit
	exec setpriv --reuid "$USER_ID" --regid "$USER_ID" --init-groups --inh-caps=-all \
		env -i SANDBOX="$SANDBOX" SANDBOX_FS="$fs" SANDBOX_INSIDE=1 SANDBOX_ROOTLESS=1 SANDBOX_DRIVER="$SANDBOX_DRIVER" SANDBOX_FS_TYPE="$SANDBOX_FS_TYPE" \
		HOME="$fs/home" TMPDIR="$fs/tmp" XDG_RUNTIME_DIR="/run/user/$USER_ID" USER="$USER_NAME" LOGNAME="$USER_NAME" \
		PATH="$PATH" TERM="${TERM:-dumb}" BUILD="$SANDBOX/build" PODMAN_IGNORE_CGROUPSV1_WARNING=1 BUILDAH_ISOLATION=rootless \
		"$REPO/hack/rootless.sh" "$@"
}

if [ "${BASH_SOURCE[0]}" = "$0" ]; then
	set -euo pipefail
	[ $# -gt 0 ] || { awk 'NR > 1 && !/^#/ { exit } NR > 1 { sub(/^# ?/, ""); print }' "$0"; exit 2; }
	if [ -z "${SANDBOX_ROOTLESS:-}" ]; then
		sandbox_enter "$@"
		user_make
		rc=0
		(user_enter "$@") || rc=$?
		exit $rc
	fi
	sandbox_store "$SANDBOX_FS/store" "$SANDBOX_DRIVER"
	if [ "$1" = --unshare ]; then
		shift
		exec podman unshare "$@"
	fi
	exec "$@"
fi
