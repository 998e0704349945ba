# doc-commands.awk: the commands of a Markdown file.
#   awk -v out=FOLDER -f hack/doc-commands.awk FILE
# Each fenced block with the info string sh becomes a script FOLDER/NN.sh, in the
# order of the file; of a block with the info string console, which shows output,
# the lines after "$ ". Code spans in the text that begin with the name of a program
# (make podman buildah skopeo shiftoverlay shiftoverlay-mount plugin-test), which only
# mention a command, go to standard output, one a line.
/^ *```/ {
	if (kind != "") { kind = ""; if (script != "") close(script); script = ""; next }
	match($0, /^ */); indent = RLENGTH
	kind = substr($0, indent + 4)
	sub(/ .*/, "", kind)
	if (kind == "") kind = "text"
	if (kind == "sh" || kind == "console") {
		script = sprintf("%s/%02d.sh", out, ++n)
		printf "" >script
	}
	next
}
kind == "sh" { print substr($0, indent + 1) >script; next }
kind == "console" { if (sub(/^ *\$ /, "")) print >script; next }
kind != "" { next }
{
	gsub(/``[^`]*``/, "")
	while (match($0, /`[^`]+`/)) {
		span = substr($0, RSTART + 1, RLENGTH - 2)
		$0 = substr($0, RSTART + RLENGTH)
		if (span ~ /^(make|podman|buildah|skopeo|shiftoverlay|shiftoverlay-mount|plugin-test) [a-z-]/) print span
	}
}
