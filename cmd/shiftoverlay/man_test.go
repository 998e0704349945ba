package main

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

const manDir = "../../docs/man"

// pageOf is the name of a command's manual page.
func pageOf(cmd *cobra.Command) string { return strings.ReplaceAll(cmd.CommandPath(), " ", "-") }

// commands are all that a user sees.
func commands() []*cobra.Command {
	root := newRootCommand(&app{})
	root.InitDefaultVersionFlag()
	out := []*cobra.Command{root}
	for _, c := range root.Commands() {
		if !c.Hidden {
			out = append(out, c)
		}
	}
	for _, c := range out {
		c.InitDefaultHelpFlag()
	}
	return out
}

// heading is how a page names an option.
func heading(f *pflag.Flag) string {
	arg, _ := pflag.UnquoteUsage(f)
	text := "#### **--" + f.Name + "**"
	if f.Shorthand != "" {
		text += ", **-" + f.Shorthand + "**"
	}
	if arg != "" {
		text += "=*" + arg + "*"
	}
	return text
}

// sentence is what --help says of an option, as a page has it.
func sentence(f *pflag.Flag) string {
	_, usage := pflag.UnquoteUsage(f)
	text := strings.ToUpper(usage[:1]) + usage[1:]
	if f.DefValue != "" && f.DefValue != "false" && f.DefValue != "[]" && !strings.HasPrefix(f.DefValue, "table ") {
		text += " (default: " + f.DefValue + ")"
	}
	return text + "."
}

// section returns a section of a page, one line to a paragraph.
func section(t *testing.T, page, name string) string {
	t.Helper()
	_, text, ok := strings.Cut(page, "\n## "+name+"\n")
	require.True(t, ok, "section %s", name)
	text, _, _ = strings.Cut(text, "\n## ")
	return strings.TrimSpace(text)
}

