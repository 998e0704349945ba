#!/usr/bin/env bats
# What a container with a mapping wrote comes out of it in container IDs. Run for
# each engine, see helpers.bash.

load helpers

AUTO=--userns=auto:size=65536
OTHER=(--uidmap=0:100000:40000 --uidmap=40000:300000:25536 --gidmap=0:200000:65536)
# In several pieces, the library does not leave it to a mount program.
[ -z "$PROGRAM" ] || OTHER=(--uidmap=0:100000:65536 --gidmap=0:200000:65536)

# start NAME RUN-OPTIONS... : a container that does nothing.
start() {
	local name=$1
	shift
	run_podman run -d --name "$name" "$@" "$IMAGE" sleep 1000
}

# state CONTAINER: sets STATE to the tree as a running container sees it.
state() {
	listing_of "$1"
	STATE=$(seconds <<<"$TREE")
}

# same_tree EXPECTED RUN-OPTIONS... IMAGE: a new container of the image sees that.
same_tree() {
	local want=$1
	shift
	listing "$@"
	same_text "$want" "$(seconds <<<"$TREE")" "tree of $*"
}

# in_layer IMAGE: what is in the image's upper layer, in output, without what
# podman itself puts into every container. A whiteout is a device, type c.
in_layer() {
	layer_of "$1"
	run find "$UPPER" -mindepth 1 -printf '%y %P %U:%G\n'
	# With a mount program, the library unpacks whiteouts as the archive has them.
	[ -z "$PROGRAM" ] || output=$(sed -E 's,^f (.*/)?\.wh\.,c \1,' <<<"$output")
	output=$(grep -vE '^. (etc|etc/(hostname|hosts|mtab|resolv\.conf)|run|run/\.containerenv) 0:0$' <<<"$output" | sort)
}

# Everything that can happen to a file. To be run in the image as root.
CHANGES='
echo new >/srv/new; chown 33:34 /srv/new; chmod 2755 /srv/new
printf more >>/srv/shift/user1000
chmod 711 /bin/busybox; chown 1000:33 /usr/local/bin/whoami-plain
: >/etc/group
rm /srv/shift/empty; rm -rf /srv/shift/secret
rm -rf /srv/shift/sticky; mkdir /srv/shift/sticky; echo opaque >/srv/shift/sticky/file
rm /srv/shift/nobody; mkdir /srv/shift/nobody; echo in >/srv/shift/nobody/in
rm -rf /root; echo "was a folder" >/root
rm /srv/shift/symlink; mkdir /srv/shift/symlink; rmdir /srv/shift/symlink; ln -s elsewhere /srv/shift/symlink
ln /srv/shift/user1000 /srv/hard1; ln /srv/hard1 /srv/hard2
mkdir -p /opt/a/b; echo deep >/opt/a/b/c; mv /opt/a /opt/z
mv /usr/local /usr/elsewhere; mkdir /usr/local; echo again >/usr/local/file
mv /srv/shift /srv/shifted; echo late >/srv/shifted/late; mv /srv/shifted/link2 /srv/link2
mkfifo -m 620 /srv/pipe; chown 7:8 /srv/pipe
ln -s nowhere /srv/dangling; chown -h 1000:1000 /srv/dangling
dd if=/dev/zero of=/srv/sparse bs=1 count=1 seek=1048576 2>/dev/null
touch -d "2011-12-13 14:15:16" /srv/sparse
mkdir -m 0 /srv/closed; chown 65534:65534 /srv/closed; touch /srv/closed/file
'

@test "commit: owners, capabilities, and nothing but the change" {
	import
	start con "$AUTO"
	range con
	run_podman exec con sh -c 'touch /newfile && chown 33:33 /newfile && cp /usr/local/bin/whoami-plain /capfile'
	in_userns con setcap cap_net_bind_service+ep capfile
	layer_of con
	is "$(owner "$UPPER/newfile")" "$((RANGE + 33)):$((RANGE + 33))" "owner in the container's layer"
	is "$(xattr_size "$UPPER/capfile" security.capability)" 24 "bytes of the capability in the container's layer (version 3)"
	run_podman stop -t 0 con
	run_podman commit -q con localhost/new
	in_layer localhost/new
	is "$output" $'f capfile 0:0\nf newfile 33:33' "content of the new layer"
	is "$(xattr_size "$UPPER/capfile" security.capability)" 20 "bytes of the capability in the new layer (version 2)"
	local userns
	for userns in --userns=host "$AUTO"; do
		run_podman run --rm "$userns" localhost/new sh -c 'stat -c %u:%g /newfile /capfile /etc/passwd /srv/shift/user1000; su user -c /capfile'
		is "$output" $'33:33\n0:0\n0:0\n1000:1000\nuid=1000 euid=1000 gid=1000 egid=1000 capeff=0000000000000400' "the new image with $userns"
	done
}

