#!/usr/bin/env bats
# shiftoverlay adopt: a store of overlay, with images, stopped containers, a volume
# and a pod, changes to this driver and back, with podman's own database.

load helpers

AUTO=--userns=auto:size=65536

setup() {
	basic_setup
	use_store o overlay
}

# driver NAME: storage.conf selects it.
driver() {
	sed -i "s/^driver = .*/driver = \"$1\"/" "$CONTAINERS_STORAGE_CONF"
	DRIVER=$1 STORES="s:shiftoverlay o:$1"
}

# metacopy: overlay shows files of which only metadata was changed.
metacopy() {
	printf '[storage.options]\nmountopt = "nodev,metacopy=on"\n' >>"$CONTAINERS_STORAGE_CONF"
}

# settled: nothing is mounted any more, which podman sees to in the background, and
# no cleanup that has unmounted still has the database open.
settled() {
	local i
	for ((i = 0; i < 300; i++)); do
		if ! grep -qE " $WORK/o/.*/merged " /proc/self/mountinfo &&
			[ -z "$(find /proc/[0-9]*/fd -lname "$GRAPH/*.sql" -o -lname "$GRAPH/libpod/bolt_state.db" 2>/dev/null)" ]; then
			return
		fi
		sleep 0.1
	done
	die "something is still mounted, or the database open, after 30 seconds"
}

# SCRIPT: what containers do at each start: tell what was there, and add to it.
SCRIPT='
cat /runs 2>/dev/null
echo run >>/runs
[ -e /own ] || { echo own >/own; chown 33:34 /own; chmod 600 /srv/shift/user1000; rm /srv/shift/empty; }
stat -c "%n %u:%g %a" /own /srv/shift/user1000 /etc/passwd
ls /srv/shift/empty 2>&1
cat /srv/shift/user1000'

TOLD='/own 33:34 644
/srv/shift/user1000 1000:1000 600
/etc/passwd 0:0 644
ls: /srv/shift/empty: No such file or directory
of uid 1000'

# fill: images, stopped containers, a volume and a pod.
fill() {
	import
	run_podman run --name plain "$IMAGE" sh -c "$SCRIPT"
	run_podman run --name mapped "$AUTO" "$IMAGE" sh -c "$SCRIPT"
	run_podman create --name fresh "$AUTO" "$IMAGE" sh -c "$SCRIPT"
	run_podman volume create data
	run_podman run --name volume -v data:/data "$IMAGE" sh -c 'echo more >>/data/file; cat /data/file'
	run_podman pod create --name pod --infra=false
	run_podman run --pod pod --name member -e KEEP="$GRAPH/overlay/x" "$IMAGE" sh -c 'echo $KEEP'
	run_podman create --name over -v "$BUILD/images:/images:O" "$IMAGE" sh -c 'ls /images/busybox.tar; : >/images/new'
	run_podman commit -q plain localhost/new
	settled
}

# look_all N: every container starts for the Nth time and has what it had.
look_all() {
	local n=$1 c runs
	runs=$(for ((c = 1; c < n; c++)); do echo run; done)
	for c in plain mapped; do
		run_podman start -a $c
		is "$output" "$runs
$TOLD" "container $c, start $n"
	done
	run_podman start -a fresh
	is "$output" "$(for ((c = 2; c < n; c++)); do echo run; done; echo "$TOLD")" "container fresh, start $n"
	run_podman start -a volume
	is "${#lines[@]}" "$n" "lines in the volume"
	run_podman start -a member
	is "$output" "$WORK/o/graph/overlay/x" "a container's own environment"
	run_podman start -a over
	is "$output" /images/busybox.tar "a volume with an overlay"
	run_podman ps -a --format '{{.Names}} {{.PodName}}' --sort names
	is "$output" "$(printf '%s \n' fresh mapped)
member pod
$(printf '%s \n' over plain volume)" "podman ps -a"
	run_podman diff mapped
	for c in 'A /own' 'A /runs' 'D /srv/shift/empty'; do assert "$output" =~ "$c" "diff of mapped"; done
	assert "$output" !~ 'etc/passwd' "diff of mapped"
	run_podman run --rm "$AUTO" localhost/new stat -c %u:%g /own
	is "$output" 33:34 "owner in the image of before"
	settled
}

@test "a store of overlay is adopted, and goes back" {
	fill
	is "$(sqlite3 "$GRAPH/db.sql" 'SELECT GraphDriver FROM DBConfig')" overlay "driver in the database"
	driver shiftoverlay
	cli 125 ls
	assert "$output" =~ 'no store of the driver' "before it is adopted"
	cli adopt --dry-run
	assert "$output" =~ 'Would rename .*/graph/overlay to shiftoverlay' "what would be done"
	[ -d "$GRAPH/overlay-containers" ] || die "--dry-run has done something"
	capture "$BUILD/shiftoverlay" adopt <<<n
	assert "$output" =~ 'with 2 images and 6 containers, podman.s database .*/graph/db.sql one of driver shiftoverlay.*\[y/N\]' "the question"
	[ -d "$GRAPH/overlay-containers" ] || die "a no was taken for a yes"
	cli adopt --force
	assert "$output" =~ 'is one of driver shiftoverlay now' "what was done"
	is "$(find "$GRAPH" "$RUN" -maxdepth 1 -name 'overlay*')" '' "folders that are overlay's"
	is "$(sqlite3 "$GRAPH/db.sql" .dump | grep -F "$WORK/o" | grep -E '/overlay(-[a-z]+)?/' | grep -vF "$GRAPH/overlay/x")" '' "paths in the database"
	cli adopt --force
	assert "$output" =~ 'is one of driver shiftoverlay already' "the second time"
	# Before it is started again: whose files are these?
	run_podman commit -q mapped localhost/early
	run_podman run --rm localhost/early stat -c %u:%g /own
	is "$output" 33:34 "owner in an image that was committed at once"
	look_all 2
	run_podman info --format '{{.Store.GraphDriverName}}'
	is "$output" shiftoverlay "driver"
	run_podman commit -q mapped localhost/mapped
	run_podman run --rm localhost/mapped stat -c %u:%g:%a /own /srv/shift/user1000
	is "$output" $'33:34:644\n1000:1000:600' "owners in an image that was committed here"
	run_podman run --name since "$AUTO" "$IMAGE" sh -c "$SCRIPT"
	settled
	cli check

	cli 125 adopt --back --force
	assert "$output" =~ 'containers .*since.*mountopt = "nodev,metacopy=on"' "what overlay lacks"
	metacopy
	cli adopt --back --force
	assert "$output" =~ "Now write driver = \"overlay\" into $CONTAINERS_STORAGE_CONF" "advice"
	driver overlay
	is "$(find "$GRAPH" "$RUN" -maxdepth 1 -name 'shiftoverlay*')" '' "folders that are ours"
	run_podman start -a since
	is "$output" "run
$TOLD" "a container of the time between"
	run_podman rm since
	# The second diff and commit are overlay's own.
	run_podman info --format '{{.Store.GraphDriverName}}'
	is "$output" overlay "driver"
	look_all 3
	cli adopt --force
	driver shiftoverlay
	look_all 4
	cli check
}

@test "adopt refuses while containers run" {
	import
	run_podman run -d --name busy "$IMAGE" sleep 1000
	cli 125 adopt --force
	assert "$output" =~ 'containers run, or are mounted: busy: stop them' "message"
	[ -d "$GRAPH/overlay-containers" ] || die "something has moved"
	run_podman exec busy true
	run_podman stop -t 0 busy
	run_podman mount busy
	cli 125 adopt --force
	assert "$output" =~ 'are mounted: busy: stop them' "message of a mounted container"
	run_podman unmount busy
	settled
	# Whoever has the database open would go on with it.
	sleep 1000 <"$GRAPH/db.sql" &
	local pid=$! i
	for ((i = 0; i < 100; i++)); do
		[ "$(cat /proc/$pid/comm)" != sleep ] || break
		sleep 0.1
	done
	cli 125 adopt --force
	assert "$output" =~ "process $pid \(sleep\) has $GRAPH/db.sql open" "message of an open database"
	kill $pid
	wait $pid || true
	cli adopt --force
	driver shiftoverlay
	run_podman start busy
	cli 125 adopt --back --force
	assert "$output" =~ 'are mounted: busy: stop them' "message, on the way back"
	run_podman exec busy true
}

# kill_adopt [--back]: begin, and be killed: in every other round as soon as the journal
# is there, in the others a twelfth later each time of what the last whole one took.
kill_adopt() {
	local at pid
	"$BUILD/shiftoverlay" adopt --force "$@" >/dev/null 2>&1 &
	pid=$!
	at=$((${EPOCHREALTIME/./} + took * i / 12))
	if [ $((i % 2)) -eq 0 ]; then
		until [ -e "$GRAPH/shiftoverlay-adopt.json" ] || ! kill -0 $pid 2>/dev/null; do :; done
	else
		while [ "${EPOCHREALTIME/./}" -lt $at ]; do :; done
	fi
	kill -KILL $pid 2>/dev/null || true
	rc=0
	wait $pid || rc=$?
	if [ $rc -eq 137 ]; then
		killed=$((killed + 1))
	elif [ $rc -ne 0 ]; then
		die "adopt $*: exit status $rc"
	fi
	[ ! -e "$GRAPH/shiftoverlay-adopt.json" ] || unfinished=$((unfinished + 1))
}

# whole_adopt [--back]: to its end, and the time that it takes, in microseconds.
whole_adopt() {
	took=${EPOCHREALTIME/./}
	cli adopt --force "$@"
	took=$((${EPOCHREALTIME/./} - took))
}

@test "killed at any moment, adopt goes on" {
	local i took rc killed=0 unfinished=0
	import
	run_podman run --name mapped "$AUTO" "$IMAGE" sh -c "$SCRIPT"
	settled
	metacopy
	driver shiftoverlay
	whole_adopt
	whole_adopt --back
	for ((i = 1; i <= 12; i++)); do
		kill_adopt
		if [ -e "$GRAPH/shiftoverlay-adopt.json" ] && [ "$(sqlite3 "$GRAPH/db.sql" 'SELECT GraphDriver FROM DBConfig')" = shiftoverlay ]; then
			run_podman 125 ps
			assert "$output" =~ 'did not come to its end: run .shiftoverlay adopt' "podman between two tries"
		fi
		whole_adopt
		[ ! -e "$GRAPH/shiftoverlay-adopt.json" ] || die "the journal is still there"
		is "$(find "$GRAPH" -maxdepth 1 -name 'overlay*')" '' "folders of overlay, round $i"
		cli adopt --dry-run
		assert "$output" =~ 'already' "round $i"
		[ "$i" -lt 12 ] || break
		kill_adopt --back
		[ $((i % 2)) -eq 0 ] || cli adopt --force # or not
		whole_adopt --back
		is "$(find "$GRAPH" -maxdepth 1 -name 'shiftoverlay*')" '' "folders of shiftoverlay, round $i"
	done
	echo "# $killed processes killed, $unfinished in the middle of it" >&3
	assert "$killed" -ge 1 "processes killed"
	assert "$unfinished" -ge 1 "processes killed in the middle"
	run_podman start -a mapped
	is "$output" "run
$TOLD" "the container after all of that"
}

@test "containers that overlay has chowned stay as they are" {
	export _CONTAINERS_OVERLAY_DISABLE_IDMAP=yes
	import
	run_podman run --name chowned --uidmap 0:300000:65536 "$IMAGE" sh -c "$SCRIPT"
	settled
	driver shiftoverlay
	cli adopt --force
	run_podman start -a chowned
	is "$output" "run
$TOLD" "under the driver"
	record chowned .engine
	is "$RECORD" overlay "engine in the record"
	run_podman run --name new "$AUTO" "$IMAGE" sh -c "$SCRIPT"
	is "$output" "$TOLD" "a new container"
	settled
	metacopy
	cli 125 adopt --back --force
	assert "$output" =~ 'overlay has no idmapped mounts here, so it could not start the containers with user namespaces new: commit' "message"
	assert "$output" !~ chowned "message"
	run_podman rm new
	cli adopt --back --force
	driver overlay
	run_podman start -a chowned
	is "$output" "run
run
$TOLD" "back under overlay"
	unset _CONTAINERS_OVERLAY_DISABLE_IDMAP
}

@test "a database of podman 4" {
	export PATH=$BUILD/stock:$PATH
	import
	run_podman run --name old "$AUTO" "$IMAGE" sh -c "$SCRIPT"
	run_podman container cleanup old # which this podman does not always do by itself
	settled
	[ -e "$GRAPH/libpod/bolt_state.db" ] || die "podman 4 has made no BoltDB"
	PATH=${PATH#*:}
	driver shiftoverlay
	cli adopt --force
	run_podman start -a old
	is "$output" "run
$TOLD" "under the driver"
	run_podman info --format '{{.Host.DatabaseBackend}} {{.Store.GraphDriverName}}'
	is "$output" "boltdb shiftoverlay" "database and driver"
	settled
	metacopy
	cli adopt --back --force
	driver overlay
	run_podman start -a old
	is "$output" "run
run
$TOLD" "back under overlay"
}

@test "stores that cannot be adopted say why" {
	import
	settled
	sed -i 's/^driver = .*/&\nimagestore = "\/nowhere"/' "$CONTAINERS_STORAGE_CONF"
	cli 125 adopt --force
	assert "$output" =~ 'stores in two parts cannot change drivers' "imagestore"
	sed -i '/imagestore/d' "$CONTAINERS_STORAGE_CONF"
	echo true >"$GRAPH/overlay/.has-mount-program"
	cli 125 adopt --force
	assert "$output" =~ "shiftoverlay-mount --restore $GRAPH" "mount_program"
	echo false >"$GRAPH/overlay/.has-mount-program"
	mkdir -p "$GRAPH/shiftoverlay-images/0"
	cli 125 adopt --force
	assert "$output" =~ 'both hold something' "two drivers"
	rmdir "$GRAPH/shiftoverlay-images/0"
	cli adopt --force
	is "$(ls "$GRAPH/shiftoverlay-images/images.json")" "$GRAPH/shiftoverlay-images/images.json" "images"
	driver shiftoverlay
}
