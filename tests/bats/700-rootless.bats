#!/usr/bin/env bats
# An ordinary user's podman, as he calls it. (hack/bats.sh runs most other files as
# root of his user namespace.)

load helpers

setup() {
	[ "$(id -u)" != 0 ] || die "for an ordinary user: make bats-rootless"
	WORK=$(mktemp -d "$SANDBOX_FS/bats-XXXXXX")
	chmod 755 "$WORK"
	use_store s shiftoverlay
	sandbox_engine auto
}

teardown() {
	use_store_again s
	podman rm -f -t 0 -a >/dev/null 2>&1
	# shellcheck disable=SC2016
	podman unshare sh -c 'umount -l "$0"/*/graph/* "$0"/*/* 2>/dev/null; rm -rf "$0"' "$WORK"
	forget_boot
}

# in_ns COMMAND...: as root of the user's namespace, in output.
in_ns() { run_podman unshare "$@"; }

# ids CONTAINER: its mapping as the machine sees it, "inside:outside:size ..."
ids() {
	local pid
	pid=$(podman inspect --format '{{.State.Pid}}' "$1")
	awk '{ printf "%s%s:%s:%s", sep, $1, $2, $3; sep = " " }' "/proc/$pid/uid_map"
}

@test "keep-id: the user is himself, and no data is copied" {
	import
	status_row 'Shift engine'
	is "$output" metacopy "engine"
	run_podman run -d --name con --userns=keep-id "$IMAGE" sleep 1000
	is "$(ids con)" "0:100000:1500 1500:1500:1 1501:101500:998500" "mapping"
	run_podman exec --user 0 con sh -c 'stat -c %u:%g / /etc/passwd /srv/shift/user1000 /srv/shift/nobody; cat /srv/shift/link1'
	is "$output" $'0:0\n0:0\n1000:1000\n65534:65534\none file, three names' "owners and content"
	run_podman exec con id -u
	is "$output" 1500 "the user inside"
	run_podman exec --user 1000:1000 con cat /srv/shift/user1000
	is "$output" 'of uid 1000' "a file with mode 0640"
	# Blocks of data; attributes may need one.
	in_ns find "$SHIFTED" -type f -path '*/tree/*' -size +0 -exec filefrag {} +
	assert "${#lines[@]}" -ge 5 "files with a size"
	is "$(grep -v ': 0 extents found' <<<"$output" || true)" '' "files with data"
}

@test "keep-id: what the user writes to a volume is his" {
	import
	mkdir "$WORK/vol"
	run_podman run --rm --userns=keep-id:uid=1000,gid=1000 -v "$WORK/vol:/vol" "$IMAGE" sh -c 'id -u; cat /srv/shift/user1000; touch /vol/file'
	is "$output" $'1000\nof uid 1000' "inside"
	is "$(owner "$WORK/vol/file")" 1500:1500 "owner outside"
}

@test "auto: ranges of the user's own IDs, disjoint" {
	import
	local i
	for i in 1 2; do run_podman run -d --name "con$i" --userns=auto:size=65536 "$IMAGE" sleep 1000; done
	is "$(ids con1) $(ids con2)" "0:100000:65536 0:165536:65536" "mappings"
	run_podman exec con2 stat -c %u:%g /etc/passwd /srv/shift/user1000
	is "$output" $'0:0\n1000:1000' "owners inside"
	run_podman exec con2 sh -c 'su user -c whoami-suid; su user -c whoami-cap'
	assert "${lines[0]}" =~ 'uid=1000 euid=0 ' "setuid program"
	is "${lines[1]}" 'uid=1000 euid=1000 gid=1000 egid=1000 capeff=0000000000000400' "program with cap_net_bind_service"
}

@test "uidmap: several extents" {
	import
	run_podman run -d --name con --uidmap 0:5000:1000 --uidmap 1000:0:1 --uidmap 1001:9000:70000 --gidmap 0:1:80000 "$IMAGE" sleep 1000
	is "$(ids con)" "0:104999:1000 1000:1500:1 1001:108999:70000" "mapping"
	run_podman exec con stat -c %u:%g /etc/passwd /srv/shift/user1000 /srv/shift/nobody
	is "$output" $'0:0\n1000:1000\n65534:65534' "owners inside"
}

@test "commit, diff and build come out with the container's IDs" {
	import
	run_podman run --name con --userns=keep-id --user 0 "$IMAGE" sh -c 'echo hi >/new; chown 33:34 /new; rm -rf /srv/shift/secret; mkdir /srv/shift/secret; rm /srv/shift/empty; cp /usr/local/bin/whoami-cap /capfile'
	run_podman diff con
	assert "$output" =~ 'D /srv/shift/empty' "diff"
	assert "$output" =~ 'A /new' "diff"
	run_podman commit -q con localhost/new
	run_podman rm con # it has all IDs, and leaves none for auto
	local userns
	for userns in host keep-id auto:size=65536; do
		run_podman run --rm --user 0 --userns="$userns" localhost/new sh -c 'stat -c %u:%g /new /etc/passwd; ls -A /srv/shift/secret; test -e /srv/shift/empty || echo gone'
		is "$output" $'33:34\n0:0\ngone' "the image with $userns"
	done
	printf 'FROM %s\nRUN touch /built && chown 7:8 /built\nCOPY --chown=9:9 f /copied\n' "$IMAGE" >"$WORK/Containerfile"
	echo f >"$WORK/f"
	run_podman build -q --userns=auto --network=none -t localhost/built "$WORK"
	run_podman run --rm localhost/built stat -c %u:%g /built /copied
	is "$output" $'7:8\n9:9' "what was built in a user namespace"
}

