#!/usr/bin/env bash
# run.sh KERNEL_DIR SCRIPT [FILE...]
#
# Boots KERNEL_DIR/vmlinuz with the root image, runs SCRIPT in the guest as root
# (in /in, FILEs beside it), prints its output and exits with its status. What it
# leaves in /out comes to $OUTDIR. 124: no end before the timeout; 125: the guest
# died (see the console log); 126: set-up failed. The root is a snapshot: every
# boot is a fresh one.
#
# Variables: TIMEOUT (seconds, default 120); MEM (MiB, 1024); SMP (1); SELINUX=1
# (enforcing); APPEND (kernel arguments); DISKS (images: /dev/vdd, vde...);
# OUTDIR; OUTSIZE (64M); RETRY=n (boot again up to n times after 124 or 125);
# CONSOLE (file for the kernel's messages)
set -uo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
if [ "${RETRY:-0}" -gt 0 ]; then
	n=$RETRY
	export RETRY=0
	while :; do
		"$0" "$@"
		rc=$?
		case $rc in
		124 | 125) [ "$n" -gt 0 ] || exit $rc ;;
		*) exit $rc ;;
		esac
		n=$((n - 1))
		say "virtual machine ended with $rc: booting again"
	done
fi
kernel=$1 script=$2
shift 2
: "${TIMEOUT:=120}" "${MEM:=1024}" "${SMP:=1}"
need qemu-system-x86_64 tar
w=$(mktemp -d "$VM/run.XXXXXX") || exit 126
con=${CONSOLE:-$w/console.log}
qemu='' tail='' watch=''
cleanup() {
	[ -z "$watch" ] || kill "$watch" 2>/dev/null
	[ -z "$qemu" ] || kill -KILL "$qemu" 2>/dev/null
	[ -z "$tail" ] || kill "$tail" 2>/dev/null
	wait 2>/dev/null
	rm -rf "$w"
}
trap cleanup EXIT
trap 'exit 130' INT TERM HUP
mkdir "$w/in" && cp "$script" "$w/in/run.sh" && { [ $# = 0 ] || cp -a "$@" "$w/in/"; } || exit 126
tar -cf "$w/in.tar" -C "$w/in" . && rm -rf "$w/in" && truncate -s %1M "$w/in.tar" &&
	truncate -s "${OUTSIZE:-64M}" "$w/out.tar" || exit 126
sel=selinux=0
[ "${SELINUX:-0}" = 0 ] || sel='selinux=1 security=selinux enforcing=0 vmtest.enforcing=1'
disks=() n=0
for d in ${DISKS:-}; do
	disks+=(-drive "if=none,id=x$n,file=$d,format=raw,cache=unsafe,discard=unmap" -device "virtio-blk-pci,drive=x$n")
	n=$((n + 1))
done
TMPDIR=$w qemu-system-x86_64 -nodefaults -no-user-config -M pc -accel tcg,thread=multi,tb-size=256 \
	-cpu max,la57=off,-cx16 -m "$MEM" -smp "$SMP" -display none -no-reboot \
	-kernel "$kernel/vmlinuz" -initrd "$kernel/initrd.img" \
	-append "console=ttyS0 quiet loglevel=4 panic=-1 mitigations=off pti=off nokaslr random.trust_cpu=on tsc=reliable $sel ${APPEND:-}" \
	-drive if=none,id=root,file="$VM/root.img",format=raw,snapshot=on,cache=unsafe -device virtio-blk-pci,drive=root \
	-drive if=none,id=in,file="$w/in.tar",format=raw,read-only=on -device virtio-blk-pci,drive=in \
	-drive if=none,id=out,file="$w/out.tar",format=raw,cache=unsafe -device virtio-blk-pci,drive=out \
	"${disks[@]}" -device virtio-rng-pci -serial "file:$con" -serial "file:$w/out.log" </dev/null >"$w/qemu.log" 2>&1 &
qemu=$!
touch "$w/out.log"
tail -s 0.2 -n +1 --pid=$qemu -f "$w/out.log" &
tail=$!
(
	trap 'kill $s 2>/dev/null' TERM
	sleep "$TIMEOUT" &
	s=$!
	wait $s && touch "$w/timedout" && kill -KILL $qemu 2>/dev/null
) &
watch=$!
wait $qemu 2>/dev/null
qrc=$?
qemu=''
kill "$watch" 2>/dev/null
wait "$watch" 2>/dev/null
wait "$tail" 2>/dev/null
watch='' tail=''
if [ -e "$w/timedout" ]; then
	say "virtual machine: no end after $TIMEOUT s"
	tail -n 5 "$con" >&2
	exit 124
fi
mkdir "$w/o"
tar -xf "$w/out.tar" -C "$w/o" --no-same-owner 2>/dev/null
if [ ! -s "$w/o/.status" ]; then
	say "virtual machine: ended without a status (qemu: $qrc)"
	cat "$w/qemu.log" >&2
	tail -n 30 "$con" >&2
	exit 125
fi
if [ -n "${OUTDIR:-}" ]; then
	mkdir -p "$OUTDIR"
	cp -a "$w/o/." "$OUTDIR/"
	rm -f "$OUTDIR/.status"
fi
exit "$(cat "$w/o/.status")"
