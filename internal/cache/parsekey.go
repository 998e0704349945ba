package cache

import "fmt"

// ParseKey reads a key as Key.String writes it.
func ParseKey(s string) (Key, error) {
	k, ok := parseKey(s)
	if !ok {
		return Key{}, fmt.Errorf("parse key %q: not %d hexadecimal digits", s, 2*len(k))
	}
	return k, nil
}
