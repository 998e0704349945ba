package probe

import (
	"encoding/json"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/shiftoverlay/shiftoverlay/internal/testutil"
)

// FuzzRemembered checks that a remembered report is believed only if it says
// that it is of this boot, kernel and file system.
func FuzzRemembered(f *testing.F) {
	testutil.RequireRoot(f)
	dir := f.TempDir()
	want, err := identity(dir)
	require.NoError(f, err)
	whole, err := json.Marshal(want)
	require.NoError(f, err)
	f.Add(whole)
	f.Add(whole[:len(whole)-2])
	f.Add([]byte(`{"version":1}`))
	f.Add([]byte(`null`))
	f.Fuzz(func(t *testing.T, text []byte) {
		r, ok := recall(want, text)
		if !ok {
			return
		}
		require.Equal(t, [4]any{want.Version, want.BootID, want.Kernel, want.Dev}, [4]any{r.Version, r.BootID, r.Kernel, r.Dev})
	})
}
