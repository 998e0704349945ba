package cache

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// FuzzMeta checks that no text makes parseMeta panic, and that what it takes has
// the version that it knows.
func FuzzMeta(f *testing.F) {
	for _, seed := range []string{
		"", "{}", "null", `{"version":1}`, `{"version":2}`, `{"version":1,"stats":{"bytes":-1,"inodes":5}}`,
		`{"version":1,"boot_id":"b","built":"2026-01-02T03:04:05Z","meta":{"engine":"x"},"disposable":true,"kin":"k","inode":18446744073709551615}`,
		`{"version":1,"VERSION":2}`, `{"version":1e0}`, `{"version":1,"built":"9999-99-99"}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		m, err := parseMeta(text)
		if err != nil {
			var miss *MissError
			require.ErrorAs(t, err, &miss)
			require.Contains(t, []Reason{Damaged, UnknownVersion}, miss.Reason)
			require.Equal(t, meta{}, m)
			return
		}
		require.Equal(t, metaVersion, m.Version)
		if m.Stats != nil {
			require.GreaterOrEqual(t, m.Stats.Bytes, int64(0))
			require.GreaterOrEqual(t, m.Stats.Inodes, int64(0))
		}
	})
}

// FuzzEntry writes anything into an entry's small files: each call must do its
// work or say what is wrong, and a build mend everything.
func FuzzEntry(f *testing.F) {
	f.Add([]byte(`{"version":1}`), []byte(`{"bytes":1,"inodes":1}`), true, true)
	f.Add([]byte(`{"version":1,"boot_id":"boot"}`), []byte(`{"bytes":-1,"inodes":9223372036854775807}`), false, true)
	f.Add([]byte(`{`), []byte(``), true, false)
	dir := f.TempDir()
	c, err := Open(filepath.Join(dir, "cache"), Options{BootID: "boot"})
	require.NoError(f, err)
	r := ref("layer", 7)
	builder := Builder{Build: func(_ context.Context, dir string) error {
		return os.WriteFile(filepath.Join(dir, "f"), nil, 0o600)
	}}
	f.Fuzz(func(t *testing.T, metaText, sizeText []byte, durable, users bool) {
		_, err := c.Acquire(t.Context(), r, "user", builder)
		require.NoError(t, err)
		entry := c.path(r)
		for name, text := range map[string][]byte{metaName: metaText, sizeName: sizeText} {
			require.NoError(t, os.WriteFile(filepath.Join(entry, name), text, 0o600))
		}
		if durable {
			require.NoError(t, os.WriteFile(filepath.Join(entry, durableName), metaText, 0o600))
		}
		if !users {
			require.NoError(t, os.RemoveAll(filepath.Join(entry, usersName)))
		}
		list, err := c.List(t.Context())
		require.NoError(t, err)
		require.Len(t, list, 1)
		require.GreaterOrEqual(t, list[0].Bytes, int64(0))
		require.GreaterOrEqual(t, list[0].Inodes, int64(0))
		_, err = c.Foresee(t.Context(), TrimOptions{MaxSize: 1})
		require.NoError(t, err)
		e, err := c.Acquire(t.Context(), r, "user", builder)
		require.NoError(t, err)
		require.FileExists(t, filepath.Join(e.Path(), "f"))
		_, err = c.Trim(t.Context(), TrimOptions{MaxAge: 1, UserAlive: func(string) bool { return false }})
		require.NoError(t, err)
		list, err = c.List(t.Context())
		require.NoError(t, err)
		require.Empty(t, list)
	})
}
