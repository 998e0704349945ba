#!/usr/bin/env bats
# CRI-O with the driver inside: started again, and with images of its own.
# shared/crio.bats has the rest.

bats_require_minimum_version 1.5.0
load helpers
load crio

@test "CRI-O: killed and started again, the pod goes on" {
	pod p 1000000
	container p
	local pid
	pid=$(cri inspect "$C" | jq .info.info.pid)
	cri exec "$C" sh -c 'echo before >/new'
	stop_crio -KILL
	[ -d "/proc/$pid" ] || die "the container ended with CRI-O"
	start_crio
	run -0 cri exec "$C" sh -c 'stat -c %u:%g /new; cat /new'
	is "$output" $'0:0\nbefore' "file of before"
	is "$(owner "$M/new")" 1000000:1000000 "owner outside"
	# The next pod. (CRI-O 1.34.0 itself forgets the mapping of a pod that is older
	# than its own start, and gives it to none of the pod's new containers:
	# https://github.com/cri-o/cri-o/pull/10231.)
	pod q 2000000
	container q
	is "$(owner "$M/etc/passwd")" 2000000:2000000 "owner outside, in a new pod"
}

@test "CRI-O: an image that it pulls, runs and removes by itself" {
	"$BUILD/conform" images "$WORK/images" >/dev/null
	"$BUILD/conform" registry "$WORK/images/oci" 3>&- &
	local registry=$!
	printf '[[registry]]\nprefix = "quay.io"\nlocation = "127.0.0.1:5000"\ninsecure = true\n' >/etc/containers/registries.conf
	stop_crio -TERM
	ENGINE=erofs # one that keeps something for an image
	sandbox_engine erofs
	start_crio
	cri pull quay.io/libpod/testimage:20241011
	: >/etc/containers/registries.conf
	kill "$registry"
	local before i
	pod p 1000000
	sed -i 's|"image": "[^"]*"|"image": "quay.io/libpod/testimage:20241011"|' "$WORK/p.container"
	status_row 'Shift cache entries' # that of the pod's own image
	before=$output
	container p
	is "$(engine_of "$M")" "$(expected_engine) 1000000" "record of the container's layer"
	is "$(owner "$M/etc/passwd")" 1000000:1000000 "owner outside"
	status_row 'Shift cache entries'
	is "$output" $((before + $(entries 1))) "shifted lowers in the cache"
	run cri rmi quay.io/libpod/testimage:20241011
	assert "$output" =~ 'in use' "removal of an image that is used"
	cri stop "$C"
	cri rm "$C"
	cri rmi quay.io/libpod/testimage:20241011
	assert "$(cri images)" !~ testimage "images"
	# The engines tidy up behind the removal.
	for ((i = 0; i < 100; i++)); do
		status_row 'Shift cache entries'
		[ "$output" != "$before" ] || break
		sleep 0.1
	done
	is "$output" "$before" "shifted lowers after the image was removed"
}

@test "CRI-O: a store of overlay is adopted, with its images and pods" {
	stop_crio -TERM
	use_store o overlay
	run_podman import -q --change 'CMD ["sleep", "100000"]' "$BUILD/images/busybox.tar" "$IMAGE"
	start_crio
	pod p
	container p
	local old=$C
	cri exec "$C" sh -c 'echo before >/new; chown 33:34 /new; rm /srv/shift/empty'
	# While it runs, nothing is changed.
	sed -i 's/^driver = .*/driver = "shiftoverlay"/' "$CONTAINERS_STORAGE_CONF"
	cli 125 adopt --force
	assert "$output" =~ 'in use|running|mounted' "why a running container is in the way"
	cri stop "$C"
	cri stopp "$POD"
	stop_crio -TERM
	cli adopt --force
	assert "$output" =~ 'is one of driver shiftoverlay now' "what was done"
	use_store o shiftoverlay
	STORES='s:shiftoverlay o:shiftoverlay'
	start_crio
	assert "$(cri images)" =~ "$IMAGE" "images"
	is "$(cri inspect "$old" | jq -r .status.state)" 2 "state of a container of before: exited"
	run "$BUILD/shiftoverlay" check
	is "$status" 0 "check: $output"
	cri rm "$old"
	cri rmp "$POD"
	PODS=() CONTAINERS=()
	pod q 1000000
	container q
	is "$(owner "$M/etc/passwd") $(owner "$M/srv/shift/user1000")" "1000000:1000000 1001000:1001000" "owners outside, in a new pod"
	is "$(engine_of "$M")" "$(expected_engine) 1000000" "record of the container's layer"
}
