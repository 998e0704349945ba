#!/usr/bin/env bash
# sandbox.sh COMMAND [ARG...]
#
# Runs COMMAND in a scratch world for real podman and buildah, and removes that
# world afterwards, whatever COMMAND left behind: a mount, a PID and a network
# namespace of its own (loopback only: two sandboxes at a time would get in each
# other's way when podman sets up bridges and packet filters), a scratch file
# system (ext4 with journal, loop-mounted), private /etc/containers, /etc/subuid,
# /etc/subgid, /var/lib/containers, /var/lib/cni, /run, /dev/shm and HOME. Container storage and
# configuration of the machine are neither read nor changed. Root only. The exit
# status is COMMAND's.
#
# As a library: source this file, call `sandbox_enter "$@"` first (it runs the
# calling script again inside), then sandbox_store and sandbox_driver.
#
# Variables read:
#   BUILD              folder of podman, buildah, runc (default build/)
#   SANDBOX_FS_TYPE    ext4 (default), xfs
#   SANDBOX_FS_SIZE    size of the scratch file system (default 12G, sparse)
#   SANDBOX_DRIVER     driver of the store that COMMAND finds (default shiftoverlay)
#   SANDBOX_NET        private (default), or host: the machine's network
#   SANDBOX_CGROUP     as the machine has it (default), or v2: cgroup version 2 alone,
#                      without the controllers that the machine uses in version 1
# Variables that COMMAND sees:
#   SANDBOX            scratch folder; SANDBOX_FS the scratch file system in it
#   and what sandbox_store exports.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

: "${SANDBOX_FS_TYPE:=ext4}" "${SANDBOX_FS_SIZE:=12G}" "${SANDBOX_DRIVER:=shiftoverlay}" "${SANDBOX_NET:=private}" "${SANDBOX_CGROUP:=machine}"

# sandbox_walkable FOLDER: a container's mapped root has to be able to walk to
# the graph root, so every folder above it needs o+x.
sandbox_walkable() {
	local d=$1
	while :; do
		case $(stat -c %A "$d") in
		*[xt]) ;;
		*) die "others may not enter $d (no o+x), so mapped containers could not start below it; set TMPDIR to another folder" ;;
		esac
		[ "$d" != / ] || return 0
		d=$(dirname "$d")
	done
}

# sandbox_enter ARGS...: run the calling script again inside a new sandbox and
# exit with its status; returns at once when inside already.
sandbox_enter() {
	if [ -n "${SANDBOX_INSIDE:-}" ]; then
		# Process 1 of the namespace sets it up; what it starts finds it ready.
		[ $$ -ne 1 ] || sandbox_setup
		return 0
	fi
	[ "$(id -u)" = 0 ] || die "needs root (mounts a scratch file system, runs rootful podman)"
	need unshare flock ip mount mkfs."$SANDBOX_FS_TYPE" truncate
	local base=${TMPDIR:-/var/tmp} child rc=0 net=()
	case $SANDBOX_NET in
	private) net=(--net) ;;
	host) ;;
	*) die "SANDBOX_NET=$SANDBOX_NET: private or host" ;;
	esac
	sandbox_walkable "$base"
	SANDBOX=$(mktemp -d "$base/shiftoverlay-XXXXXXXX") || die "no scratch folder below $base"
	chmod 755 "$SANDBOX"
	export SANDBOX SANDBOX_INSIDE=1 SANDBOX_FS=$SANDBOX/fs SANDBOX_NET
	# Held as long as the sandbox may use the cgroups that all podmans share. Not the
	# folder itself, which is another one where nothing is mounted on it.
	exec 9</sys/fs
	flock --shared 9
	unshare --mount --propagation private "${net[@]}" --pid --fork --kill-child --mount-proc \
		-- "$(readlink -f "$0")" "$@" <&0 9<&- &
	child=$!
	# The namespace dies with unshare, and everything in it with the namespace.
	trap 'set +e; kill -KILL $child 2>/dev/null; wait $child 2>/dev/null; sleep 0.5; sandbox_remove; exit 143' TERM INT HUP
	wait $child || rc=$?
	sandbox_remove
	exit $rc
}