@test "commit: everything that can happen to a file" {
	import
	start con "$AUTO"
	run_podman exec con sh -ec "$CHANGES"
	state con
	assert "$STATE" =~ /srv/shifted/setgid "the changes"
	# The kernel renames no folder of the image for an ordinary user, so mv(1) copies it.
	[ -n "${SANDBOX_ROOTLESS:-}" ] ||
		assert "$STATE" =~ 'hard links: /srv/hard1 /srv/hard2 /srv/shifted/user1000' "the changes: hard links"
	run_podman stop -t 0 con
	run_podman commit -q con localhost/new
	same_tree "$STATE" localhost/new
	same_tree "$STATE" "${OTHER[@]}" localhost/new
	run_podman start con
	local before=$STATE
	state con
	same_text "$before" "$STATE" "the container itself after a commit"
}

@test "commit: generations under different mappings" {
	import
	run_podman run --name one "$AUTO" "$IMAGE" sh -ec 'echo 1 >/one; chown 1:1 /one; mv /srv/shift /srv/one; chmod 600 /srv/one/link1; rm -rf /srv/one/secret'
	run_podman commit -q one localhost/one
	run_podman run --name two "${OTHER[@]}" localhost/one sh -ec 'echo 2 >/two; chown 50000:2 /two; echo more >>/one; mv /srv/one /srv/two; mkdir /srv/two/secret; rm /srv/two/empty'
	run_podman commit -q two localhost/two
	run_podman run --name three localhost/two sh -ec 'echo 3 >/three; chown 3:3 /three; chown 4:4 /two; mv /srv/two/setgid /srv/setgid; mv /srv/two /srv/three'
	run_podman commit -q three localhost/three
	run_podman run -d --name four "$AUTO" localhost/three sleep 1000
	run_podman exec four sh -ec 'echo 4 >/four; chown 1000:1000 /three; rm -rf /srv/three/secret; ln /one /srv/three/one'
	run_podman exec four stat -c %u:%g /one /two /three /four /srv/three/user1000
	is "$output" $'1:1\n4:4\n1000:1000\n0:0\n1000:1000' "owners in the fourth generation"
	state four
	# The library's comparison of two trees does not see a new link to an old file.
	[ -z "$PROGRAM" ] || STATE=$(grep -v '^hard links: /one ' <<<"$STATE")
	# To an ordinary user, overlay shows two inode numbers of a new link to an old
	# file, without a mapping, too. The image gets the link.
	[ -z "${SANDBOX_ROOTLESS:-}" ] || STATE=$(sed '/^hard links:/i hard links: /one /srv/three/one' <<<"$STATE" | LC_ALL=C sort -u)
	run_podman stop -t 0 four
	run_podman commit -q four localhost/four
	same_tree "$STATE" localhost/four
	same_tree "$STATE" "${OTHER[@]}" localhost/four
	in_layer localhost/four
	assert "$output" !~ link1 "content of the last layer: a file that nobody touched"
}

@test "commit: a running container" {
	import
	start con "$AUTO"
	run_podman exec con sh -ec 'echo hi >/new; chown 33:34 /new; rm -rf /srv/shift'
	run_podman commit -q con localhost/new
	in_layer localhost/new
	is "$output" $'c srv/shift 0:0\nd srv 0:0\nf new 33:34' "content of the new layer"
	run_podman run --rm localhost/new sh -c 'cat /new; ls /srv'
	is "$output" hi "the new image"
	run_podman exec con sh -c 'cat /new; echo more >>/new'
	is "$output" hi "the container goes on"
	# Without cgroups of his own, an ordinary user cannot pause a container.
	run_podman commit -q --pause="$([ -n "${SANDBOX_ROOTLESS:-}" ] && echo false || echo true)" con localhost/newer
	run_podman run --rm "$AUTO" localhost/newer cat /new
	is "$output" $'hi\nmore' "the second image"
}

