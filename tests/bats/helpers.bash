# Common ground of the integration tests. Every test gets a store of its own,
# run with real podman and buildah inside a sandbox (hack/sandbox.sh), and
# teardown looks for what the test left behind.
# shellcheck shell=bash
# shellcheck disable=SC2034 # variables for the tests
# shellcheck disable=SC2154 # status, output and lines are set by bats' run
#
# A file called NNN-name.ENGINE.bats, a symbolic link to shared/name.bats, runs
# the tests of that file with ENGINE, one of
#   auto idmap erofs metacopy copyup                what shiftoverlay.conf says
#   erofs-noidmap metacopy-noidmap copyup-noidmap   the same, and idmapped mounts disabled
#   program                                         the distribution's own podman and buildah, with
#                                                   driver = "overlay" and mount_program =
#                                                   shiftoverlay-mount; program-ENGINE: with that.
#                                                   With PROGRAM_TOOLS=newer-6.0 (or another folder
#                                                   in $BUILD) podman and buildah are those there
# All others run with auto.

# An error in $(...) counts, too.
shopt -s inherit_errexit

if [ -n "${SANDBOX_INSIDE:-}" ]; then
	# shellcheck source=../../hack/sandbox.sh
	source "$REPO/hack/sandbox.sh"
fi

# No command of these tests takes longer than this many seconds.
: "${COMMAND_TIMEOUT:=60}"

VARIANT=auto
case ${BATS_TEST_FILENAME##*/} in
*.*.bats)
	VARIANT=${BATS_TEST_FILENAME%.bats}
	VARIANT=${VARIANT##*.}
	BATS_TEST_NAME_PREFIX="[$VARIANT] "
	;;
esac
ENGINE=${VARIANT%-noidmap} PROGRAM=''
: "${PROGRAM_TOOLS:=stock}"
case $VARIANT in
program*)
	PROGRAM=$BUILD/shiftoverlay-mount
	ENGINE=${VARIANT#program}
	ENGINE=${ENGINE#-}
	: "${ENGINE:=auto}"
	;;
esac

# Where ranges for --userns=auto begin (sandbox.sh). Those of an ordinary user are
# all IDs of the user namespace in which his podman works (rootless.sh).
FIRST_ID=2147483647 HOST_MAP=004294967295
# The engines that work here.
ENGINES='idmap erofs metacopy copyup'
[ -z "${SANDBOX_ROOTLESS:-}" ] || FIRST_ID=1 HOST_MAP=015001 ENGINES='metacopy copyup'

# The image that nearly every test uses: hack/images.sh says what is in it.
IMAGE=localhost/bb

# ---- preparing

setup_file() {
	if [ -z "${SANDBOX_INSIDE:-}" ]; then
		echo "these tests need the sandbox: run hack/sandbox.sh bats tests/bats (or make bats)" >&2
		return 1
	fi
}

setup() {
	basic_setup
}

teardown() {
	basic_teardown
}

# basic_setup: a new store with the file's engine, and what teardown compares with.
basic_setup() {
	# Short: podman 4 ends its own `container cleanup` at a run root of more than 50
	# characters, and its `podman run` then waits 20 seconds.
	WORK=$(mktemp -d "$SANDBOX_FS/bXXX")
	chmod 755 "$WORK"
	MOUNTS_BEFORE=$(mounts)
	PIDS_BEFORE=$(pids)
	LOOPS_BEFORE=$(loops)
	if [ -n "$PROGRAM" ]; then
		PATH=$BUILD/$PROGRAM_TOOLS:$PATH
		use_store s overlay
	else
		use_store s shiftoverlay
	fi
	sandbox_engine "$ENGINE"
	set_idmap
}

# set_idmap: idmapped mounts as the file's name says.
set_idmap() {
	unset _CONTAINERS_OVERLAY_DISABLE_IDMAP
	case $VARIANT in
	*-noidmap) export _CONTAINERS_OVERLAY_DISABLE_IDMAP=yes ;;
	esac
}

# use_store NAME DRIVER [MOUNTOPT]: a store of this test becomes the one that
# podman and buildah use; it is made when it is not there. Sets GRAPH, RUN and
# DRIVER. Where the file's variant has a mount program, so has overlay.
use_store() {
	sandbox_store "$WORK/$1" "$2" "${3:-}"
	[ -z "$PROGRAM" ] || [ "$2" != overlay ] ||
		printf '[storage.options.overlay]\nmount_program = "%s"\n' "$PROGRAM" >>"$CONTAINERS_STORAGE_CONF"
	GRAPH=$WORK/$1/graph RUN=$WORK/$1/run DRIVER=$2 SHIFTED=$WORK/$1/graph/$2-shifted
	case " ${STORES:-} " in
	*" $1:$2 "*) ;;
	*) STORES="${STORES:-} $1:$2" ;;
	esac
}

