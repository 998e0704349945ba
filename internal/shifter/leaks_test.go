package shifter_test

import (
	"os"
	"testing"

	"github.com/shiftoverlay/shiftoverlay/internal/testutil"
)

func TestMain(m *testing.M) { os.Exit(testutil.Main(m)) }
