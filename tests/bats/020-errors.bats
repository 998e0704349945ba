#!/usr/bin/env bats
# What is wrong is named, with the remedy, and nothing is left behind.

load helpers

AUTO=--userns=auto:size=65536

# fails COMMAND...: podman fails, with all of it in one message.
fails() {
	run_podman '?' "$@"
	assert "$status" -ne 0 "podman $1: exit status"
	assert "$output" =~ 'Error: ' "podman $1: message"
}

# Settings that are refused: line of shiftoverlay.conf, words of the message.
@test "shiftoverlay.conf: a wrong value or key is named, with the file" {
	local line words word
	while IFS='|' read -r line words; do
		printf '[shiftoverlay]\n%s\n' "$line" >"$SHIFTOVERLAY_CONF"
		fails images
		assert "$output" =~ "$SHIFTOVERLAY_CONF" "$line: the file"
		for word in $words; do
			assert "$output" =~ "$word" "$line: the message"
		done
	done <<-'END'
		engine = "warp"|engine warp idmap erofs metacopy copyup
		engine = 5|engine text
		unmapped = "maybe"|unmapped maybe overflow refuse
		enginge = "idmap"|enginge engine
		workers = -1|workers -1
		workers = "2"|workers number
		cache_max_size = "big"|cache_max_size big
		cache_max_age = "old"|cache_max_age old 720h
		engine = "idmap|line
	END
	printf '[shiftoverlai]\n' >"$SHIFTOVERLAY_CONF"
	fails images
	assert "$output" =~ shiftoverlai "an unknown table"
	rm "$SHIFTOVERLAY_CONF"
	fails images
	assert "$output" =~ "$SHIFTOVERLAY_CONF" "a file that is not there"
	is "$(leftovers "$GRAPH" "$EMPTY_STORE" shiftoverlay)" '' "files in the store"
	sandbox_engine auto
	run_podman images -q
}

@test "a forced engine that does not work here says why" {
	not_rootless "other engines do not work there; 700-rootless.bats has a test"
	sandbox_engine idmap
	export _CONTAINERS_OVERLAY_DISABLE_IDMAP=yes
	fails images
	assert "$output" =~ 'engine does not work here: idmap' "the engine"
	assert "$output" =~ _CONTAINERS_OVERLAY_DISABLE_IDMAP "the reason"
	assert "$output" =~ 'engine = "auto"' "the remedy"
	sandbox_engine metacopy
	run_podman images -q
	use_store m shiftoverlay nodev,metacopy=off
	sandbox_engine metacopy
	fails images
	assert "$output" =~ 'engine does not work here: metacopy' "the engine"
	assert "$output" =~ metacopy=off "the reason"
	sandbox_engine auto
	run_podman info --format '{{index .Store.GraphStatus "Shift engine"}} {{index .Store.GraphStatus "Shift engine reason"}}'
	assert "$output" =~ ^copyup "the engine that is left"
	assert "$output" =~ metacopy=off "why not a cheaper one"
	assert "$output" =~ _CONTAINERS_OVERLAY_DISABLE_IDMAP "why not the cheapest"
}

@test "an engine can be chosen by a mount option" {
	use_store m shiftoverlay nodev,x-shiftoverlay.engine=copyup
	status_row 'Shift engine'
	is "$output" copyup "engine"
	import
	run_podman run --rm "$AUTO" "$IMAGE" stat -c %u:%g /etc/passwd
	is "$output" 0:0 "owner inside"
	use_store m shiftoverlay nodev,x-shiftoverlay.engine=warp
	fails images
	assert "$output" =~ x-shiftoverlay.engine "the option"
	assert "$output" =~ warp "the value"
	use_store m shiftoverlay nodev,x-shiftoverlay.cache_max_size=1g
	fails images
	assert "$output" =~ x-shiftoverlay.cache_max_size "an option that is for the file only"
	use_store m shiftoverlay
}

@test "an unknown storage option is named" {
	local option
	for option in shiftoverlay.nosuch=1 overlay.nosuch=1; do
		fails --storage-opt "$option" images
		assert "$output" =~ nosuch "--storage-opt $option: the message"
	done
	run_podman --storage-opt shiftoverlay.mountopt=nodev images -q
	run_podman --storage-opt overlay.mountopt=nodev images -q
}

