#!/usr/bin/env bats
# CRI-O with the driver inside: pods with hostUsers: false, which carry their
# mapping, and pods without. Run for several engines, see helpers.bash. With the
# variant program, CRI-O uses driver overlay with shiftoverlay-mount; it knows
# nothing of the driver then, although it is linked.

bats_require_minimum_version 1.5.0
load helpers
load crio

@test "CRI-O: a pod with a user namespace" {
	pod p 1000000
	container p
	run -0 cri exec "$C" sh -c 'cat /proc/self/uid_map; stat -c %u:%g:%a / /etc/passwd /srv/shift/user1000 /srv/shift/nobody'
	assert "${lines[0]}" =~ '^ *0 +1000000 +65536$' "uid_map"
	is "${output#*$'\n'}" $'0:0:555\n0:0:644\n1000:1000:640\n65534:65534:644' "owners inside"
	is "$(owner "$M") $(owner "$M/etc/passwd") $(owner "$M/srv/shift/user1000")" \
		"1000000:1000000 1000000:1000000 1001000:1001000" "owners outside"
	is "$(engine_of "$M")" "$(expected_engine) 1000000" "record of the container's layer"
	# Nothing was copied, and the image's own layer is as it was.
	assert "$(du -s --apparent-size -B1 "${M%/merged}/diff" | cut -f1)" -lt 40000 "bytes in the container's own layer"
	layer_of "$IMAGE"
	is "$(owner "$UPPER/etc/passwd")" 0:0 "owner in the image's own layer"
	status_row 'Shift cache entries'
	is "$output" "$(entries 1)" "shifted lowers in the cache"

	run -0 cri exec "$C" sh -ec 'echo hi >/new; chown 33:34 /new; chmod 711 /etc/passwd; su user -c "/usr/local/bin/whoami-suid; /usr/local/bin/whoami-cap"'
	assert "${lines[0]}" =~ 'euid=0 ' "a setuid program of the image"
	assert "${lines[1]}" =~ 'capeff=0000000000000400' "a program with a file capability"
	is "$(owner "$M/new") $(owner "$M/etc/passwd")" "1000033:1000034 1000000:1000000" "owners of changed files, outside"
	run -3 cri exec "$C" sh -c 'exit 3'
}

@test "CRI-O: pods with several mappings and without, of one image" {
	pod a 1000000
	container a
	local a=$C am=$M
	pod b 2000000
	container b
	local b=$C
	is "$(owner "$am/etc/passwd") $(owner "$M/etc/passwd")" "1000000:1000000 2000000:2000000" "owners outside"
	pod host
	container host
	is "$(owner "$M/etc/passwd")" 0:0 "owner outside, of a container of the host's user namespace"
	run -0 cri exec "$C" cat /proc/self/uid_map
	assert "$output" =~ '^ *0 +0 +4294967295$' "uid_map of a pod with hostUsers"
	cri exec "$a" sh -c 'echo a >/etc/group'
	run -0 cri exec "$b" cat /etc/group
	assert "$output" =~ 'root:' "what another pod changed"
	# A second container of a pod shares its mapping.
	sed -i 's/"name": "c"/"name": "d"/' "$WORK/a.container"
	POD=${PODS[0]}
	container a
	is "$(owner "$M/etc/passwd")" 1000000:1000000 "owner outside, second container"
	status_row 'Shift cache entries'
	is "$output" "$(entries 2)" "shifted lowers in the cache"
}
