// hello is what the demo runs, once in each language: it shows where it believes to be, then serves one
// request. With the argument "serve" it only serves.
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
	if len(os.Args) < 2 {
		look()
	}
	serve()
}

func look() {
	host, err := os.Hostname()
	check(err)
	config, err := os.ReadFile("/etc/orders/config.yaml")
	check(err)
	addrs, err := net.LookupHost("db")
	check(err)
	c, err := net.Dial("tcp", "db:5432")
	check(err)
	defer c.Close()
	fmt.Fprintln(c, "hello")
	answer, err := bufio.NewReader(c).ReadString('\n')
	check(err)
	fmt.Println("env    GREETING:", os.Getenv("GREETING"))
	fmt.Println("host  ", host)
	fmt.Printf("file   /etc/orders/config.yaml: %d bytes\n", len(config))
	fmt.Println("name   db:", addrs[0])
	fmt.Printf("tcp    %v -> %v: %s", c.LocalAddr(), c.RemoteAddr(), answer)
}

func serve() {
	l, err := net.Listen("tcp", ":8080")
	check(err)
	fmt.Println("listening on 8080")
	done := make(chan struct{}, 1)
	go http.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host, _, _ := net.SplitHostPort(r.RemoteAddr)
		fmt.Println("got", r.Method, r.URL.Path, "from", host)
		w.Header().Set("Connection", "close")
		io.WriteString(w, "the program on the laptop: "+r.Method+" "+r.URL.Path+"\n")
		done <- struct{}{}
	}))
	<-done
	time.Sleep(200 * time.Millisecond) // the answer leaves
}
