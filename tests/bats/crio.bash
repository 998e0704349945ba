# CRI-O in the integration tests, asked as the kubelet asks it; loaded after
# helpers. Its setup starts a CRI-O with the test's store, teardown ends it.
# shellcheck shell=bash
# shellcheck disable=SC2154 # BUILD, IMAGE, status, output: helpers and bats

# What a pod's cgroups are below; the kubelet would make and remove it.
CGROUP=/shiftoverlay-test-$$

setup() {
	basic_setup
	# podman with CRI-O's storage library: an old one does not see the layers of
	# CRI-O's containers, and takes their mounts away when it ends.
	PATH=${PATH#"$BUILD/$PROGRAM_TOOLS:"}
	[ -x "$BUILD/crio" ] || die "no $BUILD/crio: run make crio"
	export CONTAINER_RUNTIME_ENDPOINT=unix://$WORK/crio.sock
	mkdir -p /etc/cni/net.d
	cat >/etc/cni/net.d/10-pods.conflist <<-END
		{"cniVersion": "1.0.0", "name": "pods", "plugins": [{"type": "bridge", "bridge": "cni0", "isGateway": true,
		 "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.85.0.0/16"}]], "routes": [{"dst": "0.0.0.0/0"}]}}]}
	END
	# Where images are and which driver has them says storage.conf.
	cat >"$WORK/crio.conf" <<-END
		[crio]
		log_dir = "$WORK/log"
		version_file = "/run/crio/version"
		version_file_persist = "$WORK/version"
		clean_shutdown_file = "$WORK/clean.shutdown"
		[crio.api]
		listen = "$WORK/crio.sock"
		[crio.runtime]
		cgroup_manager = "cgroupfs"
		default_runtime = "runc"
		pinns_path = "$BUILD/pinns"
		namespaces_dir = "/run/crio/namespaces"
		container_exits_dir = "/run/crio/exits"
		container_attach_socket_dir = "/run/crio/attach"
		[crio.runtime.runtimes.runc]
		runtime_path = "$BUILD/runc"
		monitor_path = "/usr/bin/conmon"
		monitor_cgroup = "pod"
		[crio.image]
		pause_image = "$IMAGE:latest"
		pause_command = ""
		[crio.network]
		plugin_dirs = ["/usr/lib/cni"]
	END
	PODS=() CONTAINERS=()
	run_podman import -q --change 'CMD ["sleep", "100000"]' "$BUILD/images/busybox.tar" "$IMAGE"
	start_crio
}

teardown() {
	local i rc=0
	# The pod's own way to stop containers is patient.
	for i in "${CONTAINERS[@]}"; do cri stop "$i" || true; done
	for i in "${PODS[@]}"; do
		cri stopp "$i" || true
		cri rmp "$i" || true
	done
	! kill -0 "$CRIO" 2>/dev/null || stop_crio -TERM || rc=1
	# With the container's cgroup goes its pod's; conmon's and the pods' parent stay.
	find /sys/fs/cgroup -mindepth 1 -maxdepth 4 -depth -type d -path "*$CGROUP*" -exec rmdir {} + 2>/dev/null || true
	basic_teardown || rc=1
	return $rc
}

# start_crio: CRI-O begins to answer, and has seen its network. A CRI-O 1.34 that
# was asked for a pod before that may wait for itself when it is to end
# (CNIManager.Shutdown, called twice, tells it to those who have waited for the network).
start_crio() {
	local i
	"$BUILD/crio" --config "$WORK/crio.conf" --config-dir '' --log-level info >>"$WORK/crio.log" 2>&1 3>&- &
	CRIO=$!
	for ((i = 0; i < 300; i++)); do
		! cri ready >/dev/null 2>&1 || return 0
		kill -0 "$CRIO" || break
		sleep 0.1
	done
	cat "$WORK/crio.log"
	cri ready || true
	die "CRI-O does not answer"
}

# stop_crio -TERM|-KILL: CRI-O ends; pods go on.
stop_crio() {
	local i
	kill "$1" "$CRIO"
	for ((i = 0; i < 600; i++)); do
		kill -0 "$CRIO" 2>/dev/null || break
		sleep 0.1
	done
	# A Go program says then where each of its goroutines is.
	if kill -QUIT "$CRIO" 2>/dev/null; then
		wait "$CRIO" || true
		cat "$WORK/crio.log"
		die "CRI-O has not ended within a minute"
	fi
	wait "$CRIO" || [ "$1" = -KILL ]
}

cri() { "$BUILD/cri" "$@" 3>&-; }

# pod NAME [HOST_ID [SIZE]]: a pod sandbox, with a user namespace that begins at
# HOST_ID if that is given; sets POD. Its containers get the same file.
pod() {
	local users='{"mode": 2}' map
	if [ -n "${2:-}" ]; then
		map="[{\"container_id\": 0, \"host_id\": $2, \"length\": ${3:-65536}}]"
		users="{\"mode\": 0, \"uids\": $map, \"gids\": $map}"
	fi
	local security="\"security_context\": {\"namespace_options\": {\"network\": 0, \"pid\": 1, \"ipc\": 0, \"userns_options\": $users}}"
	cat >"$WORK/$1.pod" <<-END
		{"metadata": {"name": "$1", "namespace": "default", "uid": "$1", "attempt": 0}, "log_directory": "$WORK/log",
		 "linux": {"cgroup_parent": "$CGROUP", $security}}
	END
	cat >"$WORK/$1.container" <<-END
		{"metadata": {"name": "c", "attempt": 0}, "image": {"image": "$IMAGE:latest"}, "command": ["sleep", "1000"],
		 "log_path": "$1.log", "linux": {$security}}
	END
	POD=$(cri runp "$WORK/$1.pod")
	PODS+=("$POD")
}

# container NAME: a running container in the pod NAME, which is POD; sets C, and M
# to where its root is mounted.
container() {
	C=$(cri create "$POD" "$WORK/$1.container" "$WORK/$1.pod")
	CONTAINERS+=("$C")
	cri start "$C"
	M=$(cri inspect "$C" | jq -r '.info.info.runtimeSpec.root.path')
	[ -d "$M" ] || die "no folder $M"
}

# engine_of FOLDER: which engine the record of the layer that is mounted there has.
engine_of() {
	jq -r '"\(.engine) \(.uids[0].host_id)"' "${1%/merged}/shiftoverlay.json"
}
