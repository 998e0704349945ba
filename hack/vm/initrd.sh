#!/usr/bin/env bash
# initrd.sh KERNEL_DIR: writes vmlinuz and initrd.img into the folder of an
# unpacked kernel package. The initrd: a static busybox, the modules named here
# with what they depend on, and an init that loads them and enters /dev/vda.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
dir=$(cd "$1" && pwd)
modules=(virtio_pci virtio_blk virtio_rng ext4 xfs btrfs overlay erofs loop fuse crc32c_generic libcrc32c crc32c-intel)
m=$(find "$dir/lib/modules" "$dir/usr/lib/modules" -mindepth 1 -maxdepth 1 -type d 2>/dev/null | head -n 1 || true)
[ -n "$m" ] || die "$dir: no modules"
base=${m%/lib/modules/*} release=${m##*/}
depmod -b "$base" "$release" 2>/dev/null || true
kernel=$(find "$dir/boot/vmlinuz-$release" "$m/vmlinuz" 2>/dev/null | head -n 1 || true)
[ -n "$kernel" ] || die "$dir: no vmlinuz"
ln -sf "$kernel" "$dir/vmlinuz"
w=$(mktemp -d "$VM/initrd.XXXXXX")
trap 'rm -rf "$w"' EXIT
mkdir -p "$w"/{bin,mods,proc,sys,dev,newroot,run}
cp /bin/busybox "$w/bin/busybox"
file -L "$w/bin/busybox" | grep -q static || die 'needs busybox-static'
for mod in "${modules[@]}"; do # one that is built in or not there: nothing to load
	modprobe -d "$base" -S "$release" --show-depends "$mod" 2>/dev/null | awk '$1 == "insmod" { print $2 }' || true
done | awk '!s[$0]++' | while read -r f; do
	b=${f##*/} b=${b%.xz} b=${b%.zst} b=${b%.gz}
	case $f in
	*.xz) xz -dc "$f" ;;
	*.zst) zstd -qdc "$f" ;;
	*.gz) gzip -dc "$f" ;;
	*) cat "$f" ;;
	esac >"$w/mods/$b"
	echo "$b" >>"$w/mods/order"
done
cat >"$w/init" <<'I'
#!/bin/busybox sh
/bin/busybox --install -s /bin; export PATH=/bin
mount -t devtmpfs dev /dev; mount -t proc proc /proc; mount -t sysfs sys /sys
while read m; do insmod /mods/$m 2>/dev/null; done </mods/order
i=0; while [ ! -b /dev/vda ] && [ $i -lt 100 ]; do sleep 0.1; i=$((i+1)); done
mount -t ext4 -o rw /dev/vda /newroot || { echo "vm: no root"; poweroff -f; }
mount --move /dev /newroot/dev; mount --move /proc /newroot/proc; mount --move /sys /newroot/sys
exec switch_root /newroot /vmtest-init
I
chmod +x "$w/init"
(cd "$w" && find . | cpio -o -H newc --quiet | gzip -1) >"$dir/initrd.img"