# sandbox_remove: what is left when the namespaces are gone: podman's cgroup
# folders, which the last of several sandboxes removes, and the scratch folder.
sandbox_remove() {
	! flock --exclusive --nonblock 9 || unshare --mount --propagation private \
		bash -c "$(declare -f sandbox_mount_cgroups sandbox_remove_cgroups); sandbox_mount_cgroups && sandbox_remove_cgroups" || true
	exec 9<&-
	rm -rf --one-file-system "$SANDBOX" || say "left behind: $SANDBOX"
}

# sandbox_mount_cgroups: where none are mounted (a chroot), the kernel's cgroups
# are, as its processes are in them. CRI-O and an ordinary user's runc want them.
sandbox_mount_cgroups() {
	local name
	! grep -q ' - cgroup2\? ' /proc/self/mountinfo || return 0
	if [ "$(cut -d: -f1 /proc/self/cgroup)" = 0 ]; then
		mount -t cgroup2 cgroup2 /sys/fs/cgroup
		return
	fi
	mount -t tmpfs -o mode=755 cgroup /sys/fs/cgroup || return
	while IFS=: read -r _ name _; do
		[ -n "$name" ] || continue # version 2 beside version 1
		mkdir "/sys/fs/cgroup/${name#name=}" &&
			mount -t cgroup -o "${name/#name=/none,name=}" cgroup "/sys/fs/cgroup/${name#name=}" || return
	done </proc/self/cgroup
}

sandbox_remove_cgroups() {
	local d
	for d in /sys/fs/cgroup{,/*}/libpod_parent; do
		[ -d "$d" ] || continue
		# Of containers whose sandbox was killed: empty (else rmdir refuses), and
		# not one that another podman is making just now.
		# podman 6 has a folder of its own for each.
		find "$d" -mindepth 1 -maxdepth 2 -depth -type d -regextype egrep -regex '.*/(libpod-[^/]*|[0-9a-f]{64}|conmon)' \
			! -newermt '2 seconds ago' -exec rmdir {} + 2>/dev/null || true
		rmdir "$d/conmon" "$d" 2>/dev/null || true
	done
}

# sandbox_setup: build the world, inside the namespaces.
sandbox_setup() {
	trap sandbox_leave EXIT
	mount --make-rshared /
	[ "$SANDBOX_NET" = host ] || ip link set lo up
	mkdir -p "$SANDBOX_FS" "$SANDBOX/etc"
	sandbox_disk "$SANDBOX/disk.img" "$SANDBOX_FS"
	mkdir -p "$SANDBOX_FS"/{home,tmp,run,priv}
	chmod 1777 "$SANDBOX_FS/tmp"
	sandbox_mount_cgroups || say 'no cgroups can be mounted here; CRI-O and containers of ordinary users will not start'
	case $SANDBOX_CGROUP in
	machine) ;;
	v2) [ -e /sys/fs/cgroup/cgroup.controllers ] || mount -t cgroup2 cgroup2 /sys/fs/cgroup ;;
	*) die "SANDBOX_CGROUP=$SANDBOX_CGROUP: machine or v2" ;;
	esac
	sandbox_cover /etc
	sandbox_private /var/lib/cni # first: it may cover /var/lib
	sandbox_private /var/lib/containers
	mount -t tmpfs -o mode=755,nosuid,nodev sandbox-run /run
	mkdir -m 1777 /run/lock
	mount -t tmpfs -o mode=1777,nosuid,nodev sandbox-shm /dev/shm
	rm -rf /etc/containers
	mkdir -p /etc/containers/registries.d
	echo '{"default":[{"type":"insecureAcceptAnything"}]}' >/etc/containers/policy.json
	: >/etc/containers/registries.conf
	printf 'containers:2147483647:2147483648\n' >/etc/subuid
	cp /etc/subuid /etc/subgid
	if command -v go >/dev/null; then # before HOME changes: Go's caches and settings stay
		local v
		for v in GOENV GOPATH GOCACHE GOMODCACHE; do
			export "$v=$(go env "$v")"
		done
	fi
	unset XDG_RUNTIME_DIR XDG_CONFIG_HOME XDG_DATA_HOME XDG_CACHE_HOME STORAGE_DRIVER STORAGE_OPTS \
		CONTAINERS_CONF_OVERRIDE CONTAINERS_STORAGE_CONF CONTAINERS_REGISTRIES_CONF \
		CONTAINER_HOST CONTAINER_CONNECTION DBUS_SESSION_BUS_ADDRESS NOTIFY_SOCKET \
		_CONTAINERS_OVERLAY_DISABLE_IDMAP
	export HOME=$SANDBOX_FS/home TMPDIR=$SANDBOX_FS/tmp PATH=$BUILD:$PATH
	export PODMAN_IGNORE_CGROUPSV1_WARNING=1 BUILDAH_ISOLATION=oci
	sandbox_store "$SANDBOX_FS/store" "$SANDBOX_DRIVER"
}