# import [TAR [NAME]]: an image from a tar file.
import() {
	run_podman import -q "${1:-$BUILD/images/busybox.tar}" "${2:-$IMAGE}"
}

# not_rootless REASON: skip this test when an ordinary user runs it (rootless.sh).
# docs/rootless.md lists each with its reason; a test compares.
not_rootless() {
	[ -z "${SANDBOX_ROOTLESS:-}" ] || skip "not for an ordinary user: $1"
}

# ---- running

# run_podman [RC|?] ARGS...: run podman, show command and output, and fail the
# test if the exit status is not RC (default 0; ? for any) or if it warns.
# Of a command that is expected to fail, messages at level error are expected.
run_podman() { run_logged podman "$@"; }

# run_buildah [RC|?] ARGS...: likewise.
run_buildah() { run_logged buildah "$@"; }

# capture COMMAND...: run a command of podman's kind, for no longer than allowed and
# without the descriptor on which bats waits. Sets status, output and lines.
# (bats' own run writes a warning to that descriptor when podman exits with 127.)
capture() {
	status=0 lines=()
	output=$(timeout --foreground --kill-after=10 "$COMMAND_TIMEOUT" "$@" 2>&1 3>&-) || status=$?
	[ -z "$output" ] || mapfile -t lines <<<"$output"
}

run_logged() {
	local tool=$1 want=0
	shift
	case $1 in
	'?' | [0-9] | [0-9][0-9] | [0-9][0-9][0-9])
		want=$1
		shift
		;;
	esac
	case $PROGRAM_TOOLS:$tool:$1 in
	# podman 6 wants netavark 2 for the network that builds have by default.
	newer-6.*:podman:build | newer-6.*:buildah:build | newer-6.*:buildah:run) set -- "$1" --network=none "${@:2}" ;;
	esac
	if [[ " $* " =~ ' --name'[\ =]([0-9a-f]+)' ' ]]; then
		# podman diff, among others, takes it for the beginning of an image's ID, one time of 16.
		die "$tool $1: the name ${BASH_REMATCH[1]} can be an ID" || return
	fi
	printf '$ %s %s\n' "$tool" "$*"
	capture "$tool" "$@"
	if [ -n "$PROGRAM" ] && [[ $output == *"can't raise ambient capability"* ]]; then
		# What a new runc says of an old buildah.
		output=$(grep -v "level=warning msg=\"can't raise ambient capability" <<<"$output") || true
		mapfile -t lines <<<"$output"
	fi
	[ -z "$output" ] || printf '%s\n' "$output"
	case $want in
	'?') ;;
	"$status") ;;
	*) die "$tool $1: exit status is $status, expected $want" || return 1 ;;
	esac
	local levels='warning|error|fatal|panic'
	[ "$status" -eq 0 ] || levels='warning|panic'
	if [[ $output =~ level=\"?($levels) ]]; then
		die "$tool $1: unexpected message at level ${BASH_REMATCH[1]}"
		return 1
	fi
}

# cli [RC] ARGS...: run the operator's tool, show command and output, and fail the test if
# the exit status is not RC (default 0).
cli() {
	local want=0
	case $1 in
	[0-9] | [0-9][0-9] | [0-9][0-9][0-9])
		want=$1
		shift
		;;
	esac
	capture "$BUILD/shiftoverlay" "$@"
	printf '$ shiftoverlay %s\n%s\n' "$*" "$output"
	is "$status" "$want" "shiftoverlay $1: exit status"
}

