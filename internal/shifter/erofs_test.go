package shifter_test

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/shiftoverlay/shiftoverlay/internal/cache"
	"github.com/shiftoverlay/shiftoverlay/internal/engine"
	"github.com/shiftoverlay/shiftoverlay/internal/linux"
	"github.com/shiftoverlay/shiftoverlay/internal/shifter"
	"github.com/shiftoverlay/shiftoverlay/internal/testutil"
	"github.com/shiftoverlay/shiftoverlay/internal/testutil/fstree"
	"github.com/shiftoverlay/shiftoverlay/pkg/idshift"
)

// userNS makes user namespaces for a test's shifter.
func userNS(t *testing.T) func(m idshift.Mapping) (int, error) {
	return func(m idshift.Mapping) (int, error) {
		return unix.Dup(int(testutil.UserNamespace(t, m).Fd()))
	}
}

// imageOwner is who owns the file "f" of a lower that is an image.
func imageOwner(t *testing.T, l shifter.Lower) [2]uint32 {
	t.Helper()
	dir, err := linux.OpenDir(unix.AT_FDCWD, l.Tree.Path()+"/.")
	require.NoError(t, err)
	defer linux.Close(dir)
	var st unix.Stat_t
	require.NoError(t, linux.Lstatat(dir, "f", &st))
	return [2]uint32{st.Uid, st.Gid}
}

// users lists the entries of a cache with their users, templates first.
func users(t *testing.T, c *cache.Cache) (out []string) {
	t.Helper()
	infos, err := c.List(t.Context())
	require.NoError(t, err)
	for _, i := range infos {
		kind := "template"
		if strings.Contains(string(i.Meta), `"mapping"`) {
			kind = "mapping"
		}
		out = append(out, fmt.Sprint(kind, i.Users))
	}
	return out
}

// TestErofs checks that a template is made once for all mappings, and what is
// made for each of them.
func TestErofs(t *testing.T) {
	testutil.RequireRoot(t)
	for name, c := range map[string]struct {
		env    engine.Env
		kernel [2]int
	}{
		"best":    {engine.Env{}, [2]int{5, 19}},
		"opaque":  {engine.Env{ErofsData: "no"}, [2]int{5, 19}},
		"loop":    {engine.Env{ErofsFile: "no"}, [2]int{5, 19}},
		"patched": {engine.Env{ErofsIdmap: "no"}, [2]int{5, 15}},
		"worst":   {engine.Env{ErofsData: "no", ErofsFile: "no", ErofsIdmap: "no"}, [2]int{5, 10}},
	} {
		t.Run(name, func(t *testing.T) {
			testutil.RequireKernel(t, c.kernel[0], c.kernel[1])
			env := c.env
			st, l := newStore(t), &log{}
			sh := newShifter(t, shifter.Options{Settings: shifter.Settings{Engine: "erofs"}, Env: env, Cache: st.cache, UserNS: userNS(t), Debugf: l.debugf})
			for i, base := range []uint32{100000, 200000, 100000} {
				text := fmt.Sprintf("0:%d:65536", base)
				lower, err := sh.Prepare(t.Context(), st.plan(t, sh, mapping(t, text, text)), fmt.Sprint("c", i))
				require.NoError(t, err)
				assert.Equal(t, "erofs", lower.Engine)
				assert.Equal(t, env.ErofsData == "", len(lower.Data) > 0)
				assert.Equal(t, [2]uint32{base + 1000, base + 1000}, imageOwner(t, lower))
				require.NoError(t, lower.Close())
				require.NoError(t, lower.Close(), "twice")
			}
			if env.ErofsIdmap == "" {
				assert.Equal(t, []string{"template[c0 c1 c2]"}, users(t, st.cache))
				assert.Equal(t, 1, l.count("built now: true"))
			} else {
				assert.ElementsMatch(t, []string{"template[]", "mapping[c0 c2]", "mapping[c1]"}, users(t, st.cache))
				assert.Equal(t, 2, l.count("built now: true"))
			}
		})
	}
}

// TestErofsUnfit checks that auto takes the next engine for an image with
// ACLs, and a name does not.
func TestErofsUnfit(t *testing.T) {
	testutil.RequireRoot(t)
	st := newStore(t)
	f := filepath.Join(st.dir, "layer", "f")
	require.NoError(t, unix.Lsetxattr(f, idshift.ACLAccess, []byte(fstree.ACL([]uint32{33}, nil)), 0))
	fstree.Apply(t, filepath.Join(st.dir, "layer"), fstree.Dir("other"))
	envs := []engine.Env{
		{Idmap: "no", ErofsData: "no", ErofsFile: "no", ErofsIdmap: "no"},
		{Idmap: "no"}, // from here on only for newer kernels
		{Idmap: "no", ErofsIdmap: "no"},
	}
	for i, env := range envs {
		if i > 0 {
			testutil.RequireKernel(t, 5, 19)
		}
		for ask, want := range map[string]string{"auto": "metacopy", "erofs": "erofs"} {
			l := &log{}
			sh := newShifter(t, shifter.Options{
				Settings: shifter.Settings{Engine: ask}, Env: env,
				Cache: st.cache, UserNS: userNS(t), Debugf: l.debugf,
			})
			lower, err := sh.Prepare(t.Context(), st.plan(t, sh, mapping(t, "0:100000:65536", "0:100000:65536")), "c")
			require.NoError(t, err)
			assert.Equal(t, want, lower.Engine)
			if ask == "auto" {
				assert.Equal(t, 1, l.count("POSIX ACLs"), "the reason")
			}
			require.NoError(t, sh.Release(lower.Ref, "c"))
			require.NoError(t, lower.Close())
		}
	}
	for _, u := range users(t, st.cache) {
		assert.Contains(t, u, "[]", "all was released")
	}
}

// TestErofsPassing checks that a container is registered with the template of its
// image only as long as the process lives that patches it: who dies meanwhile
// must not hold the template as long as the container is there.
func TestErofsPassing(t *testing.T) {
	testutil.RequireRoot(t)
	st := newStore(t)
	asked := ""
	sh := newShifter(t, shifter.Options{
		Settings: shifter.Settings{Engine: "erofs"}, Env: engine.Env{ErofsIdmap: "no"}, Cache: st.cache, UserNS: userNS(t),
		Passing: func(user string) string {
			asked = user
			return "not/a/name"
		},
	})
	_, err := sh.Prepare(t.Context(), st.plan(t, sh, mapping(t, "0:100000:65536", "0:100000:65536")), "c")
	require.ErrorContains(t, err, "not/a/name", "the template is acquired for whom Passing names")
	assert.Equal(t, "c", asked)
	assert.Empty(t, users(t, st.cache))
}
