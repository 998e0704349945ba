package config

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/BurntSushi/toml"
	"github.com/docker/go-units"
)

// Config is what shiftoverlay.conf says. It is a plain value.
type Config struct {
	// Engine is the engine to use, one of Engines; "auto" means the cheapest
	// one that works.
	Engine string
	// Unmapped says what happens to IDs outside the mapping, one of
	// UnmappedPolicies.
	Unmapped string
	// CacheMaxSize bounds the allocated bytes of all cache entries. 0: no
	// bound.
	CacheMaxSize int64
	// CacheMaxAge is how long a cache entry may go unused. 0: for ever.
	CacheMaxAge time.Duration
	// ErofsWithout lists ways that the engine erofs is not to use, of
	// ErofsWays.
	ErofsWithout []string
	// Workers is the number of threads of a build. 0: as many as there are
	// processors.
	Workers int
	// BackgroundAfter is how long a mount may hold the locks of the storage
	// library while something is made for it. 0: as long as it takes.
	BackgroundAfter time.Duration
}

// maxWorkers bounds Workers; each is an operating system thread.
const maxWorkers = 1024

// Default returns what holds without a file.
func Default() Config {
	return Config{Engine: "auto", Unmapped: "overflow", CacheMaxSize: 10 << 30, CacheMaxAge: 720 * time.Hour}
}

// Engines returns the values that the key engine may have.
func Engines() []string { return []string{"auto", "idmap", "erofs", "metacopy", "copyup"} }

// UnmappedPolicies returns the values that the key unmapped may have.
func UnmappedPolicies() []string { return []string{"overflow", "refuse"} }

// ErofsWays returns the values that the key erofs_without may list: what the
// engine erofs uses where it works, and can do without.
func ErofsWays() []string { return []string{"data-only", "file", "idmap"} }

// ErrInvalid is reached by every error about the content of a file or the
// value of an option.
var ErrInvalid = errors.New("invalid configuration")

// ValueError is a key or a value that is not allowed. It is ErrInvalid.
type ValueError struct {
	// Key is the key as it was written.
	Key string
	// Value is the value as it was written; empty if the key is unknown.
	Value string
	// Allowed says what would have been right.
	Allowed string
	// UnknownKey says that it is the key that is not allowed.
	UnknownKey bool
}

// Error implements error.
func (e *ValueError) Error() string {
	if e.UnknownKey {
		return fmt.Sprintf("unknown key %q (allowed: %s)", e.Key, e.Allowed)
	}
	return fmt.Sprintf("%s = %q is not allowed (allowed: %s)", e.Key, e.Value, e.Allowed)
}

// Is reports whether target is ErrInvalid.
func (e *ValueError) Is(target error) bool { return target == ErrInvalid }

// table is the name of the one table.
const table = "shiftoverlay"

// setters holds what the keys of the table do with a value in the form of
// text. Integers of the file arrive as decimal numbers.
func setters() map[string]func(c *Config, value string) error {
	return map[string]func(*Config, string) error{
		"engine": func(c *Config, v string) error {
			return oneOf("engine", v, Engines(), &c.Engine)
		},
		"unmapped": func(c *Config, v string) error {
			return oneOf("unmapped", v, UnmappedPolicies(), &c.Unmapped)
		},
		"cache_max_size": func(c *Config, v string) error {
			size, ok := parseSize(v)
			if !ok {
				return &ValueError{Key: "cache_max_size", Value: v, Allowed: `a size such as "512m" or "10g"; "0" for no bound`}
			}
			c.CacheMaxSize = size
			return nil
		},
		"cache_max_age": func(c *Config, v string) error {
			age, err := time.ParseDuration(v)
			if err != nil || age < 0 {
				return &ValueError{Key: "cache_max_age", Value: v, Allowed: `a duration such as "90m" or "720h"; "0" for ever`}
			}
			c.CacheMaxAge = age
			return nil
		},
		"background_after": func(c *Config, v string) error {
			after, err := time.ParseDuration(v)
			if err != nil || after < 0 {
				return &ValueError{Key: "background_after", Value: v, Allowed: `a duration such as "200ms" or "2s"; "0" for never`}
			}
			c.BackgroundAfter = after
			return nil
		},
		"erofs_without": func(c *Config, v string) error {
			// In a mount option, where a comma ends the value, with colons.
			ways := strings.FieldsFunc(v, func(r rune) bool { return strings.ContainsRune(", :", r) })
			for i := range ways {
				if err := oneOf("erofs_without", ways[i], ErofsWays(), &ways[i]); err != nil {
					return err
				}
			}
			c.ErofsWithout = ways
			return nil
		},
		"workers": func(c *Config, v string) error {
			n, err := strconv.Atoi(v)
			if err != nil || n < 0 || n > maxWorkers {
				return &ValueError{Key: "workers", Value: v, Allowed: fmt.Sprintf("a whole number from 0 to %d; 0 for as many as processors", maxWorkers)}
			}
			c.Workers = n
			return nil
		},
	}
}

