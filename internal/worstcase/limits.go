package worstcase

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strings"

	"golang.org/x/sys/unix"
)

// limits are what a file system can hold at most, found out by trying.
type limits struct {
	// value is the size of the largest value of an attribute, up to what EROFS
	// can hold, and rest that of another one beside it; -1 if there is no room.
	value, rest int
}

// maxValue is the largest value that an EROFS image can hold, one byte less
// than the kernel allows (XATTR_SIZE_MAX in include/uapi/linux/limits.h).
const maxValue = 1<<16 - 1

// Names of the attributes that fill a file system's room for them.
const (
	bigName  = "user.big"
	restName = "user.rest"
)

// findLimits tries in a folder.
func findLimits(folder string) (l limits, err error) {
	dir, err := os.MkdirTemp(folder, ".try-")
	if err != nil {
		return l, fmt.Errorf("find limits: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("x"), 0o600); err != nil {
		return l, fmt.Errorf("find limits: %w", err)
	}
	largest := func(name string) int {
		return sort.Search(maxValue+1, func(n int) bool {
			if unix.Lsetxattr(file, name, []byte(strings.Repeat("v", n)), 0) != nil {
				return true
			}
			return unix.Lremovexattr(file, name) != nil
		}) - 1
	}
	if l.value = largest(bigName); l.value < 0 {
		return limits{-1, -1}, nil
	}
	if err := unix.Lsetxattr(file, bigName, []byte(strings.Repeat("v", l.value)), 0); err != nil {
		return l, fmt.Errorf("find limits: %w", err)
	}
	l.rest = largest(restName)
	return l, nil
}
