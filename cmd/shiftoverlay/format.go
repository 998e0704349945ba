package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"text/template"
)

// formatJSON is the value of --format that is no template.
const formatJSON = "json"

// writeJSON writes a value as podman does.
func writeJSON(w io.Writer, value any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "    ")
	e.SetEscapeHTML(false)
	return e.Encode(value)
}

// functions may be used in templates.
func functions() template.FuncMap {
	return template.FuncMap{
		"json": func(v any) (string, error) {
			b, err := json.Marshal(v)
			return string(b), err
		},
		"join":  strings.Join,
		"lower": strings.ToLower,
		"upper": strings.ToUpper,
	}
}

// parseTemplate reads --format. A table has its columns aligned and a heading,
// which is made of the names of the fields.
func parseTemplate(format string) (t *template.Template, table bool, err error) {
	text, table := strings.CutPrefix(format, "table ")
	text = strings.NewReplacer(`\t`, "\t", `\n`, "\n").Replace(text)
	t, err = template.New("format").Funcs(functions()).Option("missingkey=error").Parse(text)
	if err != nil {
		return nil, false, fmt.Errorf("read --format: %w", err)
	}
	return t, table, nil
}

// writeRows writes each row through a template. headings are the values that
// the fields have in the heading of a table.
func writeRows[T any](w io.Writer, format string, headings map[string]string, noHeading bool, rows []T) error {
	t, table, err := parseTemplate(format)
	if err != nil {
		return err
	}
	if !table {
		return writeAll(w, t, rows)
	}
	tw := tabwriter.NewWriter(w, 12, 2, 2, ' ', 0)
	if !noHeading {
		if err := writeRow(tw, t, headings); err != nil {
			return err
		}
	}
	return errors.Join(writeAll(tw, t, rows), tw.Flush())
}

func writeAll[T any](w io.Writer, t *template.Template, rows []T) error {
	for _, row := range rows {
		if err := writeRow(w, t, row); err != nil {
			return err
		}
	}
	return nil
}

func writeRow(w io.Writer, t *template.Template, row any) error {
	if err := t.Execute(w, row); err != nil {
		return fmt.Errorf("write --format: %w", err)
	}
	_, err := io.WriteString(w, "\n")
	return err
}
