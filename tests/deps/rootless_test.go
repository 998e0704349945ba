package deps_test

import (
	"os"
	"path/filepath"
	"regexp"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// TestRootlessDocumented compares the list of integration tests that make no sense
// for an ordinary user, in docs/rootless.md, with the tests that say so.
func TestRootlessDocumented(t *testing.T) {
	var files []string
	for _, pattern := range []string{"../bats/*.bats", "../bats/shared/*.bats"} {
		found, err := filepath.Glob(pattern)
		require.NoError(t, err)
		files = append(files, found...)
	}
	skips := regexp.MustCompile(`(?m)^@test "(.*)" \{\n\tnot_rootless "(.*)"$`)
	said := map[string]string{}
	calls := 0
	for _, file := range files {
		if st, err := os.Lstat(file); err != nil || st.Mode()&os.ModeSymlink != 0 {
			continue // of a file below shared
		}
		text, err := os.ReadFile(file)
		require.NoError(t, err)
		calls += len(regexp.MustCompile(`(?m)^\s*not_rootless "`).FindAll(text, -1))
		for _, m := range skips.FindAllSubmatch(text, -1) {
			said[string(m[1])] = string(m[2])
		}
	}
	assert.Len(t, said, calls, "not_rootless is the first line of a test")
	page, err := os.ReadFile("../../docs/rootless.md")
	require.NoError(t, err)
	listed := map[string]string{}
	for _, m := range regexp.MustCompile(`(?m)^\| [0-9a-z]+: (.*) \| (.*) \|$`).FindAllSubmatch(page, -1) {
		listed[string(m[1])] = string(m[2])
	}
	assert.Equal(t, said, listed)
	assert.NotEmpty(t, listed)
}