@test "malformed mappings are refused" {
	import
	local map words
	while IFS='|' read -r map words; do
		fails run --rm --uidmap "$map" --gidmap 0:0:1 "$IMAGE" true
		assert "$output" =~ "$words" "--uidmap $map: the message"
	done <<-'END'
		0:x:5|"x"
	END
	# To an ordinary user, podman itself says that he has no such IDs.
	fails run --rm --uidmap 0:4294967290:100 --gidmap 0:0:1 "$IMAGE" true
	assert "$output" =~ "(0:4294967290:100 .* 4294967294|insufficient UIDs)" "IDs that cannot be: the message"
	# Extents that overlap: nothing starts.
	fails run --rm --uidmap 0:100000:65536 --uidmap 10:300000:10 "$IMAGE" true
	assert "$output" =~ 10:300000:10 "extents that overlap inside: the message"
	fails run --rm --uidmap 0:100000:65536 --uidmap 70000:100005:10 "$IMAGE" true
	assert "$output" =~ 70000:100005:10 "extents that overlap outside: the message"
	run_podman ps -a -q
	is "$output" '' "containers"
	is "$(find "$GRAPH/shiftoverlay-shifted" -name passwd 2>/dev/null || true)" '' "shifted lowers"
}

@test "a layer whose folder is gone is named" {
	import
	layer_of "$IMAGE"
	mv "$GRAPH/shiftoverlay/$LAYER" "$WORK/layer"
	local engine
	for engine in $ENGINES; do
		sandbox_engine "$engine"
		fails run --rm "$AUTO" "$IMAGE" true
		assert "$output" =~ "$LAYER" "engine $engine: the message"
		is "$(mounts | grep -F "$WORK" || true)" '' "engine $engine: mounts"
	done
	mv "$WORK/layer" "$GRAPH/shiftoverlay/$LAYER"
	run_podman run --rm "$AUTO" "$IMAGE" true
}

@test "a layer whose files are gone is named" {
	import
	run_podman run --name one "$IMAGE" touch /one
	run_podman commit -q one localhost/two
	run_podman rm one
	layer_of "$IMAGE"
	mv "$GRAPH/shiftoverlay/$LAYER/diff" "$WORK/diff"
	local engine
	for engine in $ENGINES; do
		sandbox_engine "$engine"
		# Overlay itself may warn that it looks for a link.
		capture podman run --rm "$AUTO" localhost/two true
		assert "$status" -ne 0 "engine $engine: exit status"
		assert "$output" =~ "$LAYER" "engine $engine: the message"
	done
	mv "$WORK/diff" "$GRAPH/shiftoverlay/$LAYER/diff"
	run_podman run --rm "$AUTO" localhost/two true
}

@test "a graph root on a read-only file system" {
	mkdir "$WORK/ro"
	mount --bind "$WORK/ro" "$WORK/ro"
	mount -o remount,bind,ro "$WORK/ro"
	sed -i "s|^graphroot = .*|graphroot = \"$WORK/ro/graph\"|" "$CONTAINERS_STORAGE_CONF"
	fails images
	assert "$output" =~ 'read-only file system' "the reason"
	assert "$output" =~ "$WORK/ro/graph" "the place"
	umount "$WORK/ro"
	is "$(ls -A "$WORK/ro")" '' "files"
	sed -i "s|^graphroot = .*|graphroot = \"$GRAPH\"|" "$CONTAINERS_STORAGE_CONF"
	forget_boot
}

@test "a full file system: clear error, nothing left, works again with room" {
	not_rootless "it mounts a small file system"
	sandbox_disk "$WORK/disk.img" "$WORK/disk" 40M
	sed -i "s|^graphroot = .*|graphroot = \"$WORK/disk/graph\"|" "$CONTAINERS_STORAGE_CONF"
	rm -rf "$RUN"
	import
	sandbox_engine copyup
	local inodes
	inodes=$(df --output=iused "$WORK/disk" | tail -n 1)
	# Room for the container's own folders, not for a copy of the image.
	fallocate -l $(($(df --output=avail -B1 "$WORK/disk" | tail -n 1) - 1500000)) "$WORK/disk/ballast"
	fails run --rm "$AUTO" "$IMAGE" true
	assert "$output" =~ 'no space left on device' "the reason"
	rm "$WORK/disk/ballast"
	run_podman ps -a -q
	is "$output" '' "containers"
	assert "$(df --output=iused "$WORK/disk" | tail -n 1)" -le $((inodes + 20)) "inodes in use after the failure"
	run_podman run --rm "$AUTO" "$IMAGE" stat -c %u:%g /etc/passwd
	is "$output" 0:0 "with room again"
	clean_store
	run_podman unmount -a
	umount -l "$WORK/disk/graph/shiftoverlay" 2>/dev/null || true
	umount "$WORK/disk"
	rm "$WORK/disk.img"
	sed -i "s|^graphroot = .*|graphroot = \"$GRAPH\"|" "$CONTAINERS_STORAGE_CONF"
	rm -rf "$RUN"
	forget_boot
}

@test "not enough IDs: the message is podman's, and nothing is left" {
	import
	fails run --rm --userns=auto:size=4000000000 "$IMAGE" true
	run_podman ps -a -q
	is "$output" '' "containers"
}
