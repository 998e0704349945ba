// Command benchplot measures podman on every kind of store that can shift an
// image's owners, and makes tables and plots of it. hack/bench.sh calls it;
// see there for how to run all of it.
//
//	benchplot layers -out DIR              the generated layers of the image "huge"
//	benchplot image -out DIR LAYERS...     an OCI image of tar files and OCI images
//	benchplot measure -json FILE ...       measure on one file system, add to FILE
//	benchplot report -json FILE -out DIR   tables and plots of FILE
//	benchplot inside                       runs in the containers that are measured
package main

import (
	"flag"
	"fmt"
	"os"
	"strings"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "benchplot:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) == 0 {
		return fmt.Errorf("which of layers, image, measure, report, inside?")
	}
	flags := flag.NewFlagSet(args[0], flag.ContinueOnError)
	switch args[0] {
	case "layers":
		out := flags.String("out", "", "folder for the tar files")
		if err := flags.Parse(args[1:]); err != nil {
			return err
		}
		return writeLayers(*out)
	case "image":
		out := flags.String("out", "", "folder of the OCI image")
		data := flags.Bool("data", false, "add a layer with the file that containers read to see what they share")
		if err := flags.Parse(args[1:]); err != nil {
			return err
		}
		return writeImage(*out, *data, flags.Args())
	case "measure":
		o := options{Log: os.Stderr}
		flags.StringVar(&o.JSON, "json", "", "file of results, made or added to")
		flags.StringVar(&o.FS, "fs", "", "type of the file system below -dir")
		flags.StringVar(&o.Dir, "dir", "", "folder on the file system that is measured")
		flags.StringVar(&o.Disk, "disk", "", "what the file system is on, for the report")
		flags.StringVar(&o.Image, "image", "", "name of the image")
		flags.StringVar(&o.Layout, "layout", "", "OCI image to be measured")
		configs := flags.String("configs", "", "configurations, separated by blanks; empty: all")
		flags.IntVar(&o.Rounds, "rounds", 5, "measurements of everything")
		flags.Float64Var(&o.Budget, "budget", 25, "seconds after which a slow measurement of a huge image is not repeated more than three times")
		if err := flags.Parse(args[1:]); err != nil {
			return err
		}
		var err error
		if o.Configs, err = chooseConfigs(strings.Fields(*configs)); err != nil {
			return err
		}
		return measure(o)
	case "report":
		in := flags.String("json", "", "file of results")
		out := flags.String("out", "", "folder for tables and plots")
		format := flags.String("plots", "svg", "svg, or png to look at")
		if err := flags.Parse(args[1:]); err != nil {
			return err
		}
		return report(*in, *out, *format)
	case "inside":
		return inside(os.Stdin, os.Stdout)
	default:
		return fmt.Errorf("unknown verb %q: one of layers, image, measure, report, inside", args[0])
	}
}