// TestManPages checks that each command has a page, and that page and --help
// agree: what it does, how it is called, and every option with what it means.
func TestManPages(t *testing.T) {
	all := commands()
	var want []string
	for _, cmd := range all {
		name := pageOf(cmd) + ".1.md"
		want = append(want, name)
		b, err := os.ReadFile(filepath.Join(manDir, name))
		require.NoError(t, err)
		page := string(b)
		assert.Regexp(t, `^# `+regexp.QuoteMeta(pageOf(cmd))+` 1 "[A-Z][a-z]+ [0-9]{4}"\n`, page, name)
		assert.Equal(t, pageOf(cmd)+` \- `+strings.ToLower(cmd.Short[:1])+cmd.Short[1:], section(t, page, "NAME"), name)
		use := strings.Fields(cmd.UseLine())
		if cmd == all[0] {
			use = []string{"shiftoverlay", "[options]", "command"}
		}
		for _, word := range use {
			if word != "[flags]" {
				assert.Contains(t, strings.NewReplacer("**", "", "*", "", `\`, "").Replace(section(t, page, "SYNOPSIS")), word, name)
			}
		}
		long := strings.Join(strings.Fields(cmd.Long), " ")
		plain := strings.Join(strings.Fields(strings.NewReplacer("**", "", "*", "", "`", "").Replace(section(t, page, "DESCRIPTION"))), " ")
		assert.Contains(t, plain, strings.ReplaceAll(long, "`", ""), name)

		var headings []string
		options := ""
		if cmd.HasAvailableLocalFlags() && strings.Contains(page, "\n## OPTIONS\n") {
			options = section(t, page, "OPTIONS")
		}
		cmd.LocalFlags().VisitAll(func(f *pflag.Flag) {
			if f.Hidden || f.Name == "help" && cmd != all[0] {
				return
			}
			headings = append(headings, heading(f))
			_, after, ok := strings.Cut(options, heading(f)+"\n\n")
			if assert.True(t, ok, "%s: %s", name, heading(f)) {
				after, _, _ = strings.Cut(after, "\n#### ")
				assert.True(t, strings.HasPrefix(strings.ReplaceAll(after, "*", ""), sentence(f)), "%s: %s begins with what --help says: %s", name, heading(f), sentence(f))
			}
		})
		slices.SortFunc(headings, func(a, b string) int { return strings.Compare(strings.TrimRight(a, "*"), strings.TrimRight(b, "*")) })
		var got []string
		for line := range strings.Lines(options) {
			if strings.HasPrefix(line, "#### ") {
				got = append(got, strings.TrimSpace(line))
			}
		}
		assert.Equal(t, headings, got, "%s: options, in the order of the alphabet", name)
		for line := range strings.Lines(cmd.Example) {
			assert.Contains(t, page, strings.TrimSpace(line), "%s: examples", name)
		}
	}
	files, err := filepath.Glob(filepath.Join(manDir, "*.md"))
	require.NoError(t, err)
	var have []string
	for _, f := range files {
		have = append(have, filepath.Base(f))
	}
	want = append(want, "shiftoverlay-mount.1.md") // another program's
	assert.ElementsMatch(t, want, have, "a page for each command and no other")
}

// TestCommandTable checks that the first page lists all commands.
func TestCommandTable(t *testing.T) {
	b, err := os.ReadFile(filepath.Join(manDir, "shiftoverlay.1.md"))
	require.NoError(t, err)
	table := section(t, string(b), "COMMANDS") + "\n"
	all := commands()[1:]
	for _, cmd := range all {
		assert.Contains(t, table, "| "+cmd.Name()+" | [shiftoverlay-"+cmd.Name()+"(1)](shiftoverlay-"+cmd.Name()+".1.md) | "+cmd.Short+" |\n")
	}
	assert.Equal(t, len(all)+2, strings.Count(table, "\n"))
}

// TestHelp checks that --help works everywhere, and needs no store.
func TestHelp(t *testing.T) {
	t.Setenv("CONTAINERS_STORAGE_CONF", "/nonexistent")
	for _, cmd := range commands() {
		args := append(strings.Fields(cmd.CommandPath())[1:], "--help")
		r := run(t, "", args...)
		assert.Zero(t, r.code, args)
		assert.Contains(t, r.out, cmd.Long, args)
		assert.Empty(t, r.errors, args)
	}
	assert.Regexp(t, `^shiftoverlay version \S+\n$`, run(t, "", "--version").out)
}

// TestCommandLine checks the exit codes of wrong command lines, and completion.
func TestCommandLine(t *testing.T) {
	for want, args := range map[string][]string{
		"unknown command": {"list-all"}, "unknown flag": {"ls", "--colour"}, "unknown log level": {"--log-level", "loud", "info"},
		"invalid argument": {"completion", "tcsh"},
	} {
		r := run(t, "", args...)
		assert.Equal(t, exitOwnError, r.code, args)
		assert.Contains(t, r.errors, want, args)
	}
	for _, shell := range []string{"bash", "zsh", "fish"} {
		r := run(t, "", "completion", shell)
		assert.Zero(t, r.code, shell)
		assert.Contains(t, r.out, "shiftoverlay", shell)
	}
	r := run(t, "", "__complete", "pru")
	assert.Contains(t, r.out, "prune\tRemove shifted lowers")
	assert.Contains(t, run(t, "", "__complete", "ls", "--sort", "").out, "inodes\n")
	t.Setenv("PATH", t.TempDir())
	require.ErrorContains(t, enterPodman(), "podman unshare")
}

// TestCompleteEntries checks that inspect offers the IDs of entries.
func TestCompleteEntries(t *testing.T) {
	w := newWorld(t, "metacopy")
	w.image("localhost/one:latest")
	w.ok("warm", "--uidmap", "0:300000:65536", "one")
	id := w.list()[0].ID[:12]
	assert.Contains(t, w.ok("__complete", "inspect", id[:2]), id+"\tlocalhost/one:latest 0:300000:65536")
	assert.NotContains(t, w.ok("__complete", "inspect", "zz"), id)
}
