package ovl_test

import (
	"testing"

	"github.com/stretchr/testify/assert"

	"github.com/shiftoverlay/shiftoverlay/internal/ovl"
)

func TestParseOptions(t *testing.T) {
	for text, want := range map[string]ovl.Options{
		"":                             nil,
		" , ,":                         nil,
		"nodev":                        {"nodev"},
		"nodev,metacopy=on":            {"nodev", "metacopy=on"},
		" nodev , metacopy=on ,":       {"nodev", "metacopy=on"},
		"x=a=b":                        {"x=a=b"},
		"index=off,index=on,redirect=": {"index=off", "index=on", "redirect="},
	} {
		got := ovl.ParseOptions(text)
		assert.Equal(t, want, got, "%q", text)
		assert.Equal(t, got, ovl.ParseOptions(got.String()), "there and back: %q", text)
	}
	assert.Equal(t, "a,b=c", ovl.Options{"a", "b=c"}.String())
}

func TestValue(t *testing.T) {
	o := ovl.Options{"nodev", "metacopy=off", "x=a=b", "metacopy=on", "metacopyx=no", "empty="}
	for name, want := range map[string]struct {
		value string
		ok    bool
	}{
		"metacopy": {"on", true}, "nodev": {"", true}, "x": {"a=b", true}, "empty": {"", true},
		"meta": {}, "": {}, "NODEV": {}, "x=a": {},
	} {
		value, ok := o.Value(name)
		assert.Equal(t, want.value, value, name)
		assert.Equal(t, want.ok, ok, name)
	}
}

func TestTake(t *testing.T) {
	o := ovl.Options{"nodev", "x-shift.engine=copyup", "metacopy=on", "x-shift.flag", "x-shift.a=b=c", "my-x-shift.d=e"}
	rest, taken := o.Take("x-shift.")
	assert.Equal(t, ovl.Options{"nodev", "metacopy=on", "my-x-shift.d=e"}, rest)
	assert.Equal(t, [][2]string{{"engine", "copyup"}, {"flag", ""}, {"a", "b=c"}}, taken)
	assert.Len(t, o, 6, "the list itself stays")
	rest, taken = ovl.Options(nil).Take("x")
	assert.Empty(t, rest)
	assert.Empty(t, taken)
}

func TestSplitLowers(t *testing.T) {
	assert.Nil(t, ovl.SplitLowers(""))
	assert.Equal(t, []string{"/a"}, ovl.SplitLowers("/a"))
	assert.Equal(t, []string{"l/A", "l/B", "/c"}, ovl.SplitLowers("l/A:l/B:/c"))
}
