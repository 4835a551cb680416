package session

import (
	"time"

	"github.com/stead-dev/stead/internal/policy"
	"github.com/stead-dev/stead/internal/session/seats"
	"github.com/stead-dev/stead/internal/tell"
	"github.com/stead-dev/stead/internal/tunnel"
	"github.com/stead-dev/stead/internal/wire"
)

// Options say what to run and how.
type Options struct {
	Dial   tunnel.Dialer // reaches an agent beside the target
	Secret []byte        // what that agent wants to hear
	Build  string        // our version
	Target string        // as the user named it, for messages

	Pod string // the pod beside which Dial's agent stands, "" where that is the target itself

	// Pods follows the target's pods: further ones, whose incoming traffic is the program's too, and
	// those in the place of one that ends. Nil where there is that one alone.
	Pods   seats.Source
	All    bool          // the incoming traffic of all of them is the program's
	Follow time.Duration // how long a pod that ended may be without a successor; 0 ends the program with it

	Argv []string
	Env  []string // the laptop's
	Dir  string   // the working directory, absolute

	Incoming wire.Mode            // empty: incoming traffic is left alone
	Probes   map[uint16][]string  // paths of the kubelet's probes, by port, that are not stolen
	Laptop   []policy.AddressRule // destinations that stay on the laptop
	Files    Files

	Says  *tell.Teller // our few lines
	Quiet bool         // warnings only
}

// Door names the way by which the program's path calls reach the pod's files.
type Door string

const (
	DoorAuto  Door = "auto"  // mount where a probe says that it can be had, else trap
	DoorMount Door = "mount" // a mount namespace whose root is the pod's
	DoorTrap  Door = "trap"  // path calls are trapped and answered one by one
	DoorCopy  Door = "copy"  // the trap, with copies of the files in place of FUSE
	DoorNone  Door = "none"  // the program sees the laptop's files only
)

// Files says what of the files is the pod's.
type Files struct {
	Door   Door
	Laptop []string // further paths that stay on the laptop
	Pod    []string // further paths that are the pod's
}