@test "pods and kube play" {
	import
	run_podman pod create --name p --userns=keep-id
	run_podman run --rm --pod p "$IMAGE" sh -c 'cat /proc/self/uid_map; stat -c %u /etc/passwd /srv/shift/user1000'
	is "$(wc -l <<<"$output")" 5 "lines: a mapping of three extents"
	is "${lines[-2]} ${lines[-1]}" '0 1000' "owners in a pod"
	run_podman pod rm -f -t 0 p
	cat >"$WORK/pod.yaml" <<-END
		apiVersion: v1
		kind: Pod
		metadata:
		  name: kube
		spec:
		  restartPolicy: Never
		  containers:
		  - name: c
		    image: $IMAGE
		    imagePullPolicy: Never
		    command: ["sleep", "1000"]
	END
	run_podman '?' kube play --userns=auto --network=none "$WORK/pod.yaml"
	is "$status" 0 "kube play"
	run_podman exec kube-c sh -c 'cat /proc/self/uid_map; stat -c %u /etc/passwd /srv/shift/user1000'
	assert "${lines[0]}" =~ '^ *0 +1 +[0-9]+$' "mapping"
	is "${lines[1]} ${lines[2]}" '0 1000' "owners"
	run_podman pod rm -f -t 0 kube
}

@test "ACLs are shifted" {
	import
	layer_of "$IMAGE"
	in_ns setfacl -m u:1000:r,g:33:rw "$UPPER/srv/shift/link1"
	run_podman run -d --name con --uidmap 0:100000:65536 --gidmap 0:200000:65536 "$IMAGE" sleep 1000
	in_ns sh -c "getfacl -ncE --absolute-names '$SHIFTED'/*/*/data/tree/srv/shift/link1"
	is "$(grep -E '^(user|group):[0-9]' <<<"$output")" $'user:101000:r--\ngroup:200033:rw-' "ACL"
	run_podman exec --user 1000 con cat /srv/shift/link1
	is "$output" 'one file, three names' "a file with an ACL"
}

@test "a layer with overlay's attributes redirects nothing" {
	mkdir -p "$WORK/tree/bin"
	tar -C "$WORK/tree" --exclude=./srv/shift/null --no-same-owner -xf "$BUILD/images/busybox.tar"
	echo own >"$WORK/tree/srv/evil"
	setfattr -n user.overlay.redirect -v /srv/shift/secret/file "$WORK/tree/srv/evil"
	setfattr -n user.overlay.metacopy -v '' "$WORK/tree/srv/evil"
	tar -C "$WORK/tree" --xattrs --xattrs-include='*' -cf "$WORK/evil.tar" .
	import "$WORK/evil.tar" localhost/evil
	layer_of localhost/evil
	in_ns getfattr --absolute-names -n user.overlay.redirect "$UPPER/srv/evil"
	run_podman '?' run --rm --userns=keep-id localhost/evil cat /srv/evil
	assert "$status" -ne 0 "exit status"
	assert "$output" =~ 'srv/evil carries user.overlay' "message"
	# What a container writes itself is no concern of overlay's.
	import
	run_podman run --name con --userns=keep-id --user 0 "$IMAGE" sh -c 'cp /srv/shift/link1 /srv/copy'
	run_podman start -a con
	run_podman mount --help
	run_podman commit -q con localhost/fine
}

@test "which storage.conf selects the driver" {
	# The machine's own file, which rootless.sh lets the user write. The storage
	# library takes no driver of a name that it does not know out of it.
	local conf=$SANDBOX_FS/system-storage.conf
	export XDG_CONFIG_HOME=$WORK/none
	mkdir -p "$XDG_CONFIG_HOME/containers"
	cp /etc/containers/policy.json "$XDG_CONFIG_HOME/containers"
	printf '[storage]\ndriver = "shiftoverlay"\nrunroot = "/run/containers/storage"\ngraphroot = "/var/lib/containers/storage"\nrootless_storage_path = "%s"\n' "$WORK/a" >"$conf"
	run_podman '?' info --format '{{.Store.GraphDriverName}}'
	is "${lines[-1]}" overlay "driver with driver = \"shiftoverlay\" in the machine's file"
	sed -i "s,^rootless.*,rootless_storage_path = \"$WORK/b\"\\ndriver_priority = [\"shiftoverlay\"]," "$conf"
	forget_boot
	run_podman info --format '{{.Store.GraphDriverName}}'
	is "$output" shiftoverlay "driver with driver_priority"
	sed -i "/driver_priority/d" "$conf"
	forget_boot
	run_podman info --format '{{.Store.GraphDriverName}}'
	is "$output" shiftoverlay "driver of a store that is there"
	sed -i "s,^rootless.*,rootless_storage_path = \"$WORK/c\"," "$conf"
	forget_boot
	STORAGE_DRIVER=shiftoverlay run_podman info --format '{{.Store.GraphDriverName}}'
	is "$output" shiftoverlay "driver with STORAGE_DRIVER"
	rm "$conf"
}

