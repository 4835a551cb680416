// hello is the demo's program: it shows where it believes to be, or serves one request.
package main

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"time"
)

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "hello:", err)
		os.Exit(1)
	}
}

func main() {
	if len(os.Args) > 2 {
		serve(os.Args[2])
		return
	}
	host, err := os.Hostname()
	check(err)
	config, err := os.ReadFile("/etc/orders/config.yaml")
	check(err)
	addrs, err := net.LookupHost("db")
	check(err)
	c, err := net.Dial("tcp", "db:5432")
	check(err)
	fmt.Fprintln(c, "hello")
	answer, err := bufio.NewReader(c).ReadString('\n')
	check(err)
	fmt.Printf("env    GREETING: %s\nhost   %s\nfile   /etc/orders/config.yaml: %d bytes\nname   db: %v\n", os.Getenv("GREETING"), host, len(config), addrs)
	fmt.Printf("tcp    %v -> %v: %s", c.LocalAddr(), c.RemoteAddr(), answer)
}

// serve answers one request.
func serve(port string) {
	l, err := net.Listen("tcp", ":"+port)
	check(err)
	fmt.Println("listening on", l.Addr())
	done := make(chan struct{}, 1)
	go http.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Println("got", r.Method, r.URL.Path, "from", r.RemoteAddr)
		w.Header().Set("Connection", "close")
		io.WriteString(w, "the program on the laptop: "+r.Method+" "+r.URL.Path)
		done <- struct{}{}
	}))
	<-done
	time.Sleep(200 * time.Millisecond) // the answer leaves
}