# sandbox_leave: end what still runs in the namespace and remove the cgroups of
# the sandbox's containers; all else goes with the namespaces.
sandbox_leave() {
	local rc=$? id i
	set +e
	cd /
	if [ $$ -eq 1 ]; then
		for ((i = 0; i < 50; i++)); do
			kill -KILL -1 2>/dev/null || break # nobody left
			sleep 0.05
		done
	fi
	find "$SANDBOX_FS" -maxdepth 5 -xdev -type d -path '*-containers/*' 2>/dev/null |
		grep -oE '[0-9a-f]{64}$' | while read -r id; do
		rmdir /sys/fs/cgroup{,/*}/libpod_parent/{,*/}libpod-"$id" 2>/dev/null
	done
	exit $rc
}

# sandbox_disk IMAGE DIR [SIZE [TYPE]]: make a file system in the file IMAGE and
# mount it at DIR. The loop device ends with the mount.
sandbox_disk() {
	local img=$1 dir=$2 size=${3:-$SANDBOX_FS_SIZE} type=${4:-$SANDBOX_FS_TYPE}
	truncate -s "$size" "$img" || die "no room for $img"
	case $type in
	# Default features (journal, 256-byte inodes), but room for many inodes,
	# and no lazy initialisation that would write while something is measured.
	ext4) mkfs.ext4 -q -i 8192 -E lazy_itable_init=0,lazy_journal_init=0,nodiscard -m 0 "$img" ;;
	xfs) mkfs.xfs -q "$img" ;;
	btrfs) mkfs.btrfs -q "$img" ;;
	*) die "SANDBOX_FS_TYPE=$type: ext4, xfs or btrfs" ;;
	esac || die "mkfs.$type failed on $img"
	mkdir -p "$dir"
	mount -t "$type" -o loop "$img" "$dir" || die "cannot loop-mount $img (is the loop module there?)"
	chmod 755 "$dir"
}

