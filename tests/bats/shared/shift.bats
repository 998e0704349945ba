#!/usr/bin/env bats
# Containers with a mapping see the image with shifted owners, and all else as
# it is. Run for each engine, see helpers.bash.

load helpers

AUTO=--userns=auto:size=65536
# The same 65,536 IDs for each container that asks for them.
FIXED=(--uidmap=0:100000:65536 --gidmap=0:200000:65536)

# start NAME RUN-OPTIONS...: a container that does nothing.
start() {
	local name=$1
	shift
	run_podman run -d --name "$name" "$@" "$IMAGE" sleep 1000
}

# merged CONTAINER: sets M to the folder where its root file system is mounted.
merged() {
	run_podman mount "$1"
	M=$output
	[ -d "$M" ] || die "no folder $M"
}

@test "auto: root inside is the start of a fresh range outside" {
	import
	start con "$AUTO"
	range con
	run_podman exec con stat -c %u:%g / /etc/passwd /srv/shift/user1000 /srv/shift/nobody
	is "$output" $'0:0\n0:0\n1000:1000\n65534:65534' "owners inside"
	merged con
	is "$(owner "$M")" "$RANGE:$RANGE" "owner of / outside"
	is "$(owner "$M/etc/passwd")" "$RANGE:$RANGE" "owner of /etc/passwd outside"
	is "$(owner "$M/srv/shift/user1000")" "$((RANGE + 1000)):$((RANGE + 1000))" "owner of a file of user 1000 outside"
	run_podman unmount con
	record con '"\(.engine) \(.uids[0].container_id):\(.uids[0].host_id):\(.uids[0].size)"'
	is "$RECORD" "$(expected_engine) 0:$RANGE:65536" "mapping record"
	layer_of "$IMAGE"
	is "$(owner "$UPPER/etc/passwd")" 0:0 "owner in the image's own layer"
}

@test "auto: the size comes from the image" {
	import
	start con --userns=auto
	run_podman exec con sh -c 'cat /proc/self/uid_map; stat -c %u:%g /etc/passwd /srv/shift/user1000'
	assert "${lines[0]}" =~ "^ *0 +${FIRST_ID:0:4}[0-9]* +[0-9]+\$" "uid_map"
	is "${lines[1]}" 0:0 "owner of /etc/passwd"
	is "${lines[2]}" 1000:1000 "owner of a file of user 1000"
}

@test "two containers have disjoint ranges and cannot write each other's files" {
	import
	start con1 "$AUTO"
	start con2 "$AUTO"
	local r1 r2 m1
	range con1
	r1=$RANGE
	range con2
	r2=$RANGE
	assert $((r1 > r2 ? r1 - r2 : r2 - r1)) -ge 65536 "distance of the ranges"
	run_podman exec con1 sh -c 'echo mine >/mine && chmod 644 /mine'
	merged con1
	# The folders above are closed to others; here only the files' owners count.
	m1=$WORK/con1
	mkdir "$m1"
	mount --bind "$M" "$m1"
	# What con1's own root may do, con2's may not; first the namespace, then the bare ID.
	in_userns con1 sh -c "echo more >>'$m1/mine' && echo more >>'$m1/etc/group'"
	local who file
	for file in mine etc/group; do
		for who in "in_userns con2" "setpriv --reuid $r2 --regid $r2 --clear-groups"; do
			run $who sh -c "echo more >>'$m1/$file'"
			assert "$status" -ne 0 "$who writes to /$file of con1: exit status"
			assert "$output" =~ 'Permission denied' "$who writes to /$file of con1: message"
		done
		setpriv --reuid "$r1" --regid "$r1" --clear-groups sh -c "echo more >>'$m1/$file'"
	done
	# From inside of a container that has the other's tree mounted.
	run_podman run --rm "$AUTO" -v "$m1:/other" "$IMAGE" sh -c 'stat -c %u:%g /other/mine; echo more 2>&1 >>/other/mine; echo more 2>&1 >>/other/etc/group; touch /other/new 2>&1; true'
	is "${lines[0]}" 65534:65534 "owner of another container's file"
	is "$(grep -c 'Permission denied' <<<"$output")" 3 "refusals inside of a third container"
	run_podman exec con1 cat /mine
	is "$output" $'mine\nmore\nmore' "content of con1's file"
	run_podman exec con2 cat /etc/group
	assert "$output" !~ more "con2's copy of the file that con1 changed"
	umount "$m1"
	run_podman unmount con1
}