// oneOf sets a key that has a list of values.
func oneOf(key, value string, allowed []string, dst *string) error {
	if !slices.Contains(allowed, value) {
		return &ValueError{Key: key, Value: value, Allowed: strings.Join(allowed, ", ")}
	}
	*dst = value
	return nil
}

// parseSize reads a size in bytes; units are powers of 1024
// (units.RAMInBytes).
func parseSize(text string) (int64, bool) {
	// RAMInBytes goes through float64 and converts what does not fit, or is
	// not finite, to whatever the processor makes of it.
	if strings.ContainsFunc(text, func(r rune) bool { return !strings.ContainsRune("0123456789. kKmMgGtTpPiIbB", r) }) {
		return 0, false
	}
	size, err := units.RAMInBytes(text)
	if err != nil || size < 0 || size == math.MaxInt64 {
		return 0, false
	}
	return size, true
}

// Parse returns base, changed by the text of a file. Errors are ErrInvalid
// and do not name the file, which Load does.
func Parse(base Config, text string) (Config, error) {
	var doc map[string]any
	if _, err := toml.Decode(text, &doc); err != nil {
		if parse, ok := errors.AsType[toml.ParseError](err); ok {
			return Config{}, fmt.Errorf("%w: line %d: %s", ErrInvalid, parse.Position.Line, parse.Message)
		}
		return Config{}, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	for _, key := range slices.Sorted(maps.Keys(doc)) {
		if key != table {
			return Config{}, &ValueError{Key: key, UnknownKey: true, Allowed: "the table [" + table + "]"}
		}
	}
	if _, there := doc[table]; !there {
		return base, nil
	}
	values, ok := doc[table].(map[string]any)
	if !ok {
		return Config{}, &ValueError{Key: table, Value: fmt.Sprint(doc[table]), Allowed: "the table [" + table + "]"}
	}
	set := setters()
	for _, key := range slices.Sorted(maps.Keys(values)) {
		if set[key] == nil {
			return Config{}, &ValueError{Key: key, UnknownKey: true, Allowed: allKeys(set)}
		}
		if err := setValue(&base, set[key], key, values[key]); err != nil {
			return Config{}, err
		}
	}
	return base, nil
}

// setValue sets a key to a value of TOML, whose type must be the key's.
func setValue(c *Config, set func(*Config, string) error, key string, value any) error {
	switch v := value.(type) {
	case string:
		if key != "workers" {
			return set(c, v)
		}
		return &ValueError{Key: key, Value: v, Allowed: "a whole number, without quotation marks"}
	case int64:
		if key == "workers" {
			return set(c, strconv.FormatInt(v, 10))
		}
		return &ValueError{Key: key, Value: strconv.FormatInt(v, 10), Allowed: "text in quotation marks"}
	default:
		if key == "workers" {
			return &ValueError{Key: key, Value: fmt.Sprint(v), Allowed: "a whole number"}
		}
		return &ValueError{Key: key, Value: fmt.Sprint(v), Allowed: "text in quotation marks"}
	}
}

// Apply changes c as a mount option x-shiftoverlay.KEY=VALUE asks for. Only
// what concerns a single mount can be changed, which is all but the cache.
// After an error c is as before.
func (c *Config) Apply(key, value string) error {
	set := setters()
	maps.DeleteFunc(set, func(key string, _ func(*Config, string) error) bool { return strings.HasPrefix(key, "cache_") })
	if set[key] == nil {
		return &ValueError{Key: key, UnknownKey: true, Allowed: allKeys(set)}
	}
	return set[key](c, value)
}

func allKeys(set map[string]func(*Config, string) error) string {
	return strings.Join(slices.Sorted(maps.Keys(set)), ", ")
}
