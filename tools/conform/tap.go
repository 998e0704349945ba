package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"regexp"
	"strconv"
	"strings"
)

// status of a test. A test of which there is no result, because its file was
// ended, counts as failed.
type status int

const (
	none status = iota
	passed
	failed
	skipped
)

func (s status) String() string {
	return [...]string{"no result", "passed", "failed", "skipped"}[s]
}

// run is what a TAP log says.
type tapLog struct {
	names  []string // in order
	status map[string]status
	again  map[string]bool // passed at the second try only
	cut    int             // planned tests without a result
}

var (
	tapLine   = regexp.MustCompile(`^(ok|not ok) \d+ (.*)$`)
	tapPlan   = regexp.MustCompile(`^1\.\.(\d+)$`)
	tapSkip   = regexp.MustCompile(` # skip.*$`)
	tapTime   = regexp.MustCompile(` in \d+(ms|sec)$`)
	tapPrefix = regexp.MustCompile(`^[\[|]\d+[\]|] `) // podman's number of the file
)

// readTAP reads a log and, if there is one, that of the second try of tests
// that failed.
func readTAP(name string) (*tapLog, error) {
	l, err := parseTAP(name)
	if err != nil {
		return nil, err
	}
	l.again = map[string]bool{}
	second, err := parseTAP(strings.TrimSuffix(name, ".tap") + ".again")
	if errors.Is(err, fs.ErrNotExist) {
		return l, nil
	}
	if err != nil {
		return nil, err
	}
	for _, t := range second.names {
		if second.status[t] == passed && l.status[t] == failed {
			l.status[t], l.again[t] = passed, true
		}
	}
	return l, nil
}

func parseTAP(name string) (*tapLog, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	l := &tapLog{status: map[string]status{}}
	planned, ran := 0, 0
	for in := bufio.NewReader(f); ; {
		line, err := in.ReadString('\n')
		if err != nil && !errors.Is(err, io.EOF) {
			return nil, err
		}
		line = strings.TrimSuffix(line, "\n")
		if m := tapPlan.FindStringSubmatch(line); m != nil {
			planned, _ = strconv.Atoi(m[1])
		} else if m := tapLine.FindStringSubmatch(line); m != nil {
			ran++
			l.add(m[1], m[2])
		}
		if err != nil {
			break
		}
	}
	l.cut = max(planned-ran, 0)
	return l, nil
}

// add counts a result. A name that was there before gets a number.
func (l *tapLog) add(result, name string) {
	s := passed
	name = tapTime.ReplaceAllString(name, "")
	if result == "not ok" {
		s = failed
	} else if tapSkip.MatchString(name) {
		s = skipped
		name = tapSkip.ReplaceAllString(name, "")
	}
	name = strings.TrimSpace(tapPrefix.ReplaceAllString(tapTime.ReplaceAllString(name, ""), ""))
	for n, base := 2, name; l.status[name] != none; n++ {
		name = fmt.Sprintf("%s (%d)", base, n)
	}
	l.names = append(l.names, name)
	l.status[name] = s
}

// count returns how many tests have the status. What was planned and has no
// result counts as failed.
func (l *tapLog) count(s status) int {
	n := 0
	for _, x := range l.status {
		if x == s {
			n++
		}
	}
	if s == failed {
		n += l.cut
	}
	return n
}

// worse returns the tests that pass in a and not in b, in a's order.
func worse(a, b *tapLog) []string {
	var out []string
	for _, t := range a.names {
		if a.status[t] == passed && b.status[t] != passed {
			out = append(out, t)
		}
	}
	return out
}

// printWorse prints them and is an error if there are any.
func printWorse(out io.Writer, overlay, ours string) error {
	a, err := readTAP(overlay)
	if err != nil {
		return err
	}
	b, err := readTAP(ours)
	if err != nil {
		return err
	}
	names := worse(a, b)
	for _, t := range names {
		fmt.Fprintf(out, "%s: %s\n", b.status[t], t)
	}
	if len(names) > 0 {
		return errWorse
	}
	return nil
}
