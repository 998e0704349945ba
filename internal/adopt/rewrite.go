package adopt

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
)

// Paths changes the paths of a store's folders in JSON texts: strings that begin
// with one. All else stays as it is, byte for byte.
type Paths struct{ replace *strings.Replacer }

// NewPaths makes one for a move of stores. A store whose paths are written in
// several ways is given several times.
func NewPaths(m Move, stores ...Store) Paths {
	var pairs []string
	for _, s := range stores {
		for _, root := range []string{s.Graph, s.Run} {
			for _, suffix := range graphSuffixes {
				from, to := filepath.Join(root, m.From+suffix), filepath.Join(root, m.To+suffix)
				pairs = append(pairs, begin(from), begin(to), `"`+from+"/", `"`+to+"/")
			}
		}
	}
	return Paths{strings.NewReplacer(pairs...)}
}

// begin is how a string with a path below a folder begins in JSON as Go writes it;
// others may leave <, > and & as they are.
func begin(dir string) string {
	b, err := json.Marshal(dir)
	if err != nil { // of a string there is none
		return "\x00"
	}
	return strings.TrimSuffix(string(b), `"`) + "/"
}

// Rewrite returns the text with the paths changed.
func (p Paths) Rewrite(text string) string { return p.replace.Replace(text) }

// rewriteFile changes a file, unless nothing in it changes.
func (p Paths) rewriteFile(name string) error {
	st, err := os.Lstat(name)
	if err != nil || !st.Mode().IsRegular() {
		return err
	}
	b, err := os.ReadFile(name)
	if err != nil {
		return err
	}
	now := []byte(p.Rewrite(string(b)))
	if bytes.Equal(b, now) {
		return removeAside(name)
	}
	return replaceFile(name, now, st.Mode().Perm())
}
