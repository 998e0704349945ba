package cache

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func TestReboot(t *testing.T) {
	r := ref("l", 1)
	t.Run("without mark", func(t *testing.T) {
		f := newFixture(t)
		f.acquire(r, "stopped", 1)
		g := f.reboot()
		require.Equal(t, OtherBoot, requireList(t, g.Cache)[0].Unusable)
		_, err := g.Acquire(t.Context(), r, "u", Builder{})
		var miss *MissError
		require.ErrorAs(t, err, &miss)
		require.Equal(t, OtherBoot, miss.Reason)
		require.ErrorAs(t, g.MarkDurable(t.Context(), r), &miss, "it is too late for the mark")

		e, err := g.Acquire(t.Context(), r, "u", Builder{Build: func(_ context.Context, dir string) error {
			assert.NoDirExists(t, g.path(r), "the old entry is out of the way")
			return os.WriteFile(filepath.Join(dir, "new"), nil, 0o600)
		}})
		require.NoError(t, err)
		require.True(t, e.BuiltNow())
		require.FileExists(t, filepath.Join(e.Path(), "new"))
		require.NoFileExists(t, filepath.Join(e.Path(), "0"))
		infos := requireList(t, g.Cache)
		require.Equal(t, []string{"stopped", "u"}, infos[0].Users, "who needed the old one needs the new one")
		require.Empty(t, infos[0].Unusable)
		requireNoTemp(t, g.Cache)
		require.Contains(t, g.log.text(), string(OtherBoot))
	})
	t.Run("with mark", func(t *testing.T) {
		f := newFixture(t)
		f.acquire(r, "u", 1)
		for range 2 {
			require.NoError(t, f.MarkDurable(t.Context(), r))
		}
		g := f.reboot()
		e, err := g.Acquire(t.Context(), r, "u", noBuild(t))
		require.NoError(t, err)
		require.True(t, e.Durable())
		require.True(t, requireList(t, g.Cache)[0].Durable)
	})
	t.Run("mark cancelled", func(t *testing.T) {
		f := newFixture(t)
		f.acquire(r, "u", 1)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		require.ErrorIs(t, f.MarkDurable(ctx, r), context.Canceled)
		require.False(t, f.acquire(r, "u", 1).Durable())
	})
}

