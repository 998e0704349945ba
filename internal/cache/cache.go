package cache

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"
)

// Key names the content of an entry: a hash of everything that the content
// depends on.
type Key [sha256.Size]byte

// String returns the key in lower-case hexadecimal.
func (k Key) String() string { return hex.EncodeToString(k[:]) }

// parseKey is the inverse of Key.String and accepts nothing else.
func parseKey(s string) (Key, bool) {
	var k Key
	if len(s) != hex.EncodedLen(len(k)) || strings.ToLower(s) != s {
		return Key{}, false
	}
	if _, err := hex.Decode(k[:], []byte(s)); err != nil {
		return Key{}, false
	}
	return k, true
}

// Ref names an entry. Layer is the ID of the uppermost layer of the chain
// that the entry was made from; it groups entries, see StageLayerRemoval.
type Ref struct {
	Layer string
	Key   Key
}

// String returns "layer/key", the path of the entry below the cache's folder.
func (r Ref) String() string { return r.Layer + "/" + r.Key.String() }

// Options are what Open can be told. The zero value is right for everything
// but tests.
type Options struct {
	// BootID identifies the time between two starts of the kernel. Empty: that
	// of /proc/sys/kernel/random/boot_id (random(4)).
	BootID string
	// Now is the clock. Nil: time.Now.
	Now func() time.Time
	// Logf receives debug messages: why there was a miss, what was cleaned up.
	// It is called by several goroutines at once. Nil: they are dropped.
	Logf func(format string, args ...any)
	// MaxBuilds bounds the builds that run at the same time, over all
	// processes that use this folder. 0: as many as there are processors.
	MaxBuilds int
	// RecycleAfter is how long an entry must have gone unused before another
	// may be made out of it, see Builder.Recycle: a mapping that is used again
	// soon keeps its entry. 0: ten minutes.
	RecycleAfter time.Duration
}

// Cache is a folder of entries. Its methods are safe for concurrent use by
// goroutines and processes. It holds no open file and need not be closed.
type Cache struct {
	dir          string
	bootID       string
	now          func() time.Time
	logf         func(format string, args ...any)
	maxBuilds    int
	recycleAfter time.Duration
}

// Builder makes what an entry holds.
type Builder struct {
	// Meta is kept with the entry and given back by Entry.Meta and List. It
	// must be valid JSON or empty.
	Meta json.RawMessage
	// Build fills dir, which exists, is empty and has mode 0700. It may change
	// owner and mode of dir. An error or a panic leaves nothing behind. It may
	// call Acquire for another key with the context it is given. Nil: Acquire
	// returns a *MissError instead of building.
	Build func(ctx context.Context, dir string) error
	// Resume, if not nil, goes on with what Build or Resume has left in dir whose
	// process died, in this boot and with the same State. It is called in Build's
	// place, which is called after all, for an empty folder, if Resume fails and
	// the context has not ended.
	Resume func(ctx context.Context, dir string) error
	// State must be there if Resume is. What it returns is equal for two builds of
	// a key if one can go on where the other ended: it names what the key does
	// not, such as inodes that were read. It is called for builds only; after an
	// error nobody goes on.
	State func() (string, error)
	// Stats, if not nil, is called after Build and saves the walk with which
	// List would otherwise find out how large the entry is.
	Stats func() Stats
	// Disposable says that the entry is made again in no time. Where the cache
	// is too large, such entries go before others do. Nobody need make them
	// durable.
	Disposable bool
	// Kin is equal for two entries of a layer if Recycle can make one out of
	// the other. It is kept with the entry. Empty: the entry is made from
	// nothing, and nothing is made out of it.
	Kin string
	// Recycle, if not nil, turns dir, which holds what Build or Recycle of an
	// entry of the same Kin left there, into what Build would make. It is
	// called in Build's place if there is an entry of the same layer and Kin
	// that can be trusted, has no user, and has not been used for
	// Options.RecycleAfter; of several, the one that was used least recently
	// ceases to exist. Build is called after all, for an empty folder, if
	// Recycle fails and the context has not ended.
	Recycle func(ctx context.Context, dir string) error
}

// Stats is the size of an entry: allocated bytes (st_blocks in units of 512,
// stat(2)) and inodes, an inode with several links counted once. Blocks that
// the file system shares between inodes (reflinks, extended attributes of
// ext4) are counted for each of them, as du(1) does.
type Stats struct {
	Bytes  int64 `json:"bytes"`
	Inodes int64 `json:"inodes"`
}