@test "explicit mappings of several extents" {
	import
	start con --uidmap 0:100000:1000 --uidmap 1000:300000:1 --uidmap 1001:101001:64535 \
		--gidmap 0:200000:1000 --gidmap 1000:400000:1 --gidmap 1001:201001:64535
	run_podman exec con stat -c %u:%g /etc/passwd /srv/shift/user1000 /srv/shift/nobody
	is "$output" $'0:0\n1000:1000\n65534:65534' "owners inside"
	merged con
	is "$(owner "$M/etc/passwd")" 100000:200000 "first extent"
	is "$(owner "$M/srv/shift/user1000")" 300000:400000 "second extent"
	is "$(owner "$M/srv/shift/nobody")" 165534:265534 "third extent"
	run_podman exec --user 1000:1000 con sh -c 'echo x >/srv/shift/setgid/new && stat -c %u:%g /srv/shift/setgid/new'
	is "$output" 1000:1000 "owner of a new file inside"
	is "$(owner "$M/srv/shift/setgid/new")" 300000:400000 "owner of a new file outside"
	if [ -n "$PROGRAM" ]; then # of several extents, the library makes another image
		run_podman unmount con
		return
	fi
	record con '[.uids[] | "\(.container_id):\(.host_id):\(.size)"] | join(",")'
	is "$RECORD" 0:100000:1000,1000:300000:1,1001:101001:64535 "mapping record"
	run_podman unmount con
}

@test "a mapping as keep-id makes it: one user is the host's root" {
	import
	local map='0:1:1000 1000:0:1 1001:1001:64536' m args=()
	for m in $map; do args+=(--uidmap "$m" --gidmap "$m"); done
	start con "${args[@]}"
	run_podman exec con stat -c %u:%g /etc/passwd /srv/shift/user1000 /srv/shift/nobody
	is "$output" $'0:0\n1000:1000\n65534:65534' "owners inside"
	merged con
	is "$(owner "$M/etc/passwd")" 1:1 "owner of root's file outside"
	is "$(owner "$M/srv/shift/user1000")" 0:0 "owner of the user's file outside"
	is "$(owner "$M/srv/shift/nobody")" 65534:65534 "owner outside of an ID that is mapped to itself"
	run_podman exec --user 1000 con cat /srv/shift/user1000
	is "$output" 'of uid 1000' "a file with mode 0640"
	run_podman unmount con
}

@test "the tree inside is the image's, in every attribute" {
	import
	local plain
	listing "$IMAGE"
	plain=$TREE
	assert "$plain" =~ $'\n/srv/shift/link1 regular file 644 0:0 0,0 size 22 time 2001-02-03 04:05:06.123456789 ' "listing"
	assert "$plain" =~ 'hard links: /srv/shift/link1 /srv/shift/link2 /srv/shift/link3' "listing"
	listing "$AUTO" "$IMAGE"
	same_text "$plain" "$TREE" "tree under a mapping"
	listing "${FIXED[@]}" "$IMAGE"
	same_text "$plain" "$TREE" "tree under another mapping"
	run_podman run --rm "$AUTO" "$IMAGE" stat -c %h /srv/shift/link1 /srv/shift/link2 /srv/shift/empty
	is "$output" $'3\n3\n1' "link counts"
}

@test "an image of several layers, with whiteouts and opaque folders" {
	import
	run_podman run --name one "$IMAGE" sh -c '
		rm /srv/shift/empty; rm -rf /srv/shift/secret; mkdir /srv/shift/secret; echo new >/srv/shift/secret/other
		mv /srv/shift/sticky /srv/shift/moved; chmod 4711 /srv/shift/user1000; ln /srv/shift/link1 /srv/shift/link4; mkdir -p /a/b/c'
	run_podman commit -q one localhost/two
	run_podman run --name two localhost/two sh -c '
		echo back >/srv/shift/empty; rm /srv/shift/secret/other; chown 33:34 /srv/shift/nobody
		rm -rf /a; echo file >/a; rm /srv/shift/symlink; mkdir /srv/shift/symlink; mv /srv/shift/setgid /setgid'
	run_podman commit -q two localhost/three
	local plain
	listing localhost/three
	plain=$TREE
	assert "$plain" =~ $'\n/srv/shift/nobody regular file 644 33:34 ' "listing"
	assert "$plain" !~ secret/other "listing"
	listing "$AUTO" localhost/three
	same_text "$plain" "$TREE" "tree under a mapping"
}