func TestUnusableEntries(t *testing.T) {
	r := ref("l", 1)
	for _, tt := range []struct {
		name   string
		damage func(t *testing.T, dir string)
		reason Reason
		says   string
	}{
		{"no meta", func(t *testing.T, dir string) {
			t.Helper()
			require.NoError(t, os.Remove(filepath.Join(dir, metaName)))
		}, Damaged, "meta.json"},
		{"empty meta", metaText(""), Damaged, "parse meta.json"},
		{"not JSON", metaText("\x00\x00\x00"), Damaged, "parse meta.json"},
		{"no version", metaText("{}"), Damaged, "no version"},
		{"wrong type", metaText(`{"version":1,"boot_id":7}`), Damaged, "boot_id"},
		{"later version", metaText(`{"version":2,"boot_id":{"of":"another form"}}`), UnknownVersion, "version is 2, not 1"},
		{"no users", func(t *testing.T, dir string) {
			t.Helper()
			require.NoError(t, os.RemoveAll(filepath.Join(dir, usersName)))
		}, Damaged, "users"},
		{"meta too long", metaText(strings.Repeat(" ", metaLimit+4096)), Damaged, "file too large"},
		{"negative size", metaText(`{"version":1,"stats":{"bytes":-5,"inodes":1}}`), Damaged, "-5 bytes"},
		{"meta is a folder", folderAt(metaName), Damaged, "is a directory"},
		{"meta is a link", linkAt(metaName, "/etc/passwd"), Damaged, "too many levels of symbolic links"},
		{"users is a file", fileAt(usersName), Damaged, "users is another kind of file"},
		{"users is a link", linkAt(usersName, "/tmp"), Damaged, "users is another kind of file"},
		{"no data", func(t *testing.T, dir string) {
			t.Helper()
			require.NoError(t, os.RemoveAll(filepath.Join(dir, dataName)))
		}, Damaged, "data: "},
		{"data is a file", fileAt(dataName), Damaged, "data is another kind of file"},
		{"data is a link", linkAt(dataName, "/etc"), Damaged, "data is another kind of file"},
		{"mark is a folder", folderAt(durableName), Damaged, "durable is another kind of file"},
		{"a copy", func(t *testing.T, dir string) {
			t.Helper()
			data := filepath.Join(dir, dataName)
			require.NoError(t, os.CopyFS(data+".new", os.DirFS(data)))
			require.NoError(t, os.RemoveAll(data))
			require.NoError(t, os.WriteFile(data, nil, 0o600)) // so that the inode is not used again
			require.NoError(t, os.Rename(data, data+".old"))
			require.NoError(t, os.Rename(data+".new", data))
		}, Copied, "a copy of what was built"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := newFixture(t)
			f.acquire(r, "u", 1)
			tt.damage(t, f.path(r))
			_, err := f.Acquire(t.Context(), r, "u", Builder{})
			var miss *MissError
			require.ErrorAs(t, err, &miss)
			require.Equal(t, tt.reason, miss.Reason)
			require.Equal(t, r, miss.Ref)
			require.ErrorContains(t, err, tt.says)
			require.Len(t, requireList(t, f.Cache), 1)
			require.True(t, f.acquire(r, "u", 1).BuiltNow())
			require.False(t, f.acquire(r, "u", 1).BuiltNow())
			requireNoTemp(t, f.Cache)
		})
	}
	t.Run("long meta", func(t *testing.T) {
		f := newFixture(t)
		b := filesBuilder(1)
		b.Meta = json.RawMessage(`"` + strings.Repeat("x", 70000) + `"`)
		_, err := f.Acquire(t.Context(), r, "u", b)
		require.NoError(t, err)
		require.Equal(t, string(b.Meta), string(f.acquire(r, "u", 1).Meta()))
	})
}

// TestDistrust checks that only the entry that is meant is built anew.
func TestDistrust(t *testing.T) {
	f := newFixture(t)
	r := ref("l", 1)
	f.acquire(r, "stopped", 1)
	bad := f.acquire(r, "u", 1)
	for range 2 {
		require.NoError(t, f.Distrust(t.Context(), bad))
	}
	require.Equal(t, Damaged, requireList(t, f.Cache)[0].Unusable)
	good := f.acquire(r, "u", 1)
	require.True(t, good.BuiltNow())
	require.Equal(t, []string{"stopped", "u"}, requireList(t, f.Cache)[0].Users)
	require.NoError(t, f.Distrust(t.Context(), bad), "another has taken its place")
	require.False(t, f.acquire(r, "u", 1).BuiltNow())
	require.NoError(t, f.Distrust(t.Context(), good))
	require.True(t, f.acquire(r, "u", 1).BuiltNow())
	_, err := f.Trim(t.Context(), TrimOptions{UserAlive: alive(), MaxSize: 1})
	require.NoError(t, err)
	require.NoError(t, f.Distrust(t.Context(), good), "gone")
	requireNoTemp(t, f.Cache)
}

func fileAt(name string) func(*testing.T, string) {
	return func(t *testing.T, dir string) {
		t.Helper()
		require.NoError(t, os.RemoveAll(filepath.Join(dir, name)))
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), nil, 0o600))
	}
}

func folderAt(name string) func(*testing.T, string) {
	return func(t *testing.T, dir string) {
		t.Helper()
		require.NoError(t, os.RemoveAll(filepath.Join(dir, name)))
		require.NoError(t, os.Mkdir(filepath.Join(dir, name), 0o700))
	}
}

func linkAt(name, target string) func(*testing.T, string) {
	return func(t *testing.T, dir string) {
		t.Helper()
		require.NoError(t, os.RemoveAll(filepath.Join(dir, name)))
		require.NoError(t, os.Symlink(target, filepath.Join(dir, name)))
	}
}

func metaText(text string) func(*testing.T, string) {
	return func(t *testing.T, dir string) {
		t.Helper()
		require.NoError(t, os.WriteFile(filepath.Join(dir, metaName), []byte(text), 0o600))
	}
}