const (
	tmpName   = "tmp"
	locksName = "locks"
)

// bootIDFile is documented in random(4).
const bootIDFile = "/proc/sys/kernel/random/boot_id"

// Open returns the cache in folder dir, which must be on the file system that
// the entries shall live on. Nothing is created until the first build, and
// nothing is read but the boot ID.
func Open(dir string, o Options) (*Cache, error) {
	if !filepath.IsAbs(dir) {
		return nil, fmt.Errorf("open cache %q: the path must be absolute: %w", dir, os.ErrInvalid)
	}
	if o.BootID == "" {
		id, err := os.ReadFile(bootIDFile)
		if err != nil {
			return nil, fmt.Errorf("open cache %q: read boot ID (is /proc mounted?): %w", dir, err)
		}
		o.BootID = strings.TrimSpace(string(id))
	}
	if o.BootID == "" {
		return nil, fmt.Errorf("open cache %q: %s is empty: %w", dir, bootIDFile, os.ErrInvalid)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Logf == nil {
		o.Logf = func(string, ...any) {}
	}
	if o.MaxBuilds < 0 {
		return nil, fmt.Errorf("open cache %q: MaxBuilds is %d, must not be negative: %w", dir, o.MaxBuilds, os.ErrInvalid)
	}
	if o.MaxBuilds == 0 {
		o.MaxBuilds = runtime.NumCPU()
	}
	if o.RecycleAfter < 0 {
		return nil, fmt.Errorf("open cache %q: RecycleAfter is %s, must not be negative: %w", dir, o.RecycleAfter, os.ErrInvalid)
	}
	if o.RecycleAfter == 0 {
		o.RecycleAfter = recycleAfter
	}
	return &Cache{
		dir: filepath.Clean(dir), bootID: o.BootID, now: o.Now, logf: o.Logf,
		maxBuilds: o.MaxBuilds, recycleAfter: o.RecycleAfter,
	}, nil
}

// Dir returns the folder that the cache lives in.
func (c *Cache) Dir() string { return c.dir }

// Acquire returns the entry of ref, registered for user, and builds it with b
// if it is not there or cannot be trusted. Acquiring twice for the same user
// registers once.
//
// One caller per key builds, over all processes; the others wait and take
// over if the builder dies or fails. Waiting and building end with ctx; the
// error then is that of ctx, wrapped, and nothing is left behind. Other
// errors of Build come back wrapped, too, to the caller whose Build it was.
func (c *Cache) Acquire(ctx context.Context, ref Ref, user string, b Builder) (*Entry, error) {
	if err := errors.Join(checkLayer(ref.Layer), checkUser(user)); err != nil {
		return nil, fmt.Errorf("acquire cache entry %s: %w", ref, err)
	}
	e, err := c.lookup(ctx, ref, user)
	if err == nil {
		return e, nil
	}
	var miss *MissError
	if errors.As(err, &miss) && b.Build != nil {
		c.logf("cache: %v", miss)
		e, err = c.acquireSlow(ctx, ref, user, b)
	}
	if err != nil {
		return nil, fmt.Errorf("acquire cache entry %s: %w", ref, err)
	}
	return e, nil
}

// Release says that user no longer needs the entry of ref. It is idempotent:
// neither the user nor the entry need exist. The entry stays until it is
// trimmed or recycled.
func (c *Cache) Release(ref Ref, user string) error {
	err := errors.Join(checkLayer(ref.Layer), checkUser(user))
	if err == nil {
		err = c.release(c.path(ref), user)
	}
	if err != nil && !absent(err) {
		return fmt.Errorf("release cache entry %s of user %q: %w", ref, user, err)
	}
	return nil
}

// path is the folder of an entry.
func (c *Cache) path(ref Ref) string { return filepath.Join(c.dir, ref.Layer, ref.Key.String()) }

func checkLayer(layer string) error {
	if layer == tmpName || layer == locksName {
		return fmt.Errorf("layer %q: the name is reserved: %w", layer, os.ErrInvalid)
	}
	return checkName("layer", layer)
}

func checkUser(user string) error { return checkName("user", user) }

// checkName refuses what is not one name of a file (path_resolution(7)).
func checkName(what, name string) error {
	if name == "" || name == "." || name == ".." || len(name) > 255 || strings.ContainsAny(name, "/\x00") {
		return fmt.Errorf("%s %q: not the name of a file: %w", what, name, os.ErrInvalid)
	}
	return nil
}
