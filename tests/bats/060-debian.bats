#!/usr/bin/env bats
# A real distribution's image, with some thousand files.

load helpers

AUTO=--userns=auto:size=65536
DEBIAN=localhost/debian

setup() {
	basic_setup
	[ -s "$BUILD/images/minbase.tar" ] || die "no $BUILD/images/minbase.tar; make images makes it"
}

@test "a Debian container finds its files as its packages list them" {
	import "$BUILD/images/minbase.tar" "$DEBIAN"
	local plain engine
	listing "$DEBIAN"
	plain=$TREE
	assert "$(wc -l <<<"$plain")" -ge 5000 "lines of the listing"
	run_podman run --rm "$DEBIAN" dpkg --verify
	local verify=$output
	for engine in $ENGINES; do
		sandbox_engine "$engine"
		listing "$AUTO" "$DEBIAN"
		same_text "$plain" "$TREE" "engine $engine: tree under a mapping"
		run_podman run --rm "$AUTO" "$DEBIAN" dpkg --verify
		is "$output" "$verify" "engine $engine: dpkg --verify"
	done
}

@test "a Debian container can be worked in, and committed" {
	import "$BUILD/images/minbase.tar" "$DEBIAN"
	local engine
	for engine in $ENGINES; do
		sandbox_engine "$engine"
		run_podman run --name "$engine" "$AUTO" "$DEBIAN" bash -ec '
			useradd --create-home --uid 1234 alice
			mv /usr/share/doc /usr/share/documents
			dpkg --purge --force-all tzdata >/dev/null 2>&1 || true
			install -d -m 2775 -o alice -g www-data /srv/www
			su alice -c "echo hello >/srv/www/index; ln /srv/www/index /home/alice/index"
			perl -pi -e s/root/toor/ /etc/group'
		run_podman commit -q "$engine" "localhost/new-$engine"
		run_podman run --rm "localhost/new-$engine" bash -c '
			stat -c %n:%u:%g:%a:%h /srv/www /srv/www/index; id -u alice; ls -d /usr/share/doc /usr/share/documents 2>/dev/null
			head -n 1 /etc/group; dpkg --status tzdata 2>&1 | grep -c Status.*installed; true'
		is "${lines[0]}" /srv/www:1234:33:2775:2 "engine $engine: folder"
		is "${lines[1]}" /srv/www/index:1234:33:644:2 "engine $engine: file"
		is "${lines[2]}" 1234 "engine $engine: user"
		is "${lines[3]}" /usr/share/documents "engine $engine: renamed folder"
		is "${lines[4]}" toor:x:0: "engine $engine: edited file"
		is "${lines[5]}" 0 "engine $engine: purged package"
	done
}

@test "a shift that is killed is never used half" {
	import "$BUILD/images/minbase.tar" "$DEBIAN"
	local plain engine tenth took delay id rc killed
	listing "$DEBIAN"
	plain=$TREE
	for engine in metacopy copyup; do
		sandbox_engine "$engine"
		killed=0
		# What a whole one takes, with another mapping.
		run_podman create --uidmap 0:300000:65536 --gidmap 0:400000:65536 "$DEBIAN" true
		id=$output
		took=${EPOCHREALTIME/./}
		run_podman mount "$id"
		took=$((${EPOCHREALTIME/./} - took))
		run_podman unmount "$id"
		for tenth in 1 2 3 4 5 6 7 8 9 10; do
			id=$(podman create --uidmap 0:100000:65536 --gidmap 0:200000:65536 "$DEBIAN" true 3>&-)
			rc=0
			printf -v delay %d.%06d $((took * tenth / 10000000)) $((took * tenth / 10 % 1000000))
			timeout --foreground --signal=KILL "$delay" podman mount "$id" 3>&- >/dev/null 2>&1 || rc=$?
			[ "$rc" -ne 137 ] || killed=$((killed + 1))
		done
		assert "$killed" -ge 1 "engine $engine: number of mounts that were killed"
		echo "# engine $engine: $killed of 10 mounts were killed" >&3
		listing --uidmap 0:100000:65536 --gidmap 0:200000:65536 "$DEBIAN"
		same_text "$plain" "$TREE" "engine $engine: tree after builds that were killed"
		run_podman rm -f -t 0 -a
	done
	# The storage library's own files, of a podman that was killed while it wrote one.
	find "$GRAPH" "$RUN" -maxdepth 2 -path '*-layers/.tmp-*.json*' -delete
	status_row 'Shift cache entries'
	is "$output" 4 "entries"
}
