package erofs

import (
	"bytes"
	"cmp"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/shiftoverlay/shiftoverlay/pkg/idshift"
)

// Names without the beginning that stands for indexTrusted or indexSecurity.
const (
	metacopyName   = "overlay.metacopy"
	redirectName   = "overlay.redirect"
	opaqueName     = "overlay.opaque"
	capabilityName = "capability"
	// droppedName takes the place of a capability that is void under a
	// mapping: as long, and hidden by overlay as one of its own.
	droppedName = "overlay.no"
)

// File capabilities of version 3 (include/uapi/linux/capability.h). Version 2
// is the same without a root user.
const (
	capabilityRevision  = 0xff << 24
	capabilityRevision3 = 3 << 24
	capabilityRoot      = 20 // offset of the root user, and so the length of version 2
	capabilitySize      = 24 // of version 3
)

// splitName returns the number that stands for the beginning of an
// attribute's name, and the rest.
func splitName(name string) (index byte, rest string, ok bool) {
	switch name {
	case idshift.ACLAccess:
		return indexACLAccess, "", true
	case idshift.ACLDefault:
		return indexACLDefault, "", true
	}
	for _, p := range []struct {
		prefix string
		index  byte
	}{{"security.", indexSecurity}, {"user.", indexUser}, {"trusted.", indexTrusted}} {
		if rest, ok = strings.CutPrefix(name, p.prefix); ok && rest != "" {
			return p.index, rest, true
		}
	}
	return 0, "", false
}

// attr is one name and value, whatever the number of inodes that have it.
type attr struct {
	number uint32 // by time of discovery: not the same in every run
	index  byte
	name   string
	value  string
	uses   int // inodes that have it
	// Of a shared attribute: whether it is in the plan, and where.
	listed bool
	at     int64
}

// size is the length of the attribute's entry.
func (a *attr) size() int { return entrySize(len(a.name), len(a.value)) }

func entrySize(name, value int) int { return align(xattrEntrySize+name+value, xattrAlign) }

// holdsIDs tells whether Patch has to look at the attribute.
func (a *attr) holdsIDs() bool {
	return a.index == indexACLAccess || a.index == indexACLDefault || a.index == indexSecurity && a.name == capabilityName
}

// appendEntry appends an attribute's entry, padded.
func appendEntry(b []byte, index byte, name, value string) []byte {
	b = append(b, byte(len(name)), index)
	b = le.AppendUint16(b, uint16(len(value)))
	b = append(b, name...)
	b = append(b, value...)
	for pad := -(xattrEntrySize + len(name) + len(value)) & (xattrAlign - 1); pad > 0; pad-- {
		b = append(b, 0)
	}
	return b
}

// set is the attributes of an inode, besides its redirect.
type set struct {
	attrs []*attr // shared ones first, each part sorted by index and name
	uses  int     // inodes that have it
	// What follows is known when all inodes are.
	shared int // number of shared attributes
	body   int // bytes of the attributes, header included
	filter uint32
	ids    bool // an attribute that is not shared holds IDs
	listed bool // its shared attributes are in the plan
}

// mark is what overlay is told of an inode besides its redirect: the number of
// the set that has nothing else.
type mark uint32

const (
	markNone     mark = iota
	markMetacopy      // of a file: its data is elsewhere
	markOpaque        // of a folder: it has nothing of the lowers below
	marks             // their number
)

// xattrTable holds each attribute and each set of attributes once. Its methods
// are safe for concurrent use until freeze.
type xattrTable struct {
	identity *idshift.Shift // has the rules of which attributes are copied

	mu    sync.Mutex
	attrs map[string]*attr  // by index, name and value
	known map[string]uint32 // numbers of sets, by those of their attributes
	sets  []set
	acl   bool
	// Space that is used again.
	key  []byte
	list []*attr
}

func newXattrTable() (*xattrTable, error) {
	m, err := idshift.ParseMapping("0:0:4294967295", "0:0:4294967295")
	if err != nil {
		return nil, err
	}
	identity, err := idshift.NewShift(m, idshift.Refuse)
	if err != nil {
		return nil, err
	}
	t := &xattrTable{identity: identity, attrs: map[string]*attr{}, known: map[string]uint32{}}
	t.sets = make([]set, marks)
	for m, a := range map[mark]*attr{
		markMetacopy: t.attr(indexTrusted, metacopyName, nil),
		markOpaque:   t.attr(indexTrusted, opaqueName, []byte("y")),
	} {
		a.uses = 2 // not counted: always shared
		t.sets[m].attrs = []*attr{a}
	}
	return t, nil
}

