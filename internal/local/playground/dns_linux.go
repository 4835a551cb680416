package playground

import (
	"fmt"
	"net"
	"strings"

	"github.com/miekg/dns"
)

// serveDNS answers for the pods' zone on the nameserver's address, over UDP and TCP, in the
// daemon's network namespace. It forwards nothing: there is no name but those.
func serveDNS() error {
	h := dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) { _ = w.WriteMsg(reply(q)) })
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
		m.SetEdns0(1232, false)
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