# ---- judging

# die MESSAGE: fail. That ends the test, but for places where the shell ignores
# failures (if, &&, ||).
die() {
	printf 'FAILED: %s\n' "$*" >&2
	return 1
}

# is ACTUAL EXPECTED WHAT: both are the same text.
is() {
	[ $# -eq 3 ] || die "is: takes three arguments, got $#" || return
	[ "$1" = "$2" ] || die "$3
  expected: $(printf %q "$2")
  actual:   $(printf %q "$1")"
}

# assert ACTUAL OPERATOR EXPECTED WHAT: with = != =~ !~ -eq -ne -lt -le -gt -ge.
assert() {
	[ $# -eq 4 ] || die "assert: takes four arguments, got $#" || return
	local ok=
	case $2 in
	=) [ "$1" != "$3" ] || ok=1 ;;
	!=) [ "$1" = "$3" ] || ok=1 ;;
	=~) ! [[ $1 =~ $3 ]] || ok=1 ;;
	!~) [[ $1 =~ $3 ]] || ok=1 ;;
	-eq | -ne | -lt | -le | -gt | -ge) ! test "$1" "$2" "$3" || ok=1 ;;
	*) die "assert: unknown operator $2" ;;
	esac
	[ -n "$ok" ] || die "$4
  expected: $2 $3
  actual:   $1"
}

# same_text EXPECTED ACTUAL WHAT: both texts have the same lines; shows the difference.
same_text() {
	[ -n "$1" ] || die "$3: nothing to compare with" || return
	diff -u --label expected --label actual <(printf '%s\n' "$1") <(printf '%s\n' "$2") ||
		die "$3: differs, see above"
}

# ---- looking

# owner PATH: its user and group IDs, "0:0".
owner() { stat -c %u:%g "$1"; }

# range CONTAINER: the first host ID of the container's user namespace, as the
# kernel tells it.
range() {
	local inside size
	run_podman exec "$1" cat /proc/self/uid_map
	is "${#lines[@]}" 1 "extents of the range"
	read -r inside RANGE size <<<"$output"
	assert "$size" -ge 65536 "size of the range"
	assert "$inside" -eq 0 "first ID inside"
	assert "$RANGE" -ge "$FIRST_ID" "start of the range, which /etc/subuid has"
}

# layer_of NAME: the ID of the layer of a container, or the upper one of an image.
layer_of() {
	run_podman inspect --format '{{.GraphDriver.Data.UpperDir}}' "$1"
	LAYER=${output%/diff}
	LAYER=${LAYER##*/}
	UPPER=$output
	[ -d "$UPPER" ] || die "no folder $UPPER"
}

# status_row ROW: what podman info says about the driver; with a mount program,
# podman knows nothing of what that does.
status_row() {
	case "$PROGRAM:$1" in
	?*:'Shift engine')
		output=$("$BUILD/podman" --root "$WORK/info" --runroot "$WORK/info-run" --storage-driver shiftoverlay \
			info --format "{{index .Store.GraphStatus \"$1\"}}")
		return
		;;
	?*:'Shift cache entries')
		output=$(find "$SHIFTED" -mindepth 2 -maxdepth 2 -regextype egrep -regex '.*/[0-9a-f]{64}/[0-9a-f]{64}' 2>/dev/null | wc -l)
		return
		;;
	esac
	run_podman info --format "{{index .Store.GraphStatus \"$1\"}}"
}

# record CONTAINER QUERY: sets RECORD to a part of the mapping record, by a jq query.
record() {
	layer_of "$1"
	RECORD=$(jq -r "$2" "$GRAPH/$DRIVER/$LAYER/shiftoverlay.json")
}

# expected_engine: the engine that the file's variant stands for. auto is the
# cheapest, and that is idmap wherever it can be forced.
expected_engine() {
	if [ "$ENGINE" != auto ]; then
		echo "$ENGINE"
		return
	fi
	local output
	status_row 'Shift engine' >/dev/null
	echo "$output"
}

