package shiftoverlay

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/shiftoverlay/shiftoverlay/internal/ovl"
	"github.com/shiftoverlay/shiftoverlay/pkg/idshift"
)

func TestParseProgramCall(t *testing.T) {
	const home = "/store/overlay"
	one := func(text string) *idshift.Mapping {
		m := mapping(t, text)
		return &m
	}
	rw := ProgramCall{
		Home: home, Target: home + "/c/merged", Lowers: []string{home + "/l/A", home + "/l/B/../diff1"},
		Upper: home + "/c/diff", Work: home + "/c/work",
	}
	with := func(change func(c *ProgramCall)) ProgramCall {
		c := rw
		change(&c)
		return c
	}
	const layers = "lowerdir=/store/overlay/l/A:/store/overlay/l/B/../diff1,upperdir=/store/overlay/c/diff,workdir=/store/overlay/c/work"
	for name, tt := range map[string]struct {
		options string
		want    ProgramCall
	}{
		"plain": {layers, rw},
		// Two commas, as an empty mountopt makes them.
		"mapping": {
			layers + ",,volatile,uidmapping=:0:100000:65536,gidmapping=:0:100000:65536",
			with(func(c *ProgramCall) { c.Mapping, c.Options = one("0:100000:65536"), ovl.Options{"volatile"} }),
		},
		"several extents": {
			layers + ",uidmapping=:0:1:1000:1000:0:1:1001:1001:64536,gidmapping=:0:1:1000:1000:0:1:1001:1001:64536",
			with(func(c *ProgramCall) { c.Mapping = one("0:1:1000,1000:0:1,1001:1001:64536") }),
		},
		"one ID": {layers + ",squash_to_uid=7,squash_to_gid=7", with(func(c *ProgramCall) { c.Mapping = one("0:7:1") })},
		"users only": {layers + ",uidmapping=:0:5:10", with(func(c *ProgramCall) {
			m, err := idshift.NewMapping([]idshift.Extent{{ContainerID: 0, HostID: 5, Size: 10}}, everyID)
			require.NoError(t, err)
			c.Mapping = &m
		})},
		"label": {
			layers + `,context="system_u:object_r:container_file_t:s0:c1,c2",uidmapping=:0:1:2,gidmapping=:0:1:2`,
			with(func(c *ProgramCall) {
				c.Label, c.Mapping = "system_u:object_r:container_file_t:s0:c1,c2", one("0:1:2")
			}),
		},
		"read-only, relative": {"lowerdir=c/diff:l/A", ProgramCall{
			Home: home, Target: home + "/c/merged", Lowers: []string{home + "/c/diff", home + "/l/A"},
		}},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := ParseProgramCall(home, tt.options, "c/merged")
			require.NoError(t, err)
			tt.want.lowerdir = got.lowerdir
			assert.Equal(t, &tt.want, got)
		})
	}
	for name, options := range map[string]string{
		"no lowers":        "upperdir=a,workdir=b",
		"upper alone":      "lowerdir=a,upperdir=b",
		"no ID":            layers + ",uidmapping=:0:x:1",
		"too large":        layers + ",uidmapping=:0:4294967296:1",
		"half an extent":   layers + ",uidmapping=:0:1",
		"overlapping":      layers + ",uidmapping=:0:1:10:5:100:10",
		"squashed to text": layers + ",squash_to_uid=root",
		"force_mask":       layers + ",xattr_permissions=2",
	} {
		t.Run(name, func(t *testing.T) {
			_, err := ParseProgramCall(home, options, "c/merged")
			require.Error(t, err)
		})
	}
}

func FuzzParseProgramCall(f *testing.F) {
	f.Add(`lowerdir=l/A:l/B,upperdir=u,workdir=w,context="a,b",uidmapping=:0:1:2`)
	f.Fuzz(func(t *testing.T, options string) {
		c, err := ParseProgramCall("/home", options, "t")
		if err == nil {
			assert.NotEmpty(t, c.Lowers)
			assert.Equal(t, c.Upper == "", c.Work == "")
		}
	})
}
