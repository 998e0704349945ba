// Command conform helps hack/conformance/run.sh to run other projects' test
// suites: it makes the images that they expect, serves them like a registry,
// and makes a table of the results.
//
//	conform images DIR                      stand-ins for the suites' images
//	conform registry -listen ADDRESS DIR    serve them, until killed
//	conform worse OVERLAY.tap OURS.tap      tests that pass in the first log only; status 1 if there are some
//	conform count LOG.tap                   how many passed, failed and were skipped
//	conform table -logs DIR -out FILE ...   the table; status 1 if something passes with overlay only
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"time"
)

// errWorse: something passes with overlay and not with shiftoverlay. It was
// said already.
var errWorse = errors.New("not everything that passes with overlay passes with shiftoverlay")

func main() {
	err := run(os.Args[1:], os.Stdout)
	if err == nil {
		return
	}
	if !errors.Is(err, errWorse) {
		fmt.Fprintln(os.Stderr, "conform:", err)
		os.Exit(2)
	}
	os.Exit(1)
}

func run(args []string, out io.Writer) error {
	if len(args) == 0 {
		return errors.New("which of images, registry, worse, count, table?")
	}
	flags := flag.NewFlagSet(args[0], flag.ContinueOnError)
	switch args[0] {
	case "images":
		if len(args) != 2 {
			return errors.New("usage: conform images DIR")
		}
		return writeImages(args[1], "/bin/busybox")
	case "registry":
		listen := flags.String("listen", "127.0.0.1:5000", "address")
		if err := flags.Parse(args[1:]); err != nil {
			return err
		}
		return serve(*listen, flags.Arg(0))
	case "worse":
		if len(args) != 3 {
			return errors.New("usage: conform worse OVERLAY.tap OURS.tap")
		}
		return printWorse(out, args[1], args[2])
	case "count":
		if len(args) != 2 {
			return errors.New("usage: conform count LOG.tap")
		}
		l, err := readTAP(args[1])
		if err != nil {
			return err
		}
		fmt.Fprintf(out, "%d passed, %d failed, %d skipped\n", l.count(passed), l.count(failed), l.count(skipped))
		return nil
	case "table":
		var t table
		var file string
		flags.StringVar(&t.Logs, "logs", "", "folder of the logs, SUITE/DRIVER/FILE.tap")
		flags.StringVar(&file, "out", "", "file to write")
		flags.StringVar(&t.Head, "head", "", "when and where it was measured")
		if err := flags.Parse(args[1:]); err != nil {
			return err
		}
		return t.write(file, out)
	default:
		return fmt.Errorf("unknown verb %q: one of images, registry, worse, count, table", args[0])
	}
}

// serve answers like a registry that holds the images in dir.
func serve(address, dir string) error {
	r, err := openRegistry(dir)
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	return (&http.Server{Handler: r, ReadHeaderTimeout: time.Minute}).Serve(l)
}