@test "commit: twice the same bytes" {
	import
	run_podman run --name con "$AUTO" "$IMAGE" sh -ec "$CHANGES"
	run_podman commit -q con localhost/first
	run_podman commit -q con localhost/second
	local first
	run_podman image inspect --format '{{index .RootFS.Layers 1}}' localhost/first
	first=$output
	assert "$first" =~ ^sha256: "digest of the layer"
	[ -z "$PROGRAM" ] || return 0 # then the library makes the layer, with whiteouts of now
	run_podman image inspect --format '{{index .RootFS.Layers 1}}' localhost/second
	is "$output" "$first" "digest of the layer"
}

@test "commit: an ID outside of the mapping is an error that names path and ID" {
	import
	run_podman run --name con "$AUTO" "$IMAGE" sh -c 'mkdir /srv/dir; echo x >/srv/dir/odd'
	layer_of con
	chown 924242:0 "$UPPER/srv/dir/odd"
	if [ -n "$PROGRAM" ]; then # then the library makes the layer of what it sees
		run_podman commit -q con localhost/new
		run_podman run --rm localhost/new stat -c %u:%g /srv/dir/odd
		is "$output" 65534:65534 "owner in the new image: nobody, as containers see it"
		return
	fi
	run_podman '?' commit -q con localhost/new
	assert "$status" -ne 0 "exit status"
	assert "$output" =~ 'srv/dir/odd' "message: the path"
	assert "$output" =~ 924242 "message: the ID"
	run_podman images -q
	is "${#lines[@]}" 1 "images"
	is "$(find "$GRAPH/$DRIVER" -mindepth 1 -maxdepth 1 -regextype egrep -regex '.*/[0-9a-f]{64}' | wc -l)" 2 "layers in the store"
}

@test "save and load, push and pull" {
	import
	run_podman run --name con "$AUTO" "$IMAGE" sh -ec "$CHANGES"
	run_podman start con
	run_podman commit -q con localhost/new
	listing localhost/new
	STATE=$(seconds <<<"$TREE")
	run_podman image inspect --format '{{.RootFS.Layers}}' localhost/new
	local layers=$output layer from
	mkdir "$WORK/out"
	run_podman save -q --format oci-archive -o "$WORK/out/oci.tar" localhost/new
	run_podman save -q --format docker-archive -o "$WORK/out/docker.tar" localhost/new
	run_podman push -q localhost/new "oci:$WORK/out/oci:new"
	run_podman push -q localhost/new "dir:$WORK/out/dir"
	# The owners in the layer's tar, without a store in between.
	layer=$(jq -r '.layers[1].digest | sub("sha256:"; "")' "$WORK/out/dir/manifest.json")
	assert "$(tar --numeric-owner -tvf "$WORK/out/dir/$layer")" =~ '33/34 '[^/]*' srv/new' "the pushed layer"
	use_store other "$DRIVER"
	sandbox_engine "$ENGINE"
	local sources=("oci-archive:$WORK/out/oci.tar" "docker-archive:$WORK/out/docker.tar" "dir:$WORK/out/dir" "oci:$WORK/out/oci:new")
	# podman 4 takes an oci: path for a name, which may not have capitals.
	[ -z "$PROGRAM" ] || unset 'sources[3]'
	for from in "${sources[@]}"; do
		run_podman rmi -f -a
		run_podman pull -q "$from"
		run_podman tag "$output" localhost/pulled
		run_podman image inspect --format '{{.RootFS.Layers}}' localhost/pulled
		is "$output" "$layers" "digests of the layers from ${from%%:*}"
	done
	same_tree "$STATE" "${OTHER[@]}" localhost/pulled
}

@test "export" {
	import
	run_podman run --name con "$AUTO" "$IMAGE" sh -ec 'echo hi >/new; rm /srv/shift/empty'
	run_podman export -o "$WORK/c.tar" con
	run tar -tf "$WORK/c.tar"
	assert "$output" =~ $'\nnew\n' "a new file"
	assert "$output" !~ srv/shift/empty "a deleted file"
	is "$(tar -xOf "$WORK/c.tar" srv/shift/user1000)" 'of uid 1000' "content of a file of the image"
}

@test "a mapping stays with what was written under it" {
	import
	start con "$AUTO"
	range con
	run_podman exec con sh -c 'echo hi >/new; chown 33:34 /new'
	run_podman stop -t 0 con
	# Mounted without a word about a mapping, it is mounted under the recorded one.
	run_podman mount con
	is "$(owner "$output/new") $(owner "$output/etc/passwd")" "$((RANGE + 33)):$((RANGE + 34)) $RANGE:$RANGE" "owners outside"
	run_podman unmount con
	record con '.version'
	is "$RECORD" 1 "version of the mapping record"
}
