#!/usr/bin/env bash
# images.sh [busybox|minbase|big|huge]...
#
# Makes the test images, root file systems as tar files, in $BUILD/images,
# without a registry. Without arguments: all but huge. What is there is kept.
#   busybox.tar  a few hundred entries: a static busybox and its links
#   minbase.tar  debootstrap's minbase of the running Debian or Ubuntu, ~7,000 entries
#   big.tar      minbase, the Go toolchain and /usr/share: at least 70,000 entries
#   huge/        big and three generated layers, as an OCI image (podman pull
#                oci:$BUILD/images/huge:bench): at least 250,000 entries; for make bench
# Each also holds, for the tests:
#   /usr/local/bin/whoami-{plain,suid,cap}  one program: plain, setuid root, with
#                         cap_net_bind_service+ep (prints its IDs and capabilities)
#   /srv/shift/           hard links, a fifo, a device, a sticky and a setgid
#                         folder, owners other than root, extended attributes
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/sandbox.sh"

MIN_BIG=70000 # entries that big.tar has to have

case " ${*:-all} " in *" -h "* | *" --help "*)
	sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0"
	exit 0
	;;
esac
[ $# -gt 0 ] || set -- busybox minbase big
out=$BUILD/images
missing=()
for name; do
	case $name in
	busybox | minbase | big) [ -s "$out/$name.tar" ] || missing+=("$name") ;;
	huge) [ -s "$out/huge/index.json" ] || missing+=(huge) ;;
	*) die "unknown image $name: one of busybox, minbase, big, huge" ;;
	esac
