# links.awk: the relative links of Markdown files, and what they can point at.
#   awk -f hack/links.awk FILE...
# For each link outside of code, "link FILE:LINE TARGET ANCHOR" ("-" for none),
# with the target as it stands; for each heading and <a id="…">, "anchor FILE NAME", with
# the name that GitHub gives it. Fields are separated by tabs.
function slug(text) {
	gsub(/\]\([^)]*\)/, "", text) # of a link the text counts
	text = tolower(text)
	gsub(/[^a-z0-9 _-]/, "", text)
	gsub(/ /, "-", text)
	return text
}
function link(target, anchor, hash) { # it does not call match: whose results the caller needs
	if (target ~ /^[a-z][a-z0-9+.-]*:/) return # elsewhere
	anchor = "-"
	if ((hash = index(target, "#")) > 0) {
		anchor = substr(target, hash + 1)
		target = substr(target, 1, hash - 1)
	}
	print "link", FILENAME ":" FNR, target == "" ? "-" : target, anchor
}
BEGIN { OFS = "\t" }
FNR == 1 { fence = 0; split("", seen) }
/^ *(```|~~~)/ { fence = !fence; next }
fence || /^    [^ *-]/ && !list { next }
{ list = /^ *([-*]|[0-9]+\.) / || list && /^ / }
/^#+ / {
	name = $0
	sub(/^#+ +/, "", name)
	name = slug(name)
	print "anchor", FILENAME, name (seen[name]++ ? "-" seen[name] - 1 : "")
}
{
	rest = $0
	while (match(rest, /<a (id|name)="[^"]*"/)) {
		split(substr(rest, RSTART, RLENGTH), part, "\"")
		print "anchor", FILENAME, part[2]
		rest = substr(rest, RSTART + RLENGTH)
	}
	gsub(/``[^`]*``|`[^`]*`/, "")
	rest = $0
	while (match(rest, /\]\([^) ]+/)) {
		link(substr(rest, RSTART + 2, RLENGTH - 2))
		rest = substr(rest, RSTART + RLENGTH)
	}
	if (match($0, /^\[[^]]+\]: +[^ ]+/)) { # [text]: target
		rest = substr($0, RSTART, RLENGTH)
		sub(/^\[[^]]+\]: +/, "", rest)
		link(rest)
	}
}
