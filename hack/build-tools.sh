#!/usr/bin/env bash
# build-tools.sh [podman|buildah|crio|runc|newer|plugin-test|shiftoverlay|shiftoverlay-mount|cri|conform]...
#
# Builds podman, buildah and CRI-O with the shiftoverlay driver compiled in, and
# runc, from their Go modules, and our own programs and test tools, into $BUILD
# (default: build/). newer is podman and buildah of later years as they are, without our
# driver, in $BUILD/newer-5.8 and $BUILD/newer-6.0, to try shiftoverlay-mount with.
# Without arguments: all but newer.
# A tool whose inputs (its version, our driver's sources, the Go version) did
# not change since the last build is left alone.
#
# Variables: BUILD; JOBS (go build -p, default: number of cores);
# PODMAN_VERSION BUILDAH_VERSION CRIO_VERSION RUNC_VERSION BUILD_TAGS.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

DRIVER_PACKAGE=github.com/shiftoverlay/shiftoverlay/drivers/shiftoverlay
: "${PODMAN_VERSION:=v5.6.2}" "${BUILDAH_VERSION:=v1.41.5}" "${CRIO_VERSION:=v1.34.0}" "${RUNC_VERSION:=v1.3.3}"
: "${BUILD_TAGS:=containers_image_openpgp exclude_graphdriver_btrfs seccomp systemd}"
: "${JOBS:=$(nproc)}"

# As they are: MODULE VERSION PACKAGE.
declare -A NEWER=(
	[newer-5.8/podman]="github.com/containers/podman/v5 v5.8.2 ./cmd/podman"
	[newer-5.8/buildah]="github.com/containers/buildah v1.43.1 ./cmd/buildah"
	[newer-6.0/podman]="go.podman.io/podman/v6 v6.0.0 ./cmd/podman"
	[newer-6.0/buildah]="go.podman.io/buildah v1.44.0 ./cmd/buildah"
)

need go gcc make pkg-config tar flock sha256sum
src=$BUILD/src
mkdir -p "$src"
export CGO_ENABLED=1 GOFLAGS=-mod=mod
unset GOOS GOARCH GOWORK

# run_logged LOG COMMAND...: the output goes to LOG; on failure its end is shown.
run_logged() {
	local log=$1
	shift
	if ! "$@" >>"$log" 2>&1; then
		tail -n 30 "$log" >&2
		die "$* failed; the whole output is in $log"
	fi
}

# driver_hash: a digest of everything of ours that ends up in the tools.
driver_hash() {
	(
		cd "$REPO"
		cat go.mod go.sum
		go list -mod=readonly -tags "$BUILD_TAGS" -deps \
			-f '{{with .Module}}{{if .Main}}{{$.Dir}}{{end}}{{end}}' "$DRIVER_PACKAGE" |
			sort | while read -r dir; do
			find "$dir" -maxdepth 1 -type f ! -name '*_test.go' -print0 | sort -z |
				xargs -0 sha256sum | sed "s, $REPO/, ,"
		done
	) | sha256sum | cut -d' ' -f1
}

# worktree NAME MODULE VERSION: prints the folder of a writable copy of the
# module, made once. (go build -overlay may not touch the module cache.)
worktree() {
	local dst=$src/$1-$3 from
	if [ ! -e "$dst/.complete" ]; then
		from=$(cd "$src" && go mod download -json "$2@$3" | sed -n 's/^\t"Dir": "\(.*\)",\{0,1\}$/\1/p')
		[ -d "$from" ] || die "go mod download $2@$3: no such module to be had; is the Go module proxy reachable?"
		rm -rf "$dst"
		mkdir -p "$dst"
		tar -C "$from" --exclude=./vendor --exclude=./test -cf - . | tar -C "$dst" -xf -
		chmod -R u+w "$dst"
		cp "$dst/go.mod" "$dst/.go.mod.orig"
		cp "$dst/go.sum" "$dst/.go.sum.orig"
		touch "$dst/.complete"
	fi
	printf '%s\n' "$dst"
}

# plug TREE MAIN_DIR: compile the driver into a main package by a blank import.
# Where the driver's go.mod asks for newer versions than the tool's, they win.
plug() {
	local tree=$1
	cp "$tree/.go.mod.orig" "$tree/go.mod"
	cat "$tree/.go.sum.orig" "$REPO/go.sum" >"$tree/go.sum"
	(cd "$tree" && go mod edit -require="${DRIVER_PACKAGE%/drivers/*}@v0.0.0" \
		-replace="${DRIVER_PACKAGE%/drivers/*}=$REPO")
	printf 'package main\n\nimport _ "%s"\n' "$DRIVER_PACKAGE" >"$tree/$2/zz_shiftoverlay.go"
}

# season TREE: CRI-O asks for the storage library of one season, the driver for
# that of the next. The libraries that belong to storage come along; runc and
# runtime-tools, which would, too, stay as CRI-O's own go.mod has them.
season() {
	local tree=$1 m
	for m in github.com/containers/image/v5 github.com/containers/common; do
		(cd "$tree" && go mod edit -require="$m@$(asked "$src/podman-$PODMAN_VERSION/.go.mod.orig" "$m")")
	done
	for m in github.com/opencontainers/runc github.com/opencontainers/runtime-tools; do
		(cd "$tree" && go mod edit -replace="$m=$m@$(asked "$tree/.go.mod.orig" "$m")")
	done
}