@test "where the kernel refuses, a full copy is announced once, with the reason" {
	import
	local probe
	probe=$(echo "$RUN"/shiftoverlay/shiftoverlay-probe-*.json)
	jq '.user_metacopy = "refused by this test" | .reflink = "likewise"' "$probe" >"$WORK/probe"
	cat "$WORK/probe" >"$probe"
	status_row 'Shift engine'
	is "$output" copyup "engine"
	status_row 'Shift engine reason'
	assert "$output" =~ 'metacopy: .*refused by this test' "reason"
	capture podman run --rm --userns=keep-id "$IMAGE" true
	is "$status" 0 "exit status"
	is "$(grep -c 'level=warning' <<<"$output")" 1 "warnings"
	assert "$output" =~ 'copies the whole image.*refused by this test.*Remedy: Linux 6.16' "the warning"
	run_podman run --rm --userns=auto:size=65536 "$IMAGE" true
	# Whoever asks for it, knows.
	rm "$RUN/shiftoverlay/shiftoverlay-told-copying"
	sandbox_engine copyup
	run_podman run --rm --userns=auto:size=70000 "$IMAGE" true
}

@test "engines and mount options for root only say so" {
	sandbox_engine idmap
	run_podman '?' images
	assert "$status" -ne 0 "exit status"
	assert "$output" =~ 'idmap: the kernel allows idmapped mounts to root only' "message"
	sandbox_engine auto
	use_store m shiftoverlay metacopy=on
	run_podman '?' images
	assert "$status" -ne 0 "exit status"
	assert "$output" =~ 'metacopy=on, which the kernel takes from root only' "message"
}

@test "shiftoverlay and plugin-test work for an ordinary user" {
	import
	run_podman run --name con --userns=auto:size=65536 "$IMAGE" true
	capture "$BUILD/shiftoverlay" info
	assert "$output" =~ '\* metacopy: in use' "shiftoverlay info"
	capture "$BUILD/shiftoverlay" ls --format '{{.Engine}} {{.Containers}}'
	is "$output" 'metacopy con' "shiftoverlay ls"
	capture "$BUILD/shiftoverlay" check
	assert "$output" =~ '1 entries checked, 0 findings' "shiftoverlay check"
	capture "$BUILD/plugin-test" --root "$WORK/pt" pull "tar:$BUILD/images/busybox.tar" bb
	is "$status" 0 "plugin-test pull"
	local engine
	for engine in metacopy copyup; do
		capture "$BUILD/plugin-test" --root "$WORK/pt" --engine "$engine" verify bb --content --uidmap 0:1:1500 --uidmap 1500:0:1 --uidmap 1501:1501:70000
		is "${lines[-1]}" 'differences: 0' "plugin-test verify, engine $engine: $output"
		assert "$output" =~ "engine: $engine" "engine"
	done
	capture "$BUILD/plugin-test" --root "$WORK/pt" run bb -- stat -c %u:%g /etc/passwd
	is "$output" 0:0 "plugin-test run"
	capture "$BUILD/plugin-test" --root "$WORK/pt" mount bb
	assert "$output" =~ 'podman unshare' "plugin-test mount: the remedy"
}

@test "rmi and system reset leave nothing" {
	import
	run_podman run --name first --userns=keep-id --user 0 "$IMAGE" sh -c 'chown 33 /etc/group; touch /new'
	run_podman rm first # it has all IDs, and leaves none for auto
	run_podman run --name second --userns=auto:size=65536 "$IMAGE" true
	run_podman rm second
	run_podman rmi "$IMAGE"
	in_ns find "$SHIFTED" -path '*/tree*'
	is "$output" '' "shifted lowers without the image"
	in_ns sh -c "ls -A '$GRAPH/shiftoverlay' | grep -E '^[0-9a-f]{64}$' || true"
	is "$output" '' "layers"
	import
	run_podman run --name first --userns=keep-id "$IMAGE" true
	run_podman '?' system reset --force
	is "$status" 0 "system reset"
	run find "$GRAPH" -mindepth 1 -printf '%P\n'
	is "$(KNOWN=${EMPTY_STORE//DRIVER/shiftoverlay} awk '$0 !~ ENVIRON["KNOWN"]' <<<"$output")" '' "files that the user can see"
	is "$(find "$GRAPH" -mindepth 1 ! -user 1500)" '' "files of others"
}