func TestLastUseIsWrittenOnceAMinute(t *testing.T) {
	f := newFixture(t)
	r := ref("l", 1)
	f.acquire(r, "u", 1)
	start := f.clock.now()
	f.clock.add(59 * time.Second)
	f.acquire(r, "u", 1)
	require.WithinDuration(t, start, requireList(t, f.Cache)[0].LastUsed, 0)
	f.clock.add(time.Second)
	f.acquire(r, "u", 1)
	require.WithinDuration(t, f.clock.now(), requireList(t, f.Cache)[0].LastUsed, 0)
	f.clock.add(-24 * time.Hour) // a clock that was wrong does not protect for ever
	f.acquire(r, "u", 1)
	require.WithinDuration(t, f.clock.now(), requireList(t, f.Cache)[0].LastUsed, 0)
	require.NoError(t, os.Remove(filepath.Join(f.path(r), usedName)))
	f.acquire(r, "u", 1)
	require.FileExists(t, filepath.Join(f.path(r), usedName))
}

func TestSize(t *testing.T) {
	f := newFixture(t)
	r := ref("l", 1)
	_, err := f.Acquire(t.Context(), r, "u", Builder{Build: func(_ context.Context, dir string) error {
		name := filepath.Join(dir, "file")
		return errors.Join(os.WriteFile(name, make([]byte, 64<<10), 0o600), os.Link(name, name+".link"),
			os.Symlink("x", name+".symlink"), os.Truncate(name+".link", 1<<30))
	}})
	require.NoError(t, err)
	got := requireList(t, f.Cache)[0].Stats
	// the folder, data, users, users/u, meta.json, used, file, symlink; the
	// rest of the file is a hole
	require.EqualValues(t, 8, got.Inodes)
	require.Greater(t, got.Bytes, int64(64<<10)-1)
	require.Less(t, got.Bytes, int64(256<<10))

	// It is remembered, not computed again.
	require.NoError(t, os.WriteFile(filepath.Join(f.path(r), sizeName), []byte(`{"bytes":7,"inodes":9}`), 0o600))
	require.Equal(t, Stats{Bytes: 7, Inodes: 9}, requireList(t, f.Cache)[0].Stats)
	// Nonsense is not believed.
	require.NoError(t, os.WriteFile(filepath.Join(f.path(r), sizeName), []byte(`{"byt`), 0o600))
	require.Greater(t, requireList(t, f.Cache)[0].Bytes, int64(64<<10)-1)

	// A builder that knows saves the walk.
	b := filesBuilder(1)
	b.Stats = func() Stats { return Stats{Bytes: 123, Inodes: 4} }
	_, err = f.Acquire(t.Context(), ref("m", 1), "u", b)
	require.NoError(t, err)
	require.Equal(t, Stats{Bytes: 123, Inodes: 4}, requireList(t, f.Cache)[1].Stats)
	require.NoFileExists(t, filepath.Join(f.path(ref("m", 1)), sizeName))
}

func TestFolderThatCannotBeWritten(t *testing.T) {
	f := newFixture(t)
	// A file where the folder should be stops root, too.
	require.NoError(t, os.WriteFile(f.Dir(), nil, 0o600))
	_, err := f.Acquire(t.Context(), ref("l", 1), "u", noBuild(t))
	require.ErrorIs(t, err, unix.ENOTDIR)
	require.ErrorContains(t, err, f.Dir())
}

func TestListIgnoresStrangers(t *testing.T) {
	f := newFixture(t)
	f.acquire(ref("l", 1), "u", 1)
	for _, name := range []string{"file", "l/short", "l/" + strings.Repeat("G", 64), "l/" + strings.Repeat("AB", 32)} {
		require.NoError(t, os.WriteFile(filepath.Join(f.Dir(), name), nil, 0o600))
	}
	require.Len(t, requireList(t, f.Cache), 1)
	_, err := f.Trim(t.Context(), TrimOptions{MaxAge: 1, Force: true})
	require.NoError(t, err)
	require.FileExists(t, filepath.Join(f.Dir(), "file"))
}
