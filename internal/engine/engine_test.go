package engine_test

import (
	"errors"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/shiftoverlay/shiftoverlay/internal/engine"
)

// named is an engine that works unless its reason says otherwise.
type named struct{ name, reason string }

func (n named) Name() string { return n.name }

func (n named) Check(engine.Env) error {
	if n.reason == "" {
		return nil
	}
	return errReason(n.reason)
}

// lossy is an engine that works but loses something.
type lossy struct{ named }

func (lossy) Avoid(engine.Env) error { return errReason("loses ACLs") }

type errReason string

func (e errReason) Error() string { return string(e) }

func TestChoose(t *testing.T) {
	list := func(a, b, c string) []engine.Engine {
		return []engine.Engine{named{"a", a}, named{"b", b}, named{"c", c}}
	}
	for name, c := range map[string]struct {
		list   []engine.Engine
		ask    string
		want   string
		reason string
		errs   []string
	}{
		"auto, the first":           {list: list("", "", ""), ask: "auto", want: "a", reason: "cheapest engine"},
		"auto, the second":          {list: list("too old", "", ""), ask: "auto", want: "b", reason: "a: too old"},
		"auto, the last":            {list: list("too old", "no overlay", ""), ask: "auto", want: "c", reason: "a: too old; b: no overlay"},
		"auto, none":                {list: list("x", "y", "z"), ask: "auto", errs: []string{"a: x", "b: y", "c: z", "no shift engine"}},
		"auto, avoided":             {list: append([]engine.Engine{lossy{named{name: "l"}}}, list("", "", "")...), ask: "auto", want: "a", reason: "l: loses ACLs"},
		"forced, to be avoided":     {list: []engine.Engine{lossy{named{name: "l"}}}, ask: "l", want: "l", reason: "set in shiftoverlay.conf"},
		"forced":                    {list: list("", "", ""), ask: "b", want: "b", reason: "set in shiftoverlay.conf"},
		"forced, others do not":     {list: list("x", "", "z"), ask: "b", want: "b", reason: "set in shiftoverlay.conf"},
		"forced, does not work":     {list: list("", "broken", ""), ask: "b", errs: []string{"does not work here: b: broken;", `"auto"`}},
		"unknown":                   {list: list("", "", ""), ask: "d", errs: []string{"unknown shift engine", `"d"`, "auto, a, b, c"}},
		"empty name is unknown":     {list: list("", "", ""), ask: "", errs: []string{"unknown shift engine"}},
		"case matters":              {list: list("", "", ""), ask: "A", errs: []string{"unknown shift engine"}},
		"no engines":                {ask: "auto", errs: []string{"shift engine"}},
		"unknown, others refuse":    {list: list("x", "y", "z"), ask: "d", errs: []string{"unknown shift engine"}},
		"forced last, first refuse": {list: list("x", "y", ""), ask: "c", want: "c", reason: "set in shiftoverlay.conf"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := engine.Choose(c.list, c.ask, engine.Env{})
			if len(c.errs) > 0 {
				require.Error(t, err)
				for _, e := range c.errs {
					require.ErrorContains(t, err, e)
				}
				return
			}
			require.NoError(t, err)
			assert.Equal(t, c.want, got.Engine.Name())
			assert.Equal(t, c.ask != engine.Auto, got.Forced)
			assert.Equal(t, c.reason, got.Reason())
		})
	}
}

func TestChooseErrors(t *testing.T) {
	list := []engine.Engine{named{"a", "broken"}}
	_, err := engine.Choose(list, "b", engine.Env{})
	require.ErrorIs(t, err, engine.ErrUnknown)
	_, err = engine.Choose(list, "a", engine.Env{})
	require.NotErrorIs(t, err, engine.ErrUnknown)
	require.ErrorIs(t, err, errReason("broken"), "the engine's own error stays reachable")
	var r *engine.Refusal
	require.ErrorAs(t, err, &r, "an engine that is asked for by name and does not work is a *Refusal")
	assert.Equal(t, "a", r.Engine)
}

func TestRefusal(t *testing.T) {
	reason := errors.New("no")
	r := &engine.Refusal{Engine: "e", Reason: reason}
	require.ErrorIs(t, r, reason)
	assert.EqualError(t, r, "e: no")
}
