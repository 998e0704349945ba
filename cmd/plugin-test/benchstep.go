package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

// benchStepVerb is the hidden verb that measures one step of bench, in a
// process of its own so that nothing is warm in it.
const benchStepVerb = "__bench-step"

// stepResult is what one measured process reports.
type stepResult struct {
	Wall    time.Duration // of making and mounting the container
	CPU     time.Duration // user and system, child processes included
	PeakRSS int64         // bytes, of the largest process
	Engine  string        // as the driver says, empty for other drivers
}

func newBenchStepCommand(a *app) *cobra.Command {
	var maps mappingFlags
	cmd := &cobra.Command{
		Use:    benchStepVerb + " NAME",
		Hidden: true,
		Args:   cobra.ExactArgs(1),
		RunE:   func(_ *cobra.Command, args []string) error { return a.benchStep(args[0], &maps) },
	}
	maps.register(cmd.Flags())
	return cmd
}

func (a *app) benchStep(name string, maps *mappingFlags) (err error) {
	var request containerRequest
	if maps.given() {
		if request.mapping, err = maps.mapping(); err != nil {
			return err
		}
	}
	store, image, err := a.openImage(name)
	if err != nil {
		return err
	}
	var result stepResult
	if _, err := store.GraphDriver(); err != nil { // opens it, and it is not to count
		return fmt.Errorf("open driver: %w", err)
	}
	before, err := cpuTime()
	if err != nil {
		return err
	}
	start := time.Now()
	m, err := mountImage(store, image, "", request)
	if err != nil {
		return err
	}
	result.Wall = time.Since(start)
	after, err := cpuTime()
	if err != nil {
		return errors.Join(err, m.remove())
	}
	result.CPU = after - before
	result.PeakRSS, err = peakRSS()
	if err = errors.Join(err, m.remove()); err != nil {
		return err
	}
	if status, err := store.Status(); err == nil {
		result.Engine = engineOf(status)
	}
	return json.NewEncoder(a.stdout).Encode(result)
}

// engineOf finds the engine in a driver's status.
func engineOf(status [][2]string) string {
	for _, row := range status {
		if row[0] == "Shift engine" {
			return row[1]
		}
	}
	return ""
}

// cpuTime is the time that this process and its ended children computed.
func cpuTime() (time.Duration, error) {
	var total time.Duration
	for _, who := range []int{unix.RUSAGE_SELF, unix.RUSAGE_CHILDREN} {
		var u unix.Rusage
		if err := unix.Getrusage(who, &u); err != nil {
			return 0, os.NewSyscallError("getrusage", err)
		}
		total += time.Duration(u.Utime.Nano() + u.Stime.Nano())
	}
	return total, nil
}

// peakRSS is the most memory that this process or one of its ended children
// held. For itself it asks /proc, since ru_maxrss starts with the size of the
// process that it was forked from.
func peakRSS() (int64, error) {
	f, err := os.Open("/proc/self/status")
	if err != nil {
		return 0, fmt.Errorf("read peak memory: %w", err)
	}
	defer f.Close()
	var children unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_CHILDREN, &children); err != nil {
		return 0, os.NewSyscallError("getrusage", err)
	}
	scanner := bufio.NewScanner(f)
	for scanner.Scan() {
		value, found := strings.CutPrefix(scanner.Text(), "VmHWM:")
		if !found {
			continue
		}
		kib, err := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(value, "kB")), 10, 64)
		if err != nil {
			return 0, fmt.Errorf("read peak memory: %w", err)
		}
		return max(kib, children.Maxrss) << 10, nil
	}
	return 0, errors.Join(errors.New("read peak memory: no VmHWM in /proc/self/status"), scanner.Err())
}
