package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/docker/go-units"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/shiftoverlay/shiftoverlay/internal/shifter"
)

// mappingSize is the size of a user namespace that holds all IDs of usual
// images.
const mappingSize = 65536

// info is the output of info. Its field names are stable.
type info struct {
	Kernel  string
	Engines []engineInfo
	Store   storeInfo
	Cache   cacheInfo
	UserNS  usernsInfo
}

type engineInfo struct {
	Name   string
	Works  bool
	InUse  bool
	Reason string // why it is (not) in use
	Remedy string `json:",omitempty"`
}

type storeInfo struct {
	GraphRoot, RunRoot, GraphDriver, FileSystem, ConfigFile string
	FreeBytes, FreeInodes                                   uint64
	Containers, Images                                      int
}

type cacheInfo struct {
	Path    string
	Entries int
	InUse   int // entries that containers need
	Size    int64
	Inodes  int64
	MaxSize int64         // 0: no bound
	MaxAge  time.Duration // 0: for ever
}

type usernsInfo struct {
	User       string
	UIDs, GIDs []string `json:",omitempty"` // START:SIZE
	Containers int      // that have a user namespace
	Left       uint64   // mappings of 65536 IDs
	Problem    string   `json:",omitempty"`
}

func newInfoCommand(a *app) *cobra.Command {
	var format string
	cmd := &cobra.Command{
		Use:                   "info [options]",
		DisableFlagsInUseLine: true,
		Short:                 "Show what this machine can do, the store and its cache",
		Long: "Show which engines work on this machine, which one is in use and what would help a cheaper one; the\n" +
			"store; the cache of shifted lowers and its limits; and how many user namespaces are left for\npodman run --userns=auto.",
		Example:           "  shiftoverlay info\n  shiftoverlay info --format '{{.Cache.Size}}'",
		Args:              cobra.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              func(cmd *cobra.Command, _ []string) error { return a.info(cmd.Context(), format) },
	}
	cmd.Flags().StringVarP(&format, "format", "f", "", "print as json or through a Go `template`")
	return cmd
}

func (a *app) info(ctx context.Context, format string) error {
	if err := a.open(); err != nil {
		return err
	}
	i, err := a.collect(ctx)
	if err != nil {
		return err
	}
	switch format {
	case "":
		return i.write(a.stdout)
	case formatJSON:
		return writeJSON(a.stdout, i)
	}
	return writeRows(a.stdout, format, nil, true, []*info{i})
}

// collect finds everything out.
func (a *app) collect(ctx context.Context) (*info, error) {
	i := &info{}
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return nil, fmt.Errorf("find out the kernel's version: %w", err)
	}
	i.Kernel = unix.ByteSliceToString(uts.Release[:])
	_, reason := a.m.Engine()
	for _, e := range a.m.Engines() {
		i.Engines = append(i.Engines, describe(e, reason))
	}
	i.Store = storeInfo{GraphRoot: a.store.GraphRoot(), RunRoot: a.store.RunRoot(), GraphDriver: a.store.GraphDriverName(), ConfigFile: confFile()}
	rows, err := a.store.Status()
	if err != nil {
		return nil, fmt.Errorf("read status of the driver: %w", err)
	}
	for _, row := range rows {
		if row[0] == "Backing Filesystem" {
			i.Store.FileSystem = row[1]
		}
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(i.Store.GraphRoot, &fs); err != nil {
		return nil, fmt.Errorf("statfs %s: %w", i.Store.GraphRoot, err)
	}
	i.Store.FreeBytes, i.Store.FreeInodes = fs.Bavail*uint64(fs.Bsize), fs.Ffree //nolint:gosec // a block size
	n, err := a.names()
	if err != nil {
		return nil, err
	}
	i.Store.Containers, i.Store.Images = len(n.containers), len(n.images)
	list, err := a.m.Entries(ctx)
	if err != nil {
		return nil, err
	}
	i.Cache = cacheInfo{Path: a.m.CacheDir(), Entries: len(list)}
	i.Cache.MaxSize, i.Cache.MaxAge = a.m.Limits()
	for _, e := range list {
		i.Cache.Size += e.Bytes
		i.Cache.Inodes += e.Inodes
		if len(e.Users) > 0 {
			i.Cache.InUse++
		}
	}
	i.UserNS = usernsInfo{User: a.autoUser()}
	p, err := a.pool()
	if err != nil {
		i.UserNS.Problem = err.Error()
		return i, nil //nolint:nilerr // it is shown
	}
	i.UserNS.UIDs, i.UserNS.GIDs, i.UserNS.Containers, i.UserNS.Left = p.uids.texts(), p.gids.texts(), p.containers, p.left(mappingSize)
	if i.UserNS.Left == 0 {
		_, err := p.next(mappingSize)
		i.UserNS.Problem = err.Error()
	}
	return i, nil
}

