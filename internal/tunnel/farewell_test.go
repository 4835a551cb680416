package tunnel

import (
	"bufio"
	"net"
	"testing"
	"testing/synctest"
	"time"
)

// keepsOpen is a transport whose peer does not hear that this end was closed, as through a proxy
// that waits for both directions.
type keepsOpen struct{ net.Conn }

func (k keepsOpen) Close() error {
	_ = k.SetDeadline(time.Unix(1, 0)) // our own calls end
	return nil
}

func TestATunnelEndsAtOnceThoughTheEndOfItsTransportIsKeptBack(t *testing.T) {
	for _, agentFirst := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			o := Options{Resume: -1, Lanes: 1}
			session, agent := newConn(o, true), newConn(o, false)
			x, y := net.Pipe()
			defer x.Close()
			defer y.Close()
			kx, ky := keepsOpen{x}, keepsOpen{y}
			session.links[0].attach(kx, bufio.NewReaderSize(kx, readBuffer), 0, 0)
			agent.links[0].attach(ky, bufio.NewReaderSize(ky, readBuffer), 0, 0)
			first, second := session, agent
			if agentFirst {
				first, second = agent, session
			}
			began := time.Now()
			first.Close()
			if d := time.Since(began); d >= closeTimeout {
				t.Errorf("agent first %v: closing took %v of the bubble's time", agentFirst, d)
			}
			<-second.Done()
			second.Close()
		})
	}
}