done
if [ ${#missing[@]} -eq 0 ] && [ -z "${SANDBOX_INSIDE:-}" ]; then
	say "images are there: $* ($out)"
	exit 0
fi

mkdir -p "$out"
exec {lock}>"$out/.lock"
[ -n "${SANDBOX_INSIDE:-}" ] || flock "$lock"
SANDBOX_FS_SIZE=8G
SANDBOX_NET=host # debootstrap asks the package archive
need busybox debootstrap tar setcap setfattr gcc mkfifo
sandbox_enter "$@"

# specials ROOT: what the tests look for in every image.
specials() {
	local root=$1 dir=$1/srv/shift bin=$1/usr/local/bin
	mkdir -p "$bin" "$dir"
	gcc -static -O2 -o "$bin/whoami-plain" "$REPO/hack/images/whoami.c"
	cp "$bin/whoami-plain" "$bin/whoami-suid"
	cp "$bin/whoami-plain" "$bin/whoami-cap"
	chmod 4755 "$bin/whoami-suid"
	setcap cap_net_bind_service+ep "$bin/whoami-cap"
	echo 'one file, three names' >"$dir/link1"
	ln "$dir/link1" "$dir/link2"
	ln "$dir/link1" "$dir/link3"
	mkfifo "$dir/fifo"
	mknod "$dir/null" c 1 3
	ln -s link1 "$dir/symlink"
	mkdir -m 1777 "$dir/sticky"
	mkdir -m 2775 "$dir/setgid"
	mkdir -m 0700 "$dir/secret"
	echo 'of uid 1000' >"$dir/user1000"
	echo 'of uid 65534' >"$dir/nobody"
	echo 'not to be read by others' >"$dir/secret/file"
	: >"$dir/empty"
	chown 1000:1000 "$dir/user1000" "$dir/setgid"
	chown 65534:65534 "$dir/nobody"
	chmod 0640 "$dir/user1000"
	setfattr -n user.shift -v 'kept as it is' "$dir/link1"
	touch -h -d '2001-02-03 04:05:06.123456789 UTC' "$dir"/*
}

# pack ROOT NAME: ROOT as NAME.tar, in a fixed order and without the times of
# this run, complete or not at all.
pack() {
	local root=$1 name=$2 mtime
	mtime=$(date -u -d '2025-01-01' +%s)
	tar -C "$root" --format=pax --sort=name --numeric-owner --xattrs --xattrs-include='*' \
		--clamp-mtime --mtime="@$mtime" --pax-option=delete=atime,delete=ctime \
		-cf "$out/.$name.tar.new" .
	mv "$out/.$name.tar.new" "$out/$name.tar"
	say "$name.tar: $(tar -tf "$out/$name.tar" | wc -l) entries, $(du -m "$out/$name.tar" | cut -f1) MB"
}

# archive_of SUITE: the URL from which apt itself gets this suite, if it does.
archive_of() {
	# shellcheck disable=SC2016 # apt's own placeholders
	apt-get indextargets --format '$(REPO_URI) $(RELEASE) $(COMPONENT)' 'Created-By: Packages' 2>/dev/null |
		awk -v s="$1" '$2 == s && $3 == "main" { print $1; exit }'
}

make_busybox() {
	local root=$SANDBOX_FS/busybox applet
	mkdir -p "$root"/{bin,dev,etc,proc,root,sys,tmp,usr/bin,usr/local/bin,var}
	chmod 1777 "$root/tmp"
	chmod 700 "$root/root"
	cp "$(command -v busybox)" "$root/bin/busybox"
	for applet in $("$root/bin/busybox" --list); do
		[ "$applet" = busybox ] || ln -s busybox "$root/bin/$applet"
	done
	printf 'root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n' >"$root/etc/passwd"
	printf 'root:x:0:\nuser:x:1000:\nnogroup:x:65534:\n' >"$root/etc/group"
	specials "$root"
	pack "$root" busybox
}

make_minbase() {
	local root=$SANDBOX_FS/minbase id suite archive
	id=$(. /etc/os-release && echo "$ID")
	suite=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
	if [ -z "$suite" ] || [ ! -e "/usr/share/debootstrap/scripts/$suite" ]; then
		id=debian suite=stable
	fi
	archive=$(archive_of "$suite")
	say "debootstrap $id $suite${archive:+ from $archive}"
	# No cap on the sandbox's own devices and mounts: debootstrap makes both.
	debootstrap --variant=minbase "$suite" "$root" ${archive:+"$archive"} >"$SANDBOX_FS/debootstrap.log" 2>&1 ||
		{ tail -n 20 "$SANDBOX_FS/debootstrap.log" >&2; die "debootstrap $suite failed; is the package archive reachable?"; }
	rm -rf "$root"/var/cache/apt/* "$root"/var/lib/apt/lists/* "$root"/var/log/* "$root"/var/cache/ldconfig/*
	: >"$root/etc/machine-id"
	rm -f "$root/etc/resolv.conf" "$root/etc/hostname"
	specials "$root"
	pack "$root" minbase
}

make_big() {
	local root=$SANDBOX_FS/big n copy=0
	[ -s "$out/minbase.tar" ] || make_minbase
	mkdir -p "$root"
	tar -C "$root" --xattrs --xattrs-include='*' --numeric-owner -xpf "$out/minbase.tar"
	mkdir -p "$root/usr/local/go" "$root/opt/share"
	tar -C "$(go env GOROOT)" -cf - . | tar -C "$root/usr/local/go" --no-same-owner -xf -
	tar -C /usr/share -cf - . | tar -C "$root/opt/share" -xpf -
	# A lean machine has little in /usr/share: add copies until there is enough.
	while n=$(find "$root" | wc -l) && [ "$n" -lt $MIN_BIG ]; do
		copy=$((copy + 1))
		cp -a "$root/opt/share" "$root/opt/share$copy"
	done
	pack "$root" big
}

make_huge() {
	[ -s "$out/big.tar" ] || make_big
	# The layers are generated: a shell would take an hour for as many files.
	GOFLAGS='' go run -C "$REPO/tools/benchplot" . layers -out "$out/.huge.layers"
	GOFLAGS='' go run -C "$REPO/tools/benchplot" . image -out "$out/.huge.new" "$out/big.tar" "$out/.huge.layers"/*.tar
	rm -rf "$out/.huge.layers" "$out/huge"
	mv "$out/.huge.new" "$out/huge"
	say "huge: $(for l in "$out"/huge/blobs/sha256/*; do tar -tf "$l" 2>/dev/null || true; done | wc -l) entries, $(du -sm "$out/huge" | cut -f1) MB"
}

for name; do
	[ -s "$out/$name.tar" ] || [ -s "$out/$name/index.json" ] || "make_$name"
done