@test "read-only root" {
	import
	run_podman run --rm --read-only "$AUTO" "$IMAGE" sh -c 'stat -c %u:%g / /etc/passwd /srv/shift/user1000; touch /new 2>&1; touch /tmp/new && echo ok; su user -c whoami-suid'
	is "${lines[0]} ${lines[1]} ${lines[2]}" '0:0 0:0 1000:1000' "owners"
	assert "${lines[3]}" =~ 'Read-only file system' "a write to the root"
	is "${lines[4]}" ok "a write to /tmp"
	assert "${lines[5]}" =~ 'uid=1000 euid=0 ' "a setuid program"
}

@test "stop, start and restart keep content and owners" {
	import
	start con "$AUTO"
	range con
	local before=$RANGE
	run_podman exec con sh -c 'echo hi >/new; chown 33:34 /new; chmod 600 /etc/group; echo more >>/srv/shift/user1000; rm /srv/shift/empty; mv /srv/shift/setgid /srv/shift/gone'
	local look='stat -c %n:%a:%u:%g / /new /etc/group /etc/passwd /srv/shift/user1000 /srv/shift/gone; cat /new /srv/shift/user1000; test -e /srv/shift/empty || echo deleted'
	run_podman exec con sh -c "$look"
	local want=$output
	assert "$want" =~ /new:644:33:34 "changed file"
	run_podman stop -t 0 con
	run_podman start con
	range con
	is "$RANGE" "$before" "range after a restart"
	run_podman exec con sh -c "$look"
	same_text "$want" "$output" "after stop and start"
	run_podman restart -t 0 con
	run_podman exec con sh -c "$look"
	same_text "$want" "$output" "after restart"
	merged con
	is "$(owner "$M/new")" "$((before + 33)):$((before + 34))" "owner outside"
	run_podman unmount con
}

@test "a container starts again after a reboot" {
	import
	start con "$AUTO"
	range con
	local before=$RANGE
	run_podman exec con sh -c 'echo hi >/new; chown 33:34 /new'
	run_podman stop -t 0 con
	if builds; then
		# What was not yet on disk when the power failed is damaged.
		find "$SHIFTED" -path '*/etc/passwd' -exec chown 7:7 {} +
		find "$SHIFTED" -name image.erofs -exec truncate -s 4096 {} +
	fi
	# A new boot ID; no container can be started while something covers a
	# file in /proc, but mounted.
	rm -rf "$RUN"
	forget_boot
	cat /proc/sys/kernel/random/uuid >"$WORK/boot_id"
	mount --bind "$WORK/boot_id" /proc/sys/kernel/random/boot_id
	merged con
	is "$(owner "$M/etc/passwd")" "$before:$before" "owner after the reboot"
	is "$(owner "$M/new")" "$((before + 33)):$((before + 34))" "owner of the container's own file after the reboot"
	run_podman unmount con
	umount /proc/sys/kernel/random/boot_id
	# And another one.
	rm -rf "$RUN"
	forget_boot
	run_podman start con
	range con
	is "$RANGE" "$before" "range after the reboot"
	run_podman exec con sh -c 'stat -c %u:%g /new /etc/passwd /srv/shift/user1000; cat /new'
	is "$output" $'33:34\n0:0\n1000:1000\nhi' "owners and content after the reboot"
}

@test "exec as another user" {
	import
	start con "$AUTO"
	range con
	run_podman exec --user 1000:1000 con sh -c 'id -u; cat /srv/shift/user1000; touch /srv/shift/setgid/mine; touch /root/mine 2>&1; cat /srv/shift/secret/file 2>&1; true'
	is "${lines[0]}" 1000 "uid"
	is "${lines[1]}" 'of uid 1000' "own file"
	assert "${lines[2]}" =~ 'Permission denied' "root's folder"
	assert "${lines[3]}" =~ 'Permission denied' "a folder with mode 0700"
	merged con
	is "$(owner "$M/srv/shift/setgid/mine")" "$((RANGE + 1000)):$((RANGE + 1000))" "owner of a new file outside"
	run_podman unmount con
}