# entries N: how many entries of the cache N mappings of one image make. With
# erofs there is one more that serves all mappings, and it is the only one where
# the kernel maps its IDs.
entries() {
	case $(expected_engine) in
	idmap) echo 0 ;;
	erofs) if [[ $VARIANT = *-noidmap ]]; then echo $(($1 + 1)); else echo 1; fi ;;
	*) echo "$1" ;;
	esac
}

# builds: does the engine make shifted lowers (and so fills the cache)?
builds() {
	[ "$(expected_engine)" != idmap ]
}

# LISTING: a shell script that prints all that stat(1) knows of each path of the
# container's root file system, and the checksums of files. What podman itself
# puts there is left out.
# shellcheck disable=SC2016
LISTING='
all() {
	find / -xdev \( -path /etc/hosts -o -path /etc/hostname -o -path /etc/resolv.conf -o -path /etc/mtab \
		-o -path /run -o -path /proc -o -path /sys -o -path /dev \) -prune -o "$@"
}
all -exec stat -c "%i|%N|%F %a %u:%g %t,%T|%s|%y" {} + && all -type f -exec md5sum {} +'

# tidy_listing: makes from the output of LISTING one line for each path, one for
# each checksum and one for each group of hard links, sorted. Link counts are not
# in it: overlay makes up those of folders, and a link that an upper layer
# deleted still counts.
tidy_listing() {
	LC_ALL=C sort -t '|' -k 2,2 | awk -F '|' '
		NF == 1 { print "content " $0; next }
		{
			if ($2 ~ /^\047.*\047$/ && $3 !~ /^symbolic/) $2 = substr($2, 2, length($2) - 2) # as GNU quotes
			dir = $3 ~ /^directory/
			print $2, $3, "size", dir ? "-" : $4, "time", $2 ~ "^/(etc)?$" ? "-" : $5
			if (!dir) { names[$1] = names[$1] " " $2; n[$1]++ }
		}
		END { for (i in n) if (n[i] > 1) print "hard links:" names[i] }' | LC_ALL=C sort
}

# seconds: a listing with times in full seconds, as a layer's tar has them.
seconds() { sed -E 's/ ([0-9:]{8})\.[0-9]{9} / \1 /'; }

# listing RUN-OPTIONS... IMAGE: sets TREE to the tree as a new container of the image sees it.
listing() {
	look run --rm "$@" sh -c "$LISTING"
}

# listing_of CONTAINER: likewise, of a running container.
listing_of() {
	look exec "$1" sh -c "$LISTING"
}

look() {
	capture podman "$@"
	[ "$status" -eq 0 ] || die "podman ${*:1:$# - 1}: exit status is $status: $output"
	assert "$output" !~ 'level=' "podman ${*:1:$# - 1}: messages"
	TREE=$(tidy_listing <<<"$output")
	assert "$(wc -l <<<"$TREE")" -ge 300 "lines of the listing"
}

# in_userns CONTAINER COMMAND...: run a program of this machine as the root user
# of a running container's user namespace, in the root folder of the container.
in_userns() {
	local pid
	pid=$(podman inspect --format '{{.State.Pid}}' "$1")
	shift
	# shellcheck disable=SC2016
	nsenter --target "$pid" --user --setuid 0 --setgid 0 -- sh -c 'cd "$0" && exec "$@"' "/proc/$pid/root" "$@"
}

