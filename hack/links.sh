#!/usr/bin/env bash
# links.sh [FOLDER]: every relative link in the Markdown files of the repository
# (or of the folder) leads to a file that is there, and every #anchor to a heading.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cd "${1:-$here/..}"

mapfile -t files < <(find . -name '*.md' -not -path './build/*' -not -path './.cache/*' -printf '%P\n' | sort)
[ ${#files[@]} -gt 0 ] || { echo "no Markdown files in $PWD" >&2; exit 1; }
list=$(awk -f "$here/links.awk" "${files[@]}")
declare -A anchors=()
while IFS=$'\t' read -r _ file name; do
	anchors["$file#$name"]=1
done < <(grep '^anchor' <<<"$list")
rc=0 links=0
while IFS=$'\t' read -r _ where target anchor; do
	links=$((links + 1))
	file=${where%:*}
	if [ "$target" = - ]; then
		target=$file
	else
		target=$(realpath -m --relative-to=. "$(dirname "$file")/$target")
		if [ ! -e "$target" ]; then
			echo "$where: no file $target"
			rc=1
			continue
		fi
	fi
	if [ "$anchor" != - ] && [[ $target == *.md ]] && [ -z "${anchors["$target#$anchor"]:-}" ]; then
		echo "$where: no heading #$anchor in $target"
		rc=1
	fi
done < <(grep '^link' <<<"$list")
[ "$links" -gt 0 ] || { echo "no links found: links.awk does not work"; rc=1; }
exit $rc
