#!/usr/bin/env bash
# install.sh: builds our programs and installs them below $DESTDIR$PREFIX, with
# manual pages, shell completions, examples and units of systemd. Nothing is
# configured, enabled or started. `install.sh --remove` takes away what it
# installs, and nothing else.
#
# Variables: DESTDIR (default: none), PREFIX (default /usr/local)
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
: "${DESTDIR:=}" "${PREFIX:=/usr/local}"
cd "$REPO"
stage=$BUILD/install
examples=share/doc/shiftoverlay/examples

# put MODE FILE NAME: a file of the tree that is installed, NAME below PREFIX.
put() { install -D -m "$1" "$2" "$stage/$3"; }

# build: the whole tree in $stage.
build() {
	local tool page shell
	rm -rf "$stage"
	"$REPO/hack/build-tools.sh" shiftoverlay shiftoverlay-mount
	for tool in shiftoverlay shiftoverlay-mount; do put 755 "$BUILD/$tool" "bin/$tool"; done
	(cd tools/pack && GOFLAGS='' CGO_ENABLED=0 go build -trimpath -o "$BUILD/go-md2man" github.com/cpuguy83/go-md2man/v2)
	for page in docs/man/*.[0-9].md docs/*.[0-9].md; do
		tool=${page##*/}
		tool=${tool%.md}
		mkdir -p "$stage/share/man/man${tool##*.}"
		"$BUILD/go-md2man" -in "$page" -out "$stage/share/man/man${tool##*.}/$tool"
	done
	mkdir -p "$stage"/share/{bash-completion/completions,zsh/site-functions,fish/vendor_completions.d}
	for shell in bash:bash-completion/completions/shiftoverlay zsh:zsh/site-functions/_shiftoverlay fish:fish/vendor_completions.d/shiftoverlay.fish; do
		"$BUILD/shiftoverlay" completion "${shell%%:*}" >"$stage/share/${shell#*:}"
	done
	put 644 contrib/shiftoverlay.conf share/containers/shiftoverlay.conf
	put 644 contrib/storage.conf $examples/storage.conf
	put 644 contrib/containers.conf.d/50-shiftoverlay-userns.conf $examples/50-shiftoverlay-userns.conf
	put 644 contrib/selinux/shiftoverlay.cil share/shiftoverlay/shiftoverlay.cil
	put 644 contrib/subuid.md share/doc/shiftoverlay/subuid.md
	put 644 README.md share/doc/shiftoverlay/README.md
	put 644 LICENSE share/doc/shiftoverlay/copyright
	put 644 contrib/tmpfiles.d/shiftoverlay.conf lib/tmpfiles.d/shiftoverlay.conf
	put 644 contrib/systemd/shiftoverlay-prune.timer lib/systemd/system/shiftoverlay-prune.timer
	put 644 contrib/systemd/shiftoverlay-prune.service lib/systemd/system/shiftoverlay-prune.service
	sed -i "s,/usr/bin/,$PREFIX/bin/," "$stage/lib/systemd/system/shiftoverlay-prune.service"
}

case ${1:-} in
'')
	build
	mkdir -p "$DESTDIR$PREFIX"
	(cd "$stage" && find . -type f -printf '%P\n') | while read -r f; do
		install -D -m "$(stat -c %a "$stage/$f")" "$stage/$f" "$DESTDIR$PREFIX/$f"
	done
	say "installed $(find "$stage" -type f | wc -l) files below $DESTDIR$PREFIX"
	;;
--remove)
	[ -d "$stage" ] || build
	(cd "$stage" && find . -type f -printf '%P\n') | while read -r f; do rm -f "$DESTDIR$PREFIX/$f"; done
	for d in share/shiftoverlay "$examples" share/doc/shiftoverlay; do
		rmdir "$DESTDIR$PREFIX/$d" 2>/dev/null || true
	done
	say "removed what is in $stage from $DESTDIR$PREFIX"
	;;
*) die "unknown argument $1: none, or --remove" ;;
esac