@test "cp in and out" {
	import
	start con "$AUTO"
	range con
	mkdir "$WORK/in"
	echo data >"$WORK/in/file"
	chmod 640 "$WORK/in/file"
	run_podman cp "$WORK/in" con:/srv/in
	run_podman exec con sh -c 'stat -c %u:%g:%a /srv/in /srv/in/file; cat /srv/in/file'
	is "$output" $'0:0:755\n0:0:640\ndata' "what was copied in"
	run_podman cp con:/srv/shift/user1000 "$WORK/out"
	is "$(cat "$WORK/out")" 'of uid 1000' "what was copied out"
	run_podman stop -t 0 con
	run_podman cp "$WORK/in/file" con:/stopped
	run_podman cp con:/stopped "$WORK/out2"
	is "$(cat "$WORK/out2")" data "copied into a stopped container and out again"
	run_podman start con
	run_podman exec con stat -c %u:%g:%a /stopped
	is "$output" 0:0:640 "what was copied into the stopped container"
	merged con
	is "$(owner "$M/stopped")" "$RANGE:$RANGE" "owner outside"
	run_podman unmount con
}

@test "mount and unmount of a stopped container" {
	import
	run_podman create --name con "${FIXED[@]}" "$IMAGE" true
	merged con
	is "$(owner "$M/srv/shift/user1000")" 101000:201000 "owner before the first start"
	run_podman unmount con
	[ -z "$(ls -A "$M")" ] || die "$M is still mounted"
	run_podman start -a con
	merged con
	is "$(owner "$M/srv/shift/user1000")" 101000:201000 "owner after the first start"
	run_podman mount
	assert "$output" =~ "$M" "list of mounts"
	run_podman unmount con
}

@test "diff lists what changed" {
	import
	start con "$AUTO"
	run_podman exec con sh -c 'echo hi >/srv/new; chmod 600 /etc/group; rm /srv/shift/empty; rm -rf /srv/shift/secret; mkdir /srv/dir; ln -s x /srv/dir/link; chown 1000 /srv/shift/link1'
	run_podman diff con
	is "$(sort -k2 <<<"$output")" "$(sort -k2 <<-END
		C /etc
		C /etc/group
		C /srv
		A /srv/dir
		A /srv/dir/link
		A /srv/new
		C /srv/shift
		D /srv/shift/empty
		C /srv/shift/link1
		D /srv/shift/secret
	END
	)" "podman diff"
	run_podman stop -t 0 con
	run_podman diff --format json con
	is "$(jq -r '.added | sort | join(" ")' <<<"$output")" '/srv/dir /srv/dir/link /srv/new' "of a stopped container"
}

@test "sizes count what the container wrote" {
	import
	start con "$AUTO"
	run_podman exec con sh -c 'dd if=/dev/zero of=/megabyte bs=1024 count=1024 2>/dev/null; chown 5:5 /bin/busybox'
	run_podman container inspect --size --format '{{.SizeRw}}' con
	assert "$output" -ge 1048576 "size of the container's layer"
	# With a mount program the library compares trees, and a changed file counts whole.
	[ -z "$PROGRAM" ] || return 0
	local most=1200000
	[ -z "${SANDBOX_ROOTLESS:-}" ] || most=3200000 # the kernel copies the data, too, for an ordinary user
	assert "$output" -lt "$most" "size of the container's layer, with a file of 1.9 MB that was given to somebody else"
	run_podman system df --format json
	is "$(jq '[.[] | select(.Type == "Containers")][0].Total' <<<"$output")" 1 "containers in podman system df"
	assert "$(jq '[.[] | select(.Type == "Containers")][0].RawSize' <<<"$output")" -lt "$most" "size of containers in podman system df"
	assert "$(jq '[.[] | select(.Type == "Images")][0].RawSize' <<<"$output")" -lt 20000000 "size of images in podman system df"
}

@test "system check finds nothing wrong" {
	not_rootless "podman itself misses the devices of an image, which nobody can make there"
	import
	start con "$AUTO"
	run_podman exec con sh -c 'echo hi >/new'
	PATH=$BUILD:$PATH # podman 4 does not have the command
	run_podman system check
	is "$output" '' "podman system check"
	run_podman run --rm "$AUTO" "$IMAGE" true
	run_podman stop -t 0 con
	run_podman system check
	is "$output" '' "podman system check with a stopped container"
}

