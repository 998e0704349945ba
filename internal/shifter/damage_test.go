package shifter_test

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/shiftoverlay/shiftoverlay/internal/cache"
	"github.com/shiftoverlay/shiftoverlay/internal/engine"
	"github.com/shiftoverlay/shiftoverlay/internal/shifter"
	"github.com/shiftoverlay/shiftoverlay/internal/testutil"
)

// TestDamaged checks that an entry with content that is not what was built is
// made anew by the next Prepare, which succeeds.
func TestDamaged(t *testing.T) {
	testutil.RequireRoot(t)
	cut := func(file string) error { return os.Truncate(file, 4096) }
	scratch := func(file string) error {
		f, err := os.OpenFile(file, os.O_RDWR, 0)
		if err != nil {
			return err
		}
		defer f.Close()
		_, err = f.WriteAt([]byte("scratched"), 1100)
		return err
	}
	for name, c := range map[string]struct {
		ask    string
		env    engine.Env
		what   string // of the entry's data
		damage func(string) error
	}{
		"no image":           {"erofs", engine.Env{}, "image.erofs", os.Remove},
		"image cut":          {"erofs", engine.Env{}, "image.erofs", cut},
		"superblock":         {"erofs", engine.Env{}, "image.erofs", scratch},
		"patched image cut":  {"erofs", engine.Env{ErofsIdmap: "no"}, "image.erofs", cut},
		"patched superblock": {"erofs", engine.Env{ErofsIdmap: "no"}, "image.erofs", scratch},
		"no tree":            {"metacopy", engine.Env{}, "tree", os.RemoveAll},
		"no copy":            {"copyup", engine.Env{}, "tree", os.RemoveAll},
		"tree is a file": {"copyup", engine.Env{}, "tree", func(tree string) error {
			if err := os.RemoveAll(tree); err != nil {
				return err
			}
			return os.WriteFile(tree, nil, 0o600)
		}},
	} {
		t.Run(name, func(t *testing.T) {
			if c.ask == "erofs" {
				testutil.RequireKernel(t, 6, 12)
			}
			st, l := newStore(t), &log{}
			sh := newShifter(t, shifter.Options{Settings: shifter.Settings{Engine: c.ask}, Env: c.env, Cache: st.cache, UserNS: userNS(t), Debugf: l.debugf})
			prepare := func(user string) shifter.Lower {
				lower, err := sh.Prepare(t.Context(), st.plan(t, sh, mapping(t, "0:100000:65536", "0:100000:65536")), user)
				require.NoError(t, err)
				require.NoError(t, lower.Close())
				return lower
			}
			first := prepare("c0")
			infos, err := st.cache.List(t.Context())
			require.NoError(t, err)
			for i, info := range infos {
				damaged := filepath.Join(st.cache.Path(info.Ref), c.what)
				require.NoError(t, c.damage(damaged))
				before := l.count("built now: true")
				again := prepare(fmt.Sprint("c", i+1))
				assert.Equal(t, first.Ref, again.Ref)
				assert.Equal(t, first.Path, again.Path)
				built := l.count("built now: true") - before
				if info.Ref == first.Ref {
					assert.Equal(t, 1, built)
				} else {
					// A patched image is as good as it was, whatever its template is.
					assert.Zero(t, built)
					require.NoError(t, os.Truncate(filepath.Join(st.cache.Path(first.Ref), c.what), 0))
					prepare("c9")
				}
			}
			assert.NotZero(t, l.count("is damaged and made anew"))
			_, err = st.cache.Find(t.Context(), cache.Ref{Layer: first.Ref.Layer, Key: first.Ref.Key})
			require.NoError(t, err)
		})
	}
}