# asked GO_MOD MODULE: the version of the module that a go.mod asks for.
asked() {
	awk -v m="$2" '$1 == m { print $2; found = 1; exit } END { exit !found }' "$1" || die "$1 does not name $2"
}

# compile TOOL FOLDER PACKAGE [LDFLAGS]: build the package in FOLDER.
compile() {
	local log=$BUILD/${1//\//-}.log new=$BUILD/.${1//\//-}.new
	run_logged "$log" env -C "$2" go build -buildvcs=false -trimpath -p "$JOBS" -tags "$BUILD_TAGS" \
		-ldflags "-s -w ${4:-}" -o "$new" "$3"
	mv "$new" "$BUILD/$1"
}

# build_tool TOOL: build unless the stamp says that nothing changed.
build_tool() {
	local tool=$1 flat=${1//\//-} stamp want tree module version package start=$SECONDS
	stamp=$BUILD/.$flat.stamp
	case $tool in
	newer)
		for tool in newer-{5.8,6.0}/{podman,buildah}; do build_tool "$tool"; done
		return
		;;
	plugin-test | shiftoverlay | shiftoverlay-mount) # Go itself knows whether anything changed
		GOFLAGS=-mod=readonly compile "$tool" "$REPO" "./cmd/$tool" "-X ${DRIVER_PACKAGE%/drivers/*}/internal/version.Release=$(tree_version)"
		say "built $tool: $BUILD/$tool"
		return
		;;
	cri | conform) # modules of their own
		GOFLAGS='' CGO_ENABLED=0 compile "$tool" "$REPO/tools/$tool" .
		say "built $tool: $BUILD/$tool"
		return
		;;
	podman) want=$PODMAN_VERSION ;;
	buildah) want=$BUILDAH_VERSION ;;
	crio) want="$CRIO_VERSION $PODMAN_VERSION" ;;
	runc) want=$RUNC_VERSION ;;
	newer-*/*)
		want=${NEWER[$tool]:-}
		[ -n "$want" ] || die "unknown tool $tool: one of ${!NEWER[*]}"
		mkdir -p "$BUILD/${tool%/*}"
		;;
	*) die "unknown tool $tool: one of podman, buildah, crio, runc, newer, plugin-test, shiftoverlay, shiftoverlay-mount, cri, conform" ;;
	esac
	case $tool in
	podman | buildah | crio) want="$want $(driver_hash)" || die "$tool: the driver package $DRIVER_PACKAGE does not load" ;;
	esac
	exec {lock}>"$src/.$flat.lock"
	flock "$lock"
	want="$want $(go env GOVERSION) $BUILD_TAGS"
	if [ -x "$BUILD/$tool" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$want" ]; then
		say "$tool is up to date"
		exec {lock}>&-
		return
	fi
	say "building $tool (log: $BUILD/$flat.log)"
	: >"$BUILD/$flat.log"
	case $tool in
	podman)
		tree=$(worktree podman github.com/containers/podman/v5 "$PODMAN_VERSION")
		plug "$tree" cmd/podman
		compile podman "$tree" ./cmd/podman
		;;
	buildah)
		tree=$(worktree buildah github.com/containers/buildah "$BUILDAH_VERSION")
		plug "$tree" cmd/buildah
		compile buildah "$tree" ./cmd/buildah
		;;
	crio)
		tree=$(worktree podman github.com/containers/podman/v5 "$PODMAN_VERSION") # its go.mod is read
		tree=$(worktree crio github.com/cri-o/cri-o "$CRIO_VERSION")
		plug "$tree" cmd/crio
		season "$tree"
		compile crio "$tree" ./cmd/crio
		run_logged "$BUILD/crio.log" make -C "$tree/pinns"
		cp "$tree/bin/pinns" "$BUILD/pinns"
		;;
	newer-*)
		# go install would do, if the module proxy told all versions there are.
		read -r module version package <<<"${NEWER[$tool]}"
		tree=$(worktree "${tool##*/}" "$module" "$version")
		compile "$tool" "$tree" "$package"
		;;
	runc)
		# Built as a dependency of an empty module: as a main module it would
		# ask for a nested module that its own zip does not hold.
		tree=$src/runc-$RUNC_VERSION
		mkdir -p "$tree"
		printf 'module runc.invalid/build\n\ngo 1.23.0\n' >"$tree/go.mod"
		run_logged "$BUILD/runc.log" env -C "$tree" go get "github.com/opencontainers/runc@$RUNC_VERSION"
		compile runc "$tree" github.com/opencontainers/runc "-X main.version=${RUNC_VERSION#v}"
		;;
	esac
	printf '%s\n' "$want" >"$stamp"
	say "built $tool in $((SECONDS - start)) s: $BUILD/$tool"
	exec {lock}>&-
}

[ $# -gt 0 ] || set -- runc podman buildah crio plugin-test shiftoverlay shiftoverlay-mount cri conform
for tool; do build_tool "$tool"; done