@test "volumes: :U gives them to the container" {
	import
	mkdir -p "$WORK/vol"
	echo data >"$WORK/vol/file"
	start con "$AUTO" -v "$WORK/vol:/vol:U" --user 1000:1000
	range con
	is "$(owner "$WORK/vol/file")" "$((RANGE + 1000)):$((RANGE + 1000))" "owner outside"
	run_podman exec con sh -c 'stat -c %u:%g /vol/file && echo more >>/vol/file'
	is "$output" 1000:1000 "owner inside"
	is "$(cat "$WORK/vol/file")" $'data\nmore' "what the container wrote"
}

@test "volumes: a new named volume gets the image's files and owners" {
	import
	run_podman volume create vol
	start con "$AUTO" -v vol:/srv/shift/setgid
	run_podman exec con stat -c %u:%g /srv/shift/setgid
	is "$output" 1000:1000 "owner of the volume's root"
	run_podman exec --user 1000:1000 con sh -c 'touch /srv/shift/setgid/new && stat -c %u:%g /srv/shift/setgid/new'
	is "$output" 1000:1000 "owner of a new file in the volume"
}

@test "setuid programs and file capabilities work" {
	import
	run_podman run --rm "$AUTO" "$IMAGE" sh -c 'su user -c whoami-plain; su user -c whoami-suid; su user -c whoami-cap'
	is "${lines[0]}" 'uid=1000 euid=1000 gid=1000 egid=1000 capeff=0000000000000000' "plain program"
	assert "${lines[1]}" =~ 'uid=1000 euid=0 gid=1000 egid=1000 capeff=0*[1-9a-f]' "setuid program"
	is "${lines[2]}" 'uid=1000 euid=1000 gid=1000 egid=1000 capeff=0000000000000400' "program with cap_net_bind_service"
}

@test "SELinux labels of the image's files stay" {
	import
	layer_of "$IMAGE"
	local f label=system_u:object_r:container_file_t:s0
	for f in etc/passwd srv/shift srv/shift/symlink bin/busybox srv/shift/link1; do
		setfattr -h -n security.selinux -v "$label:${f//\//.}" "$UPPER/$f"
	done
	start con "$AUTO"
	merged con
	for f in etc/passwd srv/shift srv/shift/symlink bin/busybox srv/shift/link1; do
		is "$(getfattr -h --absolute-names --only-values -n security.selinux "$M/$f" 2>&1)" "$label:${f//\//.}" "label of $f"
	done
	is "$(getfattr -h --absolute-names --only-values -n security.selinux "$M/srv/shift/link3" 2>&1)" "$label:srv.shift.link1" "label of a hard link"
	is "$(getfattr --absolute-names --only-values -n user.shift "$M/srv/shift/link2")" 'kept as it is' "a user's attribute"
	run_podman unmount con
}

@test "POSIX ACLs are shifted" {
	import
	layer_of "$IMAGE"
	setfacl -m u:1000:r,g:33:rw "$UPPER/srv/shift/link1" || skip "no POSIX ACLs on this file system"
	setfacl -m u:1000:rwx,d:u:1000:rwx,d:g:34:rx "$UPPER/srv/shift/secret"
	start con "${FIXED[@]}"
	merged con
	is "$(getfacl -ncE --absolute-names "$M/srv/shift/link1" | grep -E '^(user|group):[0-9]')" $'user:101000:r--\ngroup:200033:rw-' "ACL of a file"
	is "$(getfacl -ncE --absolute-names "$M/srv/shift/secret" | grep -E '(user|group):[0-9]')" \
		$'user:101000:rwx\ndefault:user:101000:rwx\ndefault:group:200034:r-x' "ACLs of a folder"
	# A rule for user 1000 inside works for user 1000 inside, and not for 1001.
	run_podman exec --user 1000:1000 con sh -c 'cat /srv/shift/secret/file && touch /srv/shift/secret/new'
	is "$output" 'not to be read by others' "file in the folder with the ACL"
	run_podman exec --user 1001:1001 con sh -c 'cat /srv/shift/secret/file 2>&1; true'
	assert "$output" =~ 'Permission denied' "the same for another user"
	is "$(getfacl -ncE --absolute-names "$M/srv/shift/secret/new" | grep -E '^(user|group):[0-9]')" $'user:101000:rwx\ngroup:200034:r-x' "inherited ACL"
	run_podman unmount con
}