// add returns the number of the set of an inode's attributes with a mark. An
// *UnfitError is without a path.
func (t *xattrTable) add(xattrs []idshift.Xattr, m mark) (uint32, error) {
	if len(xattrs) == 0 {
		return uint32(m), nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.list = append(t.list[:0], t.sets[m].attrs...)
	for _, x := range xattrs {
		value, keep, err := t.identity.Xattr(x.Name, x.Value)
		if err != nil {
			return 0, err
		}
		if !keep {
			continue
		}
		index, name, ok := splitName(x.Name)
		switch {
		case !ok:
			return 0, &UnfitError{Reason: fmt.Sprintf("EROFS has no attributes like %q", x.Name)}
		case len(name) > xattrNameMax:
			return 0, &UnfitError{Reason: fmt.Sprintf("the name of attribute %q is longer than %d bytes", x.Name, xattrNameMax)}
		case len(value) > xattrValueMax:
			return 0, &UnfitError{Reason: fmt.Sprintf("the value of attribute %q has %d bytes, more than %d", x.Name, len(value), xattrValueMax)}
		}
		if x.Name == idshift.Capability {
			value = roomForRoot(value)
		}
		t.list = append(t.list, t.attr(index, name, value))
	}
	return t.set(), nil
}

// attr returns the attribute of that name and value.
func (t *xattrTable) attr(index byte, name string, value []byte) *attr {
	t.key = append(t.key[:0], index)
	t.key = append(t.key, name...)
	t.key = append(t.key, 0)
	t.key = append(t.key, value...)
	if a := t.attrs[string(t.key)]; a != nil {
		return a
	}
	key := string(t.key)
	a := &attr{
		number: uint32(len(t.attrs)), index: index,
		name: key[1 : 1+len(name)], value: key[2+len(name):],
	}
	t.attrs[key] = a
	t.acl = t.acl || index == indexACLAccess || index == indexACLDefault
	return a
}

// set returns the number of the set of the attributes in t.list.
func (t *xattrTable) set() uint32 {
	slices.SortFunc(t.list, func(a, b *attr) int {
		return cmp.Or(cmp.Compare(a.index, b.index), strings.Compare(a.name, b.name))
	})
	t.key = t.key[:0]
	for _, a := range t.list {
		t.key = le.AppendUint32(t.key, a.number)
	}
	if len(t.list) == 0 {
		return uint32(markNone)
	}
	if n, ok := t.known[string(t.key)]; ok {
		return n
	}
	n := uint32(len(t.sets))
	t.known[string(t.key)] = n
	t.sets = append(t.sets, set{attrs: slices.Clone(t.list)})
	return n
}

// use notes that n more inodes have a set.
func (t *xattrTable) use(number uint32, n int) {
	if n == 0 {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.sets[number].uses += n
}

// freeze decides which attributes are shared, and so how long those of each
// inode are.
func (t *xattrTable) freeze(layout Layout) {
	for i := range t.sets {
		s := &t.sets[i]
		for _, a := range s.attrs {
			a.uses += s.uses
		}
	}
	for i := range t.sets {
		if s := &t.sets[i]; len(s.attrs) > 0 {
			s.freeze(layout)
		}
	}
}

func (s *set) freeze(layout Layout) {
	var shared, own []*attr
	for _, a := range s.attrs {
		if a.uses > 1 && len(shared) < xattrSharedMax {
			shared = append(shared, a)
		} else {
			own = append(own, a)
		}
	}
	s.attrs, s.shared = append(shared, own...), len(shared)
	s.body = xattrHeaderSize + xattrShared*s.shared
	for _, a := range own {
		s.body += a.size()
		s.ids = s.ids || a.holdsIDs()
	}
	if layout != DataOnly {
		return
	}
	s.filter = 1<<32 - 1
	for _, a := range s.attrs {
		s.filter &^= filterBit(a.index, a.name)
	}
}

// roomForRoot returns a file capability with a root user, who is 0 if there
// was none.
func roomForRoot(value []byte) []byte {
	if len(value) != capabilityRoot {
		return value
	}
	out := make([]byte, capabilitySize)
	copy(out, value)
	le.PutUint32(out, le.Uint32(value)&^capabilityRevision|capabilityRevision3)
	return out
}

// sameXattrs tells whether two inodes have the same attributes in the same
// order.
func sameXattrs(a, b []idshift.Xattr) bool {
	return slices.EqualFunc(a, b, func(a, b idshift.Xattr) bool {
		return a.Name == b.Name && bytes.Equal(a.Value, b.Value)
	})
}
