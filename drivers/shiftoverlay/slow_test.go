package shiftoverlay

import (
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/shiftoverlay/shiftoverlay/internal/engine/metacopy"
	"github.com/shiftoverlay/shiftoverlay/internal/shifter"
)

func TestSlow(t *testing.T) {
	root := t.TempDir()
	s := &site{home: filepath.Join(root, "shiftoverlay")}
	p := shifter.Plan{Engine: metacopy.Engine{}, Layers: []string{"0123456789abcdef", "below"}}
	assert.Equal(t, "Preparing an image (layer 0123456789ab) for its first start with these user IDs (engine metacopy): 71000 files in 1.2 s",
		s.slowText(p, 1200*time.Millisecond, 71000))

	require.NoError(t, os.Mkdir(filepath.Join(root, "shiftoverlay-images"), 0o700))
	for images, want := range map[string]string{
		`[{"id":"aa","layer":"other","names":["x"]},{"id":"bb","layer":"0123456789abcdef","names":["localhost/big:latest","y"]}]`: "localhost/big:latest",
		`[{"id":"fedcba9876543210","layer":"0123456789abcdef"}]`:                                                                  "image fedcba987654",
		`damaged`: "an image (layer 0123456789ab)",
	} {
		require.NoError(t, os.WriteFile(filepath.Join(root, "shiftoverlay-images", "images.json"), []byte(images), 0o600))
		assert.Equal(t, "Preparing "+want+" for its first start with these user IDs (engine metacopy): waiting for another start that prepares it", s.slowText(p, time.Second, 0))
	}

	// systemd hears of it each time.
	socket := filepath.Join(root, "notify")
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	require.NoError(t, err)
	defer l.Close()
	t.Setenv("NOTIFY_SOCKET", socket)
	slow := s.slow()
	for range 2 {
		slow(p, time.Second, 5)
		require.NoError(t, l.SetReadDeadline(time.Now().Add(10*time.Second)))
		buf := make([]byte, 100)
		n, err := l.Read(buf)
		require.NoError(t, err)
		assert.Equal(t, "EXTEND_TIMEOUT_USEC=30000000", string(buf[:n]))
	}
}
