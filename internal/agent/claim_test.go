package agent

import (
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"strings"
	"testing"

	"github.com/stead-dev/stead/internal/wire"
)

// The port is claimed by somebody who says nothing until the others have been served.
func TestAHolderThatIsSlowToSayWhoItIsHoldsUpNobodyElse(t *testing.T) {
	target, err := openTarget(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	defer target.close()
	const port = 4
	l, err := net.Listen("unix", fmt.Sprintf("@stead-steal-%d", port))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	p := newPorts(target, "auto", slog.New(slog.DiscardHandler))
	defer p.close()
	answer := make(chan wire.Reply)
	go func() {
		answer <- p.add(&subscription{x: &session{holder: "bob@desk"}, port: port, mode: wire.Steal})
	}()
	asked, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer asked.Close()
	p.held()
	io.WriteString(asked, "ann@laptop")
	asked.Close()
	if r := <-answer; !strings.Contains(r.Error, "ann@laptop") {
		t.Errorf("%+v", r)
	}
}
