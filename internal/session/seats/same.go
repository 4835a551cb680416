package seats

import (
	"context"
	"time"

	"github.com/stead-dev/stead/internal/tunnel"
)

// sameAgain is the pause before a target is dialled again.
const sameAgain = 200 * time.Millisecond

// Same is the Source of a target that is always reached by the same dialer, for as long as stays
// gives no error: its app may be started anew.
func Same(name string, dial tunnel.Dialer, stays func(context.Context) error) Source {
	return func(ctx context.Context, _ bool, first *Seat, join Join, ready func()) error {
		ready()
		for seat := first; ; {
			select {
			case <-seat.Done():
			case <-ctx.Done():
				return nil
			}
			for {
				select {
				case <-time.After(sameAgain):
				case <-ctx.Done():
					return nil
				}
				next, err := join(ctx, name, dial)
				if err == nil {
					seat = next
					break
				}
				if err := stays(ctx); err != nil {
					return err
				}
			}
		}
	}
}