@test "unmapped owners show as 65534" {
	import_unknown_owner
	run_podman run --rm localhost/odd stat -c %u:%g /srv/odd/file /srv/odd/group
	is "$output" $'70000:0\n0:70001' "owners without a mapping"
	# An ordinary user's ranges begin at 1, so the first has the ID that stands for
	# nobody (decisions.md, 6).
	local map=("$AUTO")
	[ -z "${SANDBOX_ROOTLESS:-}" ] || map=("${FIXED[@]}")
	run_podman run --rm "${map[@]}" localhost/odd sh -c 'stat -c %u:%g /srv/odd/file /srv/odd/group; cat /srv/odd/file'
	is "$output" $'65534:0\n0:65534\nodd' "owners under a mapping"
}

@test "unmapped = \"refuse\" names path and ID and leaves nothing" {
	import_unknown_owner
	sandbox_engine "$ENGINE" 'unmapped = "refuse"'
	if [ "$ENGINE" = idmap ]; then
		run_podman '?' images
		assert "$status" -ne 0 "exit status"
		assert "$output" =~ 'idmapped mounts cannot refuse unmapped IDs' "message"
		assert "$output" =~ 'engine = "auto"' "message: the remedy"
		sandbox_engine auto 'unmapped = "refuse"'
	fi
	status_row 'Shift engine'
	assert "$output" != idmap "engine, and idmapped mounts cannot refuse"
	run_podman '?' run --rm "$AUTO" localhost/odd true
	assert "$status" -ne 0 "exit status"
	assert "$output" =~ 'srv/odd/(file|group)' "message: the path"
	assert "$output" =~ '7000[01]' "message: the ID"
	run_podman ps -a -q
	is "$output" '' "containers"
	is "$(find "$SHIFTED" -path '*odd*' 2>/dev/null)" '' "files in the cache"
	# Without a mapping, and under one that has the IDs, it runs.
	run_podman run --rm localhost/odd stat -c %u:%g /srv/odd/file
	is "$output" 70000:0 "owner without a mapping"
	run_podman run --rm --userns=auto:size=80000 localhost/odd stat -c %u:%g /srv/odd/file
	is "$output" 70000:0 "owner under a large mapping"
}

@test "a shifted lower is made once for a mapping and goes with the image" {
	import
	run_podman run --rm "${FIXED[@]}" "$IMAGE" true
	status_row 'Shift cache entries'
	is "$output" "$(entries 1)" "entries after the first container"
	local first
	first=$(find "$SHIFTED" \( -path '*/etc/passwd' -o -name image.erofs \) -printf '%i %p\n' 2>/dev/null || true)
	run_podman run --rm "${FIXED[@]}" "$IMAGE" true
	# The same mapping in other words.
	run_podman run --name con --uidmap 0:100000:30000 --uidmap 30000:130000:35536 --gidmap 0:200000:65536 "$IMAGE" true
	status_row 'Shift cache entries'
	is "$output" "$(entries 1)" "entries after three containers with one mapping"
	is "$(find "$SHIFTED" \( -path '*/etc/passwd' -o -name image.erofs \) -printf '%i %p\n' 2>/dev/null || true)" "$first" "the files of the entry"
	run_podman run --rm --uidmap=0:100000:65536 --gidmap=0:300000:65536 "$IMAGE" true
	status_row 'Shift cache entries'
	is "$output" "$(entries 2)" "entries after another mapping"
	run_podman rm con
	run_podman rmi "$IMAGE"
	# Nobody tells a mount program; it sees it at the next mount, or when asked.
	[ -z "$PROGRAM" ] || "$PROGRAM" --upkeep "$GRAPH"
	status_row 'Shift cache entries'
	is "$output" 0 "entries without the image"
	is "$(find "$SHIFTED" -path '*/etc*' 2>/dev/null || true)" '' "files in the cache"
}

@test "containers that start at once share one shifted lower" {
	import
	local i jobs=()
	for i in 1 2 3 4; do
		podman run --name "con$i" "${FIXED[@]}" "$IMAGE" stat -c %u:%g /etc/passwd /srv/shift/user1000 >"$WORK/out$i" 2>&1 3>&- &
		jobs+=($!)
	done
	for i in 1 2 3 4; do
		wait "${jobs[i - 1]}" || die "container $i: $(cat "$WORK/out$i")"
		is "$(cat "$WORK/out$i")" $'0:0\n1000:1000' "container $i"
	done
	status_row 'Shift cache entries'
	is "$output" "$(entries 1)" "entries"
}
