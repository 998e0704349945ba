package main

import (
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// overlay is the driver that the others are compared with.
const overlay = "overlay"

// drivers are the columns: overlay, and shiftoverlay with each engine.
var drivers = []string{overlay, "auto", "idmap", "erofs", "metacopy", "copyup"}

// suites are the sections. A file of graphtest is a file system.
var suites = []struct{ name, title string }{
	{"storage", "containers/storage, `tests/*.bats`"},
	{"graphtest", "containers/storage, `drivers/graphtest`"},
	{"podman", "podman, `test/system`"},
	{"buildah", "buildah, `tests`"},
}

// table is a report about logs.
type table struct {
	Logs, Head string
	from, to   time.Time                                // of the logs
	runs       map[string]map[string]map[string]*tapLog // by suite, file, driver
}

// read reads all logs.
func (t *table) read() error {
	t.runs = map[string]map[string]map[string]*tapLog{}
	for _, s := range suites {
		t.runs[s.name] = map[string]map[string]*tapLog{}
		for _, d := range drivers {
			logs, err := filepath.Glob(filepath.Join(t.Logs, s.name, d, "*.tap"))
			if err != nil {
				return err
			}
			for _, name := range logs {
				l, err := readTAP(name)
				if err != nil {
					return err
				}
				st, err := os.Stat(name)
				if err != nil {
					return err
				}
				if t.from.IsZero() || st.ModTime().Before(t.from) {
					t.from = st.ModTime()
				}
				if st.ModTime().After(t.to) {
					t.to = st.ModTime()
				}
				file := strings.TrimSuffix(filepath.Base(name), ".tap")
				if t.runs[s.name][file] == nil {
					t.runs[s.name][file] = map[string]*tapLog{}
				}
				t.runs[s.name][file][d] = l
			}
		}
	}
	return nil
}

// complete is an error if there is nothing to compare something with.
func (t *table) complete() error {
	n := 0
	for _, s := range suites {
		for file, byDriver := range t.runs[s.name] {
			if byDriver[overlay] == nil {
				return fmt.Errorf("%s %s: no results with overlay; run it with overlay first", s.name, file)
			}
			n++
		}
	}
	if n == 0 {
		return fmt.Errorf("no results below %s", t.Logs)
	}
	return nil
}

// dates tells when the logs were written.
func (t *table) dates() string {
	from, to := t.from.Format(time.DateOnly), t.to.Format(time.DateOnly)
	if from == to {
		return from
	}
	return from + " to " + to
}

// difference is a test with which not all drivers do the same.
type difference struct {
	suite, file, test string
	how               []string // driver: what it did
}

// differences finds the tests for which one driver's log says something that
// what is interested in, compared with overlay's.
func (t *table) differences(what func(of, ours *tapLog, test string) string) []difference {
	var out []difference
	for _, s := range suites {
		for _, file := range slices.Sorted(maps.Keys(t.runs[s.name])) {
			byDriver := t.runs[s.name][file]
			of := byDriver[overlay]
			if of == nil {
				continue
			}
			for _, test := range of.names {
				d := difference{suite: s.name, file: file, test: test}
				for _, driver := range drivers {
					if ours := byDriver[driver]; ours != nil {
						if how := what(of, ours, test); how != "" {
							d.how = append(d.how, driver+": "+how)
						}
					}
				}
				if len(d.how) > 0 {
					out = append(out, d)
				}
			}
		}
	}
	return out
}

// write makes the report, says how it went, in the last line in sum, and is an
// error if something passes with overlay only.
func (t *table) write(file string, out io.Writer) error {
	if err := t.read(); err != nil {
		return err
	}
	if err := t.complete(); err != nil {
		return err
	}
	bad := t.differences(func(of, ours *tapLog, test string) string {
		if of.status[test] == passed && ours.status[test] != passed {
			return ours.status[test].String()
		}
		return ""
	})
	good := t.differences(func(of, ours *tapLog, test string) string {
		if of.status[test] != passed && ours.status[test] == passed {
			return "passed"
		}
		return ""
	})
	again := t.differences(func(_, ours *tapLog, test string) string {
		if ours.again[test] {
			return "yes"
		}
		return ""
	})
	var b strings.Builder
	fmt.Fprintf(&b, "# Conformance\n\nMade by `make conformance`; do not edit. %s, %s.\n\n%s", t.dates(), t.Head, introduction)
	for _, s := range suites {
		t.section(&b, s.name, s.title)
	}
	list(&b, "Pass with overlay and not with shiftoverlay", bad)
	list(&b, "Pass at the second try only", again)
	list(&b, "Pass with shiftoverlay and not with overlay", good)
	if err := os.WriteFile(file, []byte(b.String()), 0o644); err != nil {
		return err
	}
	for _, d := range bad {
		fmt.Fprintf(out, "  %s %s: %s (%s)\n", d.suite, d.file, d.test, strings.Join(d.how, ", "))
	}
	fmt.Fprintf(out, "%s: %d tests pass with overlay and not with shiftoverlay, %d at the second try only\n", file, len(bad), len(again))
	if len(bad) > 0 {
		return errWorse
	}
	return nil
}

const introduction = `The test suites of the storage library and of the programs that use it, taken from the Go module cache, with the stock
overlay driver first and then with each engine of shiftoverlay. The numbers are tests passed/failed/skipped. What fails
with overlay, too, wants what a sandbox does not have: a network, real images, SELinux, systemd, cgroups of version 2;
six tests of idmaps.bats want a driver without idmapped mounts. hack/conformance/run.sh says which files are left out,
hack/conformance/suite.sh what is changed in the suites at run time.
`

// section is the table of a suite: files, and drivers that ran any.
func (t *table) section(b *strings.Builder, suite, title string) {
	files := slices.Sorted(maps.Keys(t.runs[suite]))
	if len(files) == 0 {
		return
	}
	var columns []string
	for _, d := range drivers {
		if slices.ContainsFunc(files, func(f string) bool { return t.runs[suite][f][d] != nil }) {
			columns = append(columns, d)
		}
	}
	fmt.Fprintf(b, "\n## %s\n\n| | %s |\n|---|%s\n", title, strings.Join(columns, " | "), strings.Repeat("---:|", len(columns)))
	total := map[string][3]int{}
	for _, f := range files {
		fmt.Fprintf(b, "| %s |", f)
		for _, d := range columns {
			l := t.runs[suite][f][d]
			if l == nil {
				b.WriteString(" |")
				continue
			}
			n := [3]int{l.count(passed), l.count(failed), l.count(skipped)}
			sum := total[d]
			for i := range n {
				sum[i] += n[i]
			}
			total[d] = sum
			fmt.Fprintf(b, " %s |", triple(n))
		}
		b.WriteString("\n")
	}
	b.WriteString("| **all** |")
	for _, d := range columns {
		fmt.Fprintf(b, " **%s** |", triple(total[d]))
	}
	b.WriteString("\n")
}

func triple(n [3]int) string { return fmt.Sprintf("%d/%d/%d", n[0], n[1], n[2]) }

func list(b *strings.Builder, title string, all []difference) {
	fmt.Fprintf(b, "\n## %s\n\n", title)
	if len(all) == 0 {
		b.WriteString("None.\n")
	}
	for _, d := range all {
		fmt.Fprintf(b, "- %s `%s`: `%s` (%s)\n", d.suite, d.file, strings.ReplaceAll(d.test, "`", "'"), strings.Join(d.how, ", "))
	}
}
