#!/usr/bin/env bash
# apt.sh: a private apt state in $VM/apt, with the suites that hold kernels. The
# machine's own lists and packages stay as they are. Fetched at most once a day.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
a=$VM/apt
if [ -e "$a/.fetched" ] && [ -z "$(find "$a/.fetched" -mmin +1440)" ]; then
	exit 0
fi
mkdir -p "$a"/{lists/partial,cache/archives/partial,etc/preferences.d,etc/sources.list.d}
: >"$a/status" # an empty one keeps installed packages out
mirror=$(vm_mirror)
key='[signed-by=/usr/share/keyrings/debian-archive-keyring.gpg]'
{
	for s in bullseye bookworm bookworm-backports trixie trixie-backports; do echo "deb $key $mirror/debian $s main"; done
	for s in bullseye bookworm trixie; do echo "deb $key $mirror/debian-security $s-security main"; done
} >"$a/sources.list"
cat >"$a/apt.conf" <<END
Dir::State "$a"; Dir::State::lists "$a/lists"; Dir::State::status "$a/status"; Dir::Cache "$a/cache";
Dir::Etc::sourcelist "$a/sources.list"; Dir::Etc::sourceparts "$a/etc/sources.list.d";
Dir::Etc::preferencesparts "$a/etc/preferences.d"; Dir::Etc::preferences "/dev/null";
APT::Sandbox::User "root"; Acquire::Languages "none"; Acquire::IndexTargets::deb::DEP-11::DefaultEnabled "false";
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
#clear DPkg::Post-Invoke;
END
# A suite that the archive no longer serves is no error: kernels are looked for in what is left.
APT_CONFIG=$a/apt.conf apt-get update -q >"$VM/apt.log" 2>&1 || say "apt: not every suite could be fetched (see $VM/apt.log)"
ls "$a"/lists/*Packages* >/dev/null 2>&1 || die "no package list from $mirror; see $VM/apt.log"
touch "$a/.fetched"