# sandbox_cover DIR: an overlay over DIR whose writes end in the sandbox.
sandbox_cover() {
	local priv=$SANDBOX_FS/priv/${1//\//_}
	case $REPO/ in "$1"/*) die "the repository is below $1; move it elsewhere" ;; esac
	case $BUILD/ in "$1"/*) die "BUILD=$BUILD is below $1; choose another folder" ;; esac
	mkdir -p "$priv/upper" "$priv/work"
	mount -t overlay overlay -o "lowerdir=$1,upperdir=$priv/upper,workdir=$priv/work" "$1" ||
		die "cannot mount an overlay over $1"
}

# sandbox_private DIR: an empty private folder in the place of DIR. Where DIR
# does not exist on the machine it must not appear there, so its parent is covered.
sandbox_private() {
	local priv=$SANDBOX_FS/priv/${1//\//_}
	mkdir -p "$priv"
	if [ ! -d "$1" ]; then
		sandbox_cover "$(dirname "$1")"
		mkdir "$1"
	fi
	mount --bind "$priv" "$1"
}

# sandbox_store DIR DRIVER [MOUNTOPT]: configure a store below DIR (its
# storage.conf names nothing but the driver and the places, and mount options if
# given) and make it the one that podman and buildah use from here on. Exports
# CONTAINERS_STORAGE_CONF, CONTAINERS_CONF and SHIFTOVERLAY_CONF, three files in
# DIR; the graph root is DIR/graph, the run root DIR/run.
sandbox_store() {
	local dir=$1 driver=$2 mountopt=${3:-}
	mkdir -p "$dir/graph" "$dir/run"
	cat >"$dir/storage.conf" <<-END
		[storage]
		driver = "$driver"
		graphroot = "$dir/graph"
		runroot = "$dir/run"
	END
	[ -z "$mountopt" ] || printf '[storage.options]\nmountopt = "%s"\n' "$mountopt" >>"$dir/storage.conf"
	sandbox_containers_conf >"$dir/containers.conf"
	sandbox_use "$dir"
	sandbox_engine auto
}

# sandbox_use DIR: make the store that sandbox_store has configured in DIR the one
# that podman and buildah use. From an ordinary user (rootless.sh), podman takes
# graph root, run root and driver only out of a storage.conf below XDG_CONFIG_HOME;
# CONTAINERS_STORAGE_CONF then is for the tests only, and not exported.
sandbox_use() {
	export CONTAINERS_STORAGE_CONF=$1/storage.conf CONTAINERS_CONF=$1/containers.conf
	export SHIFTOVERLAY_CONF=$1/shiftoverlay.conf
	[ -n "${SANDBOX_ROOTLESS:-}" ] || return 0
	export -n CONTAINERS_STORAGE_CONF
	export XDG_CONFIG_HOME=$1/config
	mkdir -p "$XDG_CONFIG_HOME/containers"
	ln -sf "$CONTAINERS_STORAGE_CONF" "$XDG_CONFIG_HOME/containers/storage.conf"
	cp /etc/containers/policy.json "$XDG_CONFIG_HOME/containers/policy.json"
}

# sandbox_engine ENGINE [LINE...]: write the current store's shiftoverlay.conf.
sandbox_engine() {
	printf '[shiftoverlay]\nengine = "%s"\n' "$1" >"$SHIFTOVERLAY_CONF"
	shift
	[ $# -eq 0 ] || printf '%s\n' "$@" >>"$SHIFTOVERLAY_CONF"
}

# sandbox_containers_conf: print a containers.conf for a machine without
# network, systemd and registries.
sandbox_containers_conf() {
	# Without CAP_SYS_RESOURCE podman's default limits cannot be reached.
	local files procs pids='' limits='' default=1048576 tmp=/run/libpod
	[ -z "${SANDBOX_ROOTLESS:-}" ] || tmp=$XDG_RUNTIME_DIR/libpod/tmp
	files=$(ulimit -Hn)
	procs=$(ulimit -Hu)
	[ "$files" = unlimited ] || [ "$files" -ge $default ] || limits="\"nofile=$files:$files\""
	[ "$procs" = unlimited ] || [ "$procs" -ge $default ] || limits="${limits:+$limits, }\"nproc=$procs:$procs\""
	# Without that controller podman's default limit of processes is an error.
	[ ! -e /sys/fs/cgroup/cgroup.controllers ] || grep -qw pids /sys/fs/cgroup/cgroup.controllers || pids='pids_limit = 0'
	cat <<-END
		[containers]
		$pids
		default_ulimits = [$limits]
		netns = "none"
		log_driver = "k8s-file"
		[engine]
		cgroup_manager = "cgroupfs"
		events_logger = "file"
		runtime = "runc"
		tmp_dir = "$tmp"
		[engine.runtimes]
		runc = ["$BUILD/runc"]
	END
}

# Run as a program: COMMAND inside a sandbox.
if [ "${BASH_SOURCE[0]}" = "$0" ]; then
	set -euo pipefail
	[ $# -gt 0 ] || { awk 'NR > 1 && !/^#/ { exit } NR > 1 { sub(/^# ?/, ""); print }' "$0"; exit 2; }
	sandbox_enter "$@"
	rc=0
	"$@" || rc=$?
	exit $rc
fi
