#!/bin/bash
# Runs in the guest for make vm-selinux, enforcing: containers of one image with
# levels of their own, on plain overlay and on every engine. Mounts are made with
# mount(2) by plugin-test, in this script's own domain. Input: plugin-test,
# busybox.tar.
set -u
export PATH=/in:$PATH
failed=0

ok() {
	echo "ok: $*"
}

bad() {
	echo "FAILED: $*"
	failed=1
}

# same WHAT WANT GOT
same() {
	if [ "$2" = "$3" ]; then
		ok "$1"
	else
		bad "$1: wanted (<), got (>):"
		diff <(echo "$2") <(echo "$3") | head -n 8
	fi
}

type_of() {
	stat -c %C "$1" | cut -d: -f3
}

# store DRIVER ENGINE: a fresh store of that kind, in the place where the policy
# expects it, with the image bb, whose files have labels of their own.
store() {
	driver=$1 engine=$2
	storage=/var/lib/containers/storage
	rm -rf /var/lib/containers
	mkdir -p $storage
	restorecon -RF /var/lib/containers
	# What podman's own domain gets by a transition, a test gets by restorecon.
	pt pull tar:/in/busybox.tar bb >/dev/null || bad "$driver $engine: pull"
	restorecon -RF $storage
	layer=$(find $storage/"$driver" -path '*/diff/bin/busybox')
	layer=${layer%/bin/busybox}
	chcon -t bin_t "$layer/bin/busybox" "$layer/bin"
	chcon -t etc_t -l s0:c7 "$layer/etc/passwd"
	chcon -h -t lib_t "$layer/bin/sh"
}

pt() {
	plugin-test --driver "$driver" ${engine:+--engine "$engine"} --root $storage --runroot /run/store "$@"
}

# mounted [ARGS]: mount a container: dir, id.
mounted() {
	read -r dir id < <(pt mount "$@" bb)
	[ -d "${dir:-}" ] || bad "$driver $engine: mount $*"
}

# in_container LEVEL COMMAND: a shell command as a container's process of that
# level, root of the container's user namespace, in the mounted tree. Its output goes
# through a file there: a container may not write to this script's pipes.
in_container() {
	local level=$1 map=()
	rm -f "$dir/root/out"
	[ "$driver" = overlay ] || map=(--user --map-users 0:"$base":65536 --map-groups 0:"$base":65536 --setuid 0 --setgid 0)
	(cd "$dir" && unshare "${map[@]}" runcon -u system_u -r system_r -t container_t -l "$level" \
		./bin/busybox sh -c "{ $2; } >root/out 2>&1" </dev/null >/tmp/err 2>&1)
	cat "$dir/root/out" 2>/dev/null || { cat /tmp/err && false; }
}

# walk DIR: the label of everything in it. (What the process may see of SELinux
# does not matter to getfattr; one process for all files, since each costs much here.)
walk() {
	(cd "$1" && getfattr -R -P -h -d -m '^security\.selinux$' . |
		awk 'BEGIN { RS = "" } $3 != "." { sub(/^# file: /, ""); sub(/\nsecurity.selinux="/, " "); sub(/(\\000)?"$/, ""); print }' | sort)
}

# denials: count and kinds of what SELinux refused since the last time.
denials() {
	dmesg -c | grep -a 'avc:.*denied' |
		sed -E 's/.*denied +(\{[^}]*\}).*scontext=[^:]*:[^:]*:([^: ]*).*tcontext=[^:]*:[^:]*:([^: ]*).*tclass=([a-z_]*).*/\1 \2 \3 \4/' | sort -u
}

# entries: how many shifted lowers there are.
entries() {
	find $storage/shiftoverlay-shifted -mindepth 3 -maxdepth 3 -name data 2>/dev/null | wc -l
}