// texts are the ranges as /etc/subuid has them.
func (s idRanges) texts() []string {
	out := make([]string, len(s))
	for i, r := range s {
		out[i] = fmt.Sprintf("%d:%d", r.Start, r.End-r.Start)
	}
	return out
}

// describe puts an engine in words.
func describe(e shifter.EngineState, reason string) engineInfo {
	i := engineInfo{Name: e.Name, Works: e.Refused == "", InUse: e.Chosen}
	switch {
	case i.InUse:
		i.Reason = "in use: " + reason
	case e.Refused != "":
		i.Reason = "does not work here: " + e.Refused
		i.Remedy = remedy(e.Name, e.Refused)
	case e.Avoided != "":
		i.Reason = "works, but is passed over: " + e.Avoided
		i.Remedy = "Linux 6.2 or later; if no image has POSIX ACLs: engine = \"" + e.Name + "\" in shiftoverlay.conf"
	default:
		i.Reason = "works; not needed, or not asked for in shiftoverlay.conf"
	}
	return i
}

// remedy says what would make an engine work.
func remedy(engine, reason string) string {
	for _, r := range []struct{ part, remedy string }{
		{"to root only", "rootful podman"},
		{"only root", "rootful podman"},
		{"_CONTAINERS_OVERLAY_DISABLE_IDMAP", "take the variable _CONTAINERS_OVERLAY_DISABLE_IDMAP out of the environment"},
		{`unmapped = "refuse"`, `unmapped = "overflow" in shiftoverlay.conf`},
		{"erofs_without", "take it out of erofs_without in shiftoverlay.conf"},
		{"userxattr", "Linux 6.16 or later"},
		{"attributes user.*", "a graphroot on a file system with user.* attributes, such as ext4, xfs or btrfs"},
		{"mountopt in storage.conf", "take that option out of mountopt in storage.conf"},
	} {
		if strings.Contains(reason, r.part) {
			return r.remedy
		}
	}
	return map[string]string{
		"idmap":    "Linux 5.19 or later (6.2 for images with POSIX ACLs), and a graphroot on a file system with idmapped mounts, such as ext4, xfs or btrfs",
		"erofs":    "EROFS in the kernel (modprobe erofs; CONFIG_EROFS_FS), Linux 5.10 or later, and loop devices before 6.12",
		"metacopy": "Linux 4.19 or later, and a graphroot on a file system with trusted.* attributes, such as ext4, xfs or btrfs",
	}[engine]
}

// bound puts a limit in words.
func bound(text string, none bool) string {
	if none {
		return "none"
	}
	return text
}

// write writes it for people.
func (i *info) write(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 2, 1, ' ', 0)
	line := func(key, format string, args ...any) {
		fmt.Fprintf(t, "  %s:\t%s\n", key, fmt.Sprintf(format, args...))
	}
	fmt.Fprintf(t, "engines (kernel %s), cheapest first:\n", i.Kernel)
	for _, e := range i.Engines {
		mark := " "
		if e.InUse {
			mark = "*"
		}
		fmt.Fprintf(t, "%s %s:\t%s\n", mark, e.Name, e.Reason)
		if e.Remedy != "" {
			fmt.Fprintf(t, "  \tremedy: %s\n", e.Remedy)
		}
	}
	fmt.Fprintln(t, "store:")
	line("graph root", "%s (%s, free: %s, %d inodes)", i.Store.GraphRoot, i.Store.FileSystem, units.BytesSize(float64(i.Store.FreeBytes)), i.Store.FreeInodes)
	line("run root", "%s", i.Store.RunRoot)
	line("configuration", "%s", i.Store.ConfigFile)
	line("holds", "%d images, %d containers", i.Store.Images, i.Store.Containers)
	fmt.Fprintln(t, "cache of shifted lowers:")
	line("path", "%s", i.Cache.Path)
	line("entries", "%d, in use by containers: %d", i.Cache.Entries, i.Cache.InUse)
	line("size", "%s, %d inodes", units.BytesSize(float64(i.Cache.Size)), i.Cache.Inodes)
	line("limits", "size %s, unused for %s", bound(units.BytesSize(float64(i.Cache.MaxSize)), i.Cache.MaxSize == 0), bound(i.Cache.MaxAge.String(), i.Cache.MaxAge == 0))
	fmt.Fprintln(t, "automatic user namespaces (--userns=auto):")
	line("user", "%s", i.UserNS.User)
	if len(i.UserNS.UIDs) > 0 {
		line("user IDs", "%s", strings.Join(i.UserNS.UIDs, ", "))
		line("group IDs", "%s", strings.Join(i.UserNS.GIDs, ", "))
		line("in use", "%d containers have a user namespace", i.UserNS.Containers)
		line("left", "%d mappings of %d IDs", i.UserNS.Left, mappingSize)
	}
	if i.UserNS.Problem != "" {
		line("problem", "%s", i.UserNS.Problem)
	}
	return t.Flush()
}
