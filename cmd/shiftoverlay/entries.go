package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/docker/go-units"

	"github.com/shiftoverlay/shiftoverlay/drivers/shiftoverlay"
	"github.com/shiftoverlay/shiftoverlay/pkg/idshift"
)

// container is a container that uses an entry. Its field names are stable.
type container struct {
	ID   string
	Name string
}

// entry is a shifted lower as ls and inspect show it. Its field names are
// stable.
type entry struct {
	ID         string
	Layer      string
	Images     []string
	Engine     string
	Mapping    *mappingText // nil for what serves all mappings
	Size       int64
	Inodes     int64
	Created    time.Time
	LastUsed   time.Time
	Containers []container
	OtherUsers []string `json:",omitempty"`
	Durable    bool
	Disposable bool
	Unusable   string `json:",omitempty"`
	Layers     []string
	Path       string
}

// mappingText is a mapping as podman's --uidmap has it.
type mappingText struct {
	UIDMap, GIDMap []string
}

func textOf(m idshift.Mapping) *mappingText {
	return &mappingText{UIDMap: strings.Split(m.UIDs.String(), ","), GIDMap: strings.Split(m.GIDs.String(), ",")}
}

// String is the mapping in one word where users and groups have the same.
func (m *mappingText) String() string {
	if m == nil {
		return "all"
	}
	uids, gids := strings.Join(m.UIDMap, ","), strings.Join(m.GIDMap, ",")
	if uids == gids {
		return uids
	}
	return "uids=" + uids + " gids=" + gids
}

// MappingText is the mapping for people.
func (e *entry) MappingText() string { return e.Mapping.String() }

// Image is the image for people.
func (e *entry) Image() string {
	if len(e.Images) == 0 {
		return "<none>"
	}
	return e.Images[0]
}

// users are the names of who uses the entry, for people.
func (e *entry) users() string {
	var out []string
	for _, c := range e.Containers {
		out = append(out, c.Name)
	}
	for _, u := range e.OtherUsers {
		out = append(out, "<"+short(u)+">")
	}
	return strings.Join(out, ",")
}

// entries lists the cache with the names of things. With an error, those that
// could be read are returned all the same.
func (a *app) entries(ctx context.Context) ([]*entry, error) {
	n, err := a.names()
	if err != nil {
		return nil, err
	}
	list, err := a.m.Entries(ctx)
	out := make([]*entry, len(list))
	for i, e := range list {
		out[i] = n.entry(e)
	}
	return out, err
}

// entry adds names.
func (n *names) entry(e shiftoverlay.Entry) *entry {
	out := &entry{
		ID: e.Key.String(), Layer: e.Layer, Images: n.images[e.Layer], Engine: e.Engine, Size: e.Bytes, Inodes: e.Inodes,
		Created: e.Built, LastUsed: e.LastUsed, Durable: e.Durable, Disposable: e.Disposable, Unusable: string(e.Unusable),
		Layers: e.Layers, Path: e.Path, Containers: []container{},
	}
	if out.Images == nil {
		out.Images = []string{} // JSON has a list, not null
	}
	if e.Mapping != nil {
		out.Mapping = textOf(*e.Mapping)
	}
	for _, user := range e.Users {
		if c, ok := n.containers[user]; ok {
			out.Containers = append(out.Containers, container{ID: c.ID, Name: nameOf(c)})
		} else {
			out.OtherUsers = append(out.OtherUsers, user)
		}
	}
	return out
}

// sortKeys are the values of --sort.
func sortKeys() []string {
	return []string{"image", "used", "created", "size", "inodes", "engine", "id"}
}

// sortEntries sorts as --sort says: what is large or was used last comes first.
func sortEntries(list []*entry, key string) error {
	compare := map[string]func(a, b *entry) int{
		"image":   func(a, b *entry) int { return strings.Compare(a.Image(), b.Image()) },
		"used":    func(a, b *entry) int { return b.LastUsed.Compare(a.LastUsed) },
		"created": func(a, b *entry) int { return b.Created.Compare(a.Created) },
		"size":    func(a, b *entry) int { return int(max(min(b.Size-a.Size, 1), -1)) },
		"inodes":  func(a, b *entry) int { return int(max(min(b.Inodes-a.Inodes, 1), -1)) },
		"engine":  func(a, b *entry) int { return strings.Compare(a.Engine, b.Engine) },
		"id":      func(a, b *entry) int { return strings.Compare(a.ID, b.ID) },
	}[key]
	if compare == nil {
		return fmt.Errorf("unknown value %q of --sort: use one of %s", key, strings.Join(sortKeys(), ", "))
	}
	slices.SortStableFunc(list, compare)
	return nil
}

// row is an entry in the table of ls.
type row struct {
	ID, Image, Layer, Mapping, Engine, Size, Inodes, LastUsed, Created, Containers, Durable string
}

// headings are the heading of the table.
func headings() map[string]string {
	return map[string]string{
		"ID": "ID", "Image": "IMAGE", "Layer": "LAYER", "Mapping": "MAPPING", "Engine": "ENGINE", "Size": "SIZE", "Inodes": "INODES",
		"LastUsed": "LAST USED", "Created": "CREATED", "Containers": "CONTAINERS", "Durable": "DURABLE",
	}
}

// row puts an entry in words.
func (e *entry) row(whole bool) row {
	ago := func(t time.Time) string {
		if t.IsZero() {
			return "unknown"
		}
		return units.HumanDuration(time.Since(t)) + " ago"
	}
	cut := short
	if whole {
		cut = func(s string) string { return s }
	}
	r := row{
		ID: cut(e.ID), Image: e.Image(), Layer: cut(e.Layer), Mapping: e.MappingText(), Engine: e.Engine,
		Size: units.BytesSize(float64(e.Size)), Inodes: fmt.Sprint(e.Inodes), LastUsed: ago(e.LastUsed), Created: ago(e.Created),
		Containers: e.users(), Durable: fmt.Sprint(e.Durable),
	}
	if whole {
		r.Image = strings.Join(e.Images, ",")
		if r.Image == "" {
			r.Image = "<none>"
		}
	}
	if e.Engine == "" {
		r.Engine = "<unknown>"
	}
	return r
}