# xattr_size FILE NAME: the bytes of an extended attribute, 0 if there is none.
xattr_size() {
	local hex
	hex=$(getfattr -h --absolute-names --only-values -n "$2" "$1" 2>/dev/null | od -An -v -tx1 | tr -d ' \n')
	echo $((${#hex} / 2))
}

# import_unknown_owner: the image localhost/odd, with files of user 70000 and of group 70001.
import_unknown_owner() {
	mkdir -p "$WORK/tree/srv/odd"
	# An ordinary user cannot make the device.
	tar -C "$WORK/tree" --xattrs --xattrs-include='*' --numeric-owner --exclude=./srv/shift/null -xpf "$BUILD/images/busybox.tar"
	echo odd >"$WORK/tree/srv/odd/file"
	chown 70000:0 "$WORK/tree/srv/odd/file"
	echo odd >"$WORK/tree/srv/odd/group"
	chown 0:70001 "$WORK/tree/srv/odd/group"
	tar -C "$WORK/tree" --xattrs --xattrs-include='*' --numeric-owner -cf "$WORK/odd.tar" .
	import "$WORK/odd.tar" localhost/odd
	rm -rf "$WORK/tree" "$WORK/odd.tar"
}

# ---- leaving nothing behind

mounts() { awk '{ print $5 }' /proc/self/mountinfo | sort; }

pids() { find /proc -maxdepth 1 -regex '/proc/[0-9]+' -printf '%f\n' | sort; }

# loops: loop devices of this sandbox; others' may come and go.
loops() { grep -lF "$SANDBOX" /sys/block/loop*/loop/backing_file 2>/dev/null | sort; }

# relatives: the processes of bats itself.
relatives() {
	local p=$BASHPID
	while [ "${p:-0}" -gt 0 ]; do
		echo "$p"
		p=$(awk '/^PPid:/ { print $2 }' "/proc/$p/status")
	done
}

# strangers: processes that the test started and that still run.
strangers() {
	local p parent state args family
	family=" $(relatives | tr '\n' ' ')"
	for p in $(comm -13 <(printf '%s\n' "$PIDS_BEFORE") <(pids)); do
		[[ $family != *" $p "* ]] || continue
		# A process may end while we look.
		read -r state parent < <(sed -E 's/^.*\) (.) ([0-9]+) .*$/\1 \2/' "/proc/$p/stat" 2>/dev/null) || continue
		[ "$state" != Z ] || continue
		# Children of bats' own shells; what podman leaves is a child of process 1.
		[ "$parent" = 1 ] || [[ $family != *" $parent "* ]] || continue
		args=$(tr '\0' ' ' 2>/dev/null <"/proc/$p/cmdline") || continue
		# bats itself counts down with it, and may have started it after setup had looked.
		[ "$args" != "sleep ${BATS_TEST_TIMEOUT:-} " ] || continue
		[ -z "$args" ] || echo "$p $args"
	done
}

# What an empty store is made of, below the graph root: locks, tables of the
# store and podman's own files. Nothing here belongs to an image or a container.
EMPTY_STORE='^(storage\.lock|userns\.lock|db\.sql(-journal|-wal|-shm)?|defaultNetworkBackend|libpod|volumes|networks(/netavark\.lock)?'
EMPTY_STORE+='|secrets(/secrets\.lock|/secretsdata\.(json|lock))?|artifacts(/.*)?|DRIVER-(images|containers|layers)'
EMPTY_STORE+='|DRIVER-images/images\.(lock|json)|DRIVER-containers/(volatile-)?containers\.(lock|json)'
EMPTY_STORE+='|DRIVER-layers/(layers\.(lock|json)|volatile-layers\.json|tmp)'
EMPTY_STORE+='|DRIVER|DRIVER/(l|tempdirs|staging|backingFsBlockDev|\.has-mount-program|\.staging-dir-locks?)|staging'
EMPTY_STORE+='|libpod/bolt_state\.db|mounts|tmp|volumes/backingFsBlockDev' # of podman 4
EMPTY_STORE+='|DRIVER-shifted|DRIVER-shifted/(tmp|locks|trash|version|locks/[a-z-]+-?[0-9]*))$'

EMPTY_RUN='^(DRIVER-(layers|containers|locks)|DRIVER-layers/mountpoints\.(json|lock)|DRIVER-locks/.*|networks(/.*)?'
EMPTY_RUN+='|DRIVER|DRIVER/[^/]+|DRIVER/stores/.*|secrets|artifacts)$'

# leftovers FOLDER PATTERN DRIVER: what is in FOLDER and not in an empty store, or
# the first of it.
leftovers() {
	[ ! -d "$1" ] || find "$1" -mindepth 1 -printf '%P\n' |
		KNOWN=${2//DRIVER/$3} awk '$0 !~ ENVIRON["KNOWN"]' | sort | sed -n 1,10p
}

# leak_check: fail if mounts, processes, loop devices or files are left.
leak_check() {
	local i left store driver rc=0
	for ((i = 0; i < 100; i++)); do
		left=$(strangers)
		[ -n "$left" ] || break
		sleep 0.1
	done
	is "$left" '' 'processes that the test left behind' || rc=1
	is "$(comm -13 <(printf '%s\n' "$MOUNTS_BEFORE") <(mounts))" '' 'mounts that the test left behind' || rc=1
	is "$(loops)" "$LOOPS_BEFORE" 'loop devices' || rc=1
	for store in $STORES; do
		driver=${store#*:} store=${store%:*}
		is "$(leftovers "$WORK/$store/graph" "$EMPTY_STORE" "$driver")" '' "files left behind in the graph root of store $store" || rc=1
		is "$(leftovers "$WORK/$store/run" "$EMPTY_RUN" "$driver")" '' "files left behind in the run root of store $store" || rc=1
	done
	return $rc
}

# clean_store: remove all containers, volumes and images of the current store,
# as a user would, if there are any. That this leaves nothing is for leak_check
# to see.
clean_store() {
	local id='[0-9a-f][0-9a-f][0-9a-f][0-9a-f]'
	if compgen -G "$GRAPH/*-containers/$id*" >/dev/null; then run_podman rm -f -t 0 -a || return; fi
	if compgen -G "$GRAPH/volumes/*" >/dev/null; then run_podman volume rm -f -a || return; fi
	if compgen -G "$GRAPH/*-images/$id*" >/dev/null; then run_podman rmi -f -a || return; fi
	# Nobody tells a mount program that an image is gone; the next mount sees it.
	[ -z "$PROGRAM" ] || [ ! -d "$GRAPH/overlay" ] || "$PROGRAM" --upkeep "$GRAPH"
}

# basic_teardown: clean all stores of the test, look for leaks, remove its files.
# A test that breaks its store for good says so with `broken_store WHY`.
basic_teardown() {
	local store failed=0 log=$WORK/teardown.log
	{
		set_idmap
		for store in $STORES; do
			use_store_again "${store%:*}"
			[ -e "$WORK/${store%:*}/broken" ] || clean_store || failed=1
		done
		leak_check || failed=1
	} >"$log" 2>&1
	[ "$failed" = 0 ] || cat "$log"
	sweep
	return "$failed"
}

# forget_boot: take away what podman keeps for a boot, outside of the run root.
forget_boot() {
	if [ -n "${SANDBOX_ROOTLESS:-}" ]; then
		rm -rf "$XDG_RUNTIME_DIR"/{libpod/tmp,runc} /dev/shm/libpod_rootless_lock_*
	else
		rm -rf /run/libpod /run/runc /dev/shm/libpod_lock
	fi
}

# use_store_again NAME: a store of this test becomes the current one, as it was configured.
use_store_again() {
	sandbox_use "$WORK/$1"
	GRAPH=$WORK/$1/graph RUN=$WORK/$1/run
}

# broken_store NAME: podman cannot clean this store; teardown is not to try, but
# still to look for mounts and processes.
broken_store() {
	: >"$WORK/$1/broken"
	STORES=$(for s in $STORES; do [ "${s%:*}" = "$1" ] || echo "$s"; done)
}

# sweep: whatever happened, the next test finds a clean sandbox.
sweep() {
	local p m
	for p in $(strangers | cut -d' ' -f1); do
		kill -KILL "$p" 2>/dev/null || true
	done
	comm -13 <(printf '%s\n' "$MOUNTS_BEFORE") <(mounts) | sort -r | while read -r m; do
		umount -l "$m" 2>/dev/null || true
	done
	forget_boot
	rm -rf --one-file-system "$WORK"
}
