#!/usr/bin/env bats
# The fast first pass: does it run at all, and without a mapping as with overlay?

load helpers

@test "podman info names driver and engine" {
	run_podman info --format '{{.Store.GraphDriverName}}'
	is "$output" shiftoverlay "driver name"
	run_podman info --format '{{json .Store.GraphStatus}}'
	local rows=$output
	row() { jq -r --arg row "$1" '.[$row]' <<<"$rows"; }
	assert "$(row 'Shift engine')" =~ '^(idmap|erofs|metacopy|copyup)$' "Shift engine"
	assert "$(row 'Shift engine reason')" !~ '^(null)?$' "Shift engine reason"
	is "$(row 'Shift cache entries')" 0 "Shift cache entries of an empty store"
	is "$(row 'Shift cache size')" 0B "Shift cache size of an empty store"
	is "$(row 'Shift cache path')" "$GRAPH/shiftoverlay-shifted" "Shift cache path"
	# Overlay's own rows are still there.
	local name
	for name in 'Backing Filesystem' 'Supports d_type' 'Native Overlay Diff' 'Using metacopy' 'Supports shifting' 'Supports volatile'; do
		assert "$(row "$name")" !~ '^(null)?$' "row $name"
	done
}

@test "run without a mapping is overlay's business" {
	import
	run_podman run --name plain "$IMAGE" sh -c 'cat /proc/self/uid_map; stat -c %u:%g /etc/passwd /srv/shift/user1000'
	is "${lines[0]//[[:space:]]/}" "$HOST_MAP" "uid_map of the machine"
	is "${lines[-2]}" 0:0 "owner of /etc/passwd"
	is "${lines[-1]}" 1000:1000 "owner of a file of uid 1000"
	layer_of plain
	[ ! -e "$GRAPH/shiftoverlay/$LAYER/shiftoverlay.json" ] || die "a layer without a mapping has a mapping record"
	[ ! -e "$GRAPH/shiftoverlay-shifted" ] || die "a cache was made for nothing"
	run_podman mount plain
	is "$(owner "$output/srv/shift/user1000")" 1000:1000 "owner outside"
	run_podman unmount plain
}

@test "run --userns=auto" {
	import
	run_podman run --rm --userns=auto:size=65536 "$IMAGE" sh -c 'cat /proc/self/uid_map; stat -c %u:%g /etc/passwd'
	assert "${lines[0]}" =~ "^ *0 +${FIRST_ID:0:4}[0-9]* +65536\$" "uid_map"
	is "${lines[1]}" 0:0 "owner of /etc/passwd inside"
}
