package playground

import (
	"fmt"
	"net"
	"strings"

	"github.com/miekg/dns"
)

// ednsSize is the most that a datagram of ours has.
const ednsSize = 1232

// large are names with more addresses than a datagram has room for: without EDNS, and at all.
var large = map[string]int{"dozens": 60, "hundreds": 200}

// serveDNS answers for the pods' zone on the nameserver's address, over UDP and TCP, in the
// daemon's network namespace. It forwards nothing: there is no name but those.
func serveDNS() error {
	h := dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		m := reply(q)
		if w.RemoteAddr().Network() == "udp" { // what does not fit is asked for again, over TCP
			size := dns.MinMsgSize
			if o := q.IsEdns0(); o != nil {
				size = min(max(int(o.UDPSize()), size), ednsSize)
			}
			m.Truncate(size)
		}
		_ = w.WriteMsg(m)
	})
	pc, err := net.ListenPacket("udp", net.JoinHostPort(nameserver, "53"))
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", net.JoinHostPort(nameserver, "53"))
	if err != nil {
		pc.Close()
		return err
	}
	go (&dns.Server{PacketConn: pc, Handler: h}).ActivateAndServe()
	go (&dns.Server{Listener: l, Handler: h}).ActivateAndServe()
	return nil
}

// reply answers one query: NXDOMAIN where there is no such name, an empty answer where it has no
// record of the type.
func reply(q *dns.Msg) *dns.Msg {
	m := new(dns.Msg)
	m.SetReply(q)
	m.Authoritative = true
	if o := q.IsEdns0(); o != nil {
		m.SetEdns0(ednsSize, false)
	}
	if len(q.Question) != 1 {
		m.Rcode = dns.RcodeFormatError
		return m
	}
	question := q.Question[0]
	name := strings.ToLower(question.Name)
	host, ours := strings.CutSuffix(name, "."+zone)
	soa := &dns.SOA{
		Hdr: dns.RR_Header{Name: zone, Rrtype: dns.TypeSOA, Class: dns.ClassINET, Ttl: 5},
		Ns:  "ns." + zone, Mbox: "hostmaster." + zone, Serial: 1, Refresh: 60, Retry: 60, Expire: 60, Minttl: 5,
	}
	spec := specOf(host)
	if n := large[host]; ours && n > 0 {
		for i := range n {
			if question.Qtype == dns.TypeA {
				m.Answer = append(m.Answer, &dns.A{
					Hdr: dns.RR_Header{Name: question.Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 5},
					A:   net.IPv4(198, 51, 100, byte(i+1)),
				})
			}
		}
		if len(m.Answer) == 0 {
			m.Ns = append(m.Ns, soa)
		}
		return m
	}
	if !ours || spec == nil {
		if name != zone {
			m.Rcode = dns.RcodeNameError
		}
		m.Ns = append(m.Ns, soa)
		return m
	}
	head := func(t uint16) string { return fmt.Sprintf("%s 5 IN %s ", question.Name, dns.TypeToString[t]) }
	for t, ip := range map[uint16]string{dns.TypeA: spec.ipv4, dns.TypeAAAA: spec.ipv6} {
		if question.Qtype != t {
			continue
		}
		if rr, err := dns.NewRR(head(t) + ip); err == nil {
			m.Answer = append(m.Answer, rr)
		}
	}
	if len(m.Answer) == 0 {
		m.Ns = append(m.Ns, soa)
	}
	return m
}
