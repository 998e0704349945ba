package shiftoverlay

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// Messages that the documentation explains are those that the code has.
func TestTroubleshooting(t *testing.T) {
	var source strings.Builder
	for _, dir := range []string{"drivers", "internal", "pkg", "cmd"} {
		require.NoError(t, filepath.WalkDir(filepath.Join("..", "..", dir), func(p string, _ fs.DirEntry, err error) error {
			if err != nil || !strings.HasSuffix(p, ".go") || strings.HasSuffix(p, "_test.go") {
				return err
			}
			b, err := os.ReadFile(p)
			source.Write(b)
			return err
		}))
	}
	code := strings.ReplaceAll(source.String(), `\"`, `"`)
	code = strings.NewReplacer(`engine = %q`, `engine = "auto"`, `unmapped = %q`, `unmapped = "overflow"`).Replace(code)
	page, err := os.ReadFile(filepath.Join("..", "..", "docs", "troubleshooting.md"))
	require.NoError(t, err)
	messages := regexp.MustCompile("(?m)^### `(.*)`$").FindAllStringSubmatch(string(page), -1)
	assert.Greater(t, len(messages), 10)
	for _, m := range messages {
		for part := range strings.SplitSeq(m[1], "…") {
			assert.Contains(t, code, part, "message %q", m[1])
		}
	}
}