# scenario: two containers with levels of their own, from one image.
scenario() {
	local a=s0:c1,c2 b=s0:c3,c4 m=() level l
	local -A dirs ids
	dmesg -c >/dev/null
	[ "$driver" = overlay ] || m=(--uidmap "0:$base:65536")
	mounted --label "system_u:object_r:container_file_t:$a" "${m[@]}"
	dirs[a]=$dir ids[a]=$id
	made=$(entries)
	mounted --label "system_u:object_r:container_file_t:$b" "${m[@]}"
	dirs[b]=$dir ids[b]=$id
	for l in a b; do
		level=${!l} dir=${dirs[$l]}
		walk "$dir" | grep -v '^\./proc/\|^\./dev/' >"/out/$driver-$engine-$l"
		same "$name: $level: every file shows the container's label" "system_u:object_r:container_file_t:$level" \
			"$(cut -d' ' -f2- "/out/$driver-$engine-$l" | sort -u)"
		same "$name: $level: reads" root "$(in_container "$level" "head -c 4 etc/passwd")"
		same "$name: $level: writes" new "$(in_container "$level" 'echo new >root/new && cat root/new')"
		same "$name: $level: changes a file of the image" changed "$(in_container "$level" 'echo changed >etc/group && cat etc/group')"
		same "$name: $level: a changed file's label" "system_u:object_r:container_file_t:$level" "$(stat -c %C "$dir/etc/group")"
	done
	same "$name: the engines' view is plain overlay's" "$(cat /out/overlay--a)" "$(cat "/out/$driver-$engine-a")"
	denials >"/out/denials-$driver-$engine"
	if [ "$driver" = overlay ]; then
		cp "/out/denials-$driver-$engine" /out/denials
	else
		same "$name: no denial beyond those of plain overlay" '' "$(comm -13 /out/denials "/out/denials-$driver-$engine")"
	fi
	# The other level is kept out: it cannot even start the busybox.
	dir=${dirs[b]}
	if in_container "$a" "head -c 4 etc/passwd" >/dev/null 2>&1; then
		bad "$name: $a reads what belongs to $b"
	else
		ok "$name: $a is kept out of what belongs to $b"
	fi
	case $engine in
	erofs | metacopy | copyup)
		[ "$made" -gt 0 ] || bad "$name: nothing in the cache"
		same "$name: the second container makes no shifted lower of its own" "$made" "$(entries)"
		;;
	esac
	for l in a b; do
		pt umount "${ids[$l]}" >/dev/null || bad "$name: umount"
	done
}

# kept: labels of the image's files, in a mount without a label of its own. The
# storage library gives every container a label; it does not where it sees no
# SELinux, so this runs in a mount namespace without its file system.
kept() {
	local m=()
	umount /sys/fs/selinux || bad "$name: hide SELinux"
	[ "$driver" = overlay ] || m=(--uidmap "0:$base:65536")
	mounted "${m[@]}"
	walk "$layer" >/tmp/want
	same "$name: labels of the image's files are kept" "$(cat /tmp/want)" "$(walk "$dir")"
	same "$name: a label of its own" system_u:object_r:etc_t:s0:c7 "$(getfattr --only-values -n security.selinux "$dir/etc/passwd" 2>/dev/null | tr -d '\0')"
	pt umount "$id" >/dev/null || bad "$name: umount"
}

# folders: the cache's label as it is made, and after restorecon.
folders() {
	local d=$storage/shiftoverlay-shifted
	same "$name: restorecon knows the cache" container_ro_file_t "$(matchpathcon -n $d/x/y/data | cut -d: -f3)"
	[ -d $d ] || return
	# As a fresh store of podman: its own folder has its type, what is made in it has it too.
	echo "   made as $(type_of $d)"
	restorecon -RF $storage
	# Device nodes keep their type: the policy lets nobody give one a type that is not for
	# devices. restorecon says so of the image's own layer, too, and with plain overlay.
	same "$name: the cache after restorecon" container_ro_file_t \
		"$(find $d ! -type c ! -type b -printf '%Z\n' | cut -d: -f3 | sort -u)"
}

# find_store: the store that is there.
find_store() {
	name=$1 driver=${1%%:*} engine=${1#*:}
	storage=/var/lib/containers/storage base=200000
	layer=$(find $storage/"$driver" -path '*/diff/bin/busybox' | head -n 1)
	layer=${layer%/bin/busybox}
}

if [ "${1:-}" = kept ]; then
	find_store "$2"
	kept
	exit $failed
fi
getenforce
[ "$(getenforce)" = Enforcing ] || { bad 'not enforcing'; exit 1; }
uname -r
echo 0 >/proc/sys/kernel/printk_ratelimit # every denial counts
base=200000
echo root:$base:65536 | tee -a /etc/subuid >>/etc/subgid
for c in overlay: shiftoverlay:idmap shiftoverlay:erofs shiftoverlay:metacopy shiftoverlay:copyup; do
	name=$c
	store "${c%:*}" "${c#*:}"
	if [ "$driver" != overlay ] && ! pt info >/tmp/info 2>&1; then
		echo "skipped: $c does not work here: $(tail -n 1 /tmp/info)"
		continue
	fi
	scenario
	unshare -m bash "$0" kept "$name" || failed=1
	[ "$driver" = overlay ] || folders
done
echo "denials of plain overlay:"
cat /out/denials
exit $failed
