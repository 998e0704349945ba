#!/usr/bin/env bash
# rootfs.sh: $VM/root.img, the guest's root: trixie minbase with test tools and
# SELinux policy, labelled. Made again when this script or the init changes.
# shellcheck disable=SC2016 # inner shells
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
img=$VM/root.img dir=$VM/root log=$VM/rootfs.log
init=$REPO/tests/vm/init.sh policy=$REPO/contrib/selinux/shiftoverlay.cil
packages=kmod,e2fsprogs,xfsprogs,btrfs-progs,erofs-utils,attr,acl,util-linux,mount,procps,iproute2,libcap2-bin,busybox-static
packages+=,policycoreutils,selinux-utils,semodule-utils,xz-utils,jq,libseccomp2,libsystemd0,conmon,uidmap,ca-certificates,file
want=$(cat "${BASH_SOURCE[0]}" "$init" "$policy" | sha256sum)
[ "$(cat "$VM/.root.stamp" 2>/dev/null)" != "$want" ] || exit 0

if [ "$(cat "$dir/.packages" 2>/dev/null)" != "$packages" ]; then
	say "debootstrap $VM_SUITE"
	rm -rf --one-file-system "$dir"
	# In a mount namespace of its own: what debootstrap mounts goes with it.
	unshare --mount --propagation private debootstrap --variant=minbase --include="$packages" \
		"$VM_SUITE" "$dir" "$(vm_mirror)/debian" >"$log" 2>&1 || die "debootstrap failed; see $log"
	say 'installing the SELinux policy'
	# Its installation wants /proc; its scripts want /dev/pts, and do without.
	unshare --mount --propagation private sh -euc '
		mount -t proc proc "$1/proc"
		export DEBIAN_FRONTEND=noninteractive
		chroot "$1" apt-get -q -y --no-install-recommends install selinux-policy-default
	' sh "$dir" >>"$log" 2>&1 || die "no selinux-policy-default; see $log"
	rm -rf "$dir"/var/cache/apt/archives/*.deb "$dir"/var/lib/apt/lists/* "$dir"/usr/share/{doc,locale,man}
	echo "$packages" >"$dir/.packages"
fi
sed -i 's/^SELINUX=.*/SELINUX=enforcing/' "$dir/etc/selinux/config"
mkdir -p "$dir/in" "$dir/out"
install -m 755 "$init" "$dir/vmtest-init"
: >"$dir/etc/resolv.conf"
printf 'containers:2147483647:2147483648\n' >"$dir/etc/subuid"
cp "$dir/etc/subuid" "$dir/etc/subgid"
# trixie's mkfs.xfs uses features that older kernels cannot mount.
cat >"$dir/usr/local/sbin/mkfs.xfs" <<'END'
#!/bin/sh
exec /usr/sbin/mkfs.xfs -i nrext64=0,exchange=0 -n parent=0 "$@"
END
chmod 755 "$dir/usr/local/sbin/mkfs.xfs"
# Here and not in the guest: building the policy takes most of a minute in emulation.
cp "$policy" "$dir/tmp/"
chroot "$dir" semodule -X 300 -i /tmp/shiftoverlay.cil >>"$log" 2>&1 || die "contrib/selinux is no module for this policy; see $log"
# setfiles only sets attributes, so it works on a machine without SELinux.
unshare --mount --propagation private sh -euc '
	mount -t proc proc "$1/proc"
	chroot "$1" setfiles -F -e /proc /etc/selinux/default/contexts/files/file_contexts /
' sh "$dir" >>"$log" 2>&1 || die "cannot label the root; see $log"
rm -f "$img"
truncate -s 2G "$img"
mkfs.ext4 -q -F -O ^metadata_csum_seed,^orphan_file -E lazy_itable_init=1,nodiscard -d "$dir" "$img" >>"$log" 2>&1 ||
	mkfs.ext4 -q -F -O ^metadata_csum_seed -E lazy_itable_init=1,nodiscard -d "$dir" "$img" >>"$log" 2>&1 ||
	die "cannot make $img; see $log"
echo "$want" >"$VM/.root.stamp"
say "root image: $img"
