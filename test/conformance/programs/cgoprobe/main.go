// cgoprobe asks the C library what goprobe asks Go's own resolver.
package main

/*
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
#include <string.h>
#include <arpa/inet.h>
#include <sys/socket.h>

static int host(char *buf, int n) { return gethostname(buf, n); }
static int lookup(const char *name, char *buf, int n) {
	struct addrinfo hints, *r, *p;
	memset(&hints, 0, sizeof hints);
	hints.ai_socktype = SOCK_STREAM;
	int e = getaddrinfo(name, "80", &hints, &r);
	if (e) return e;
	buf[0] = 0;
	for (p = r; p; p = p->ai_next) {
		char one[64];
		getnameinfo(p->ai_addr, p->ai_addrlen, one, sizeof one, 0, 0, NI_NUMERICHOST);
		strncat(buf, one, n - strlen(buf) - 1);
		strncat(buf, " ", n - strlen(buf) - 1);
	}
	freeaddrinfo(r);
	return 0;
}
*/
import "C"

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"unsafe"
)

func main() {
	buf := (*C.char)(C.malloc(1024))
	defer C.free(unsafe.Pointer(buf))
	C.host(buf, 1024)
	fmt.Println("hostname", C.GoString(buf), os.Getenv("POD_NAME"))
	for _, n := range []string{"db", "db.shop.svc.cluster.local", "no-such-name"} {
		name := C.CString(n)
		if e := C.lookup(name, buf, 1024); e != 0 {
			fmt.Println("getaddrinfo", n, "error", e)
		} else {
			fmt.Println("getaddrinfo", n, C.GoString(buf))
		}
		C.free(unsafe.Pointer(name))
	}
	b, err := os.ReadFile("/etc/orders/config.yaml")
	fmt.Printf("file %q %v\n", b, err)
	r := &net.Resolver{PreferGo: false}
	a, err := r.LookupHost(context.Background(), "db")
	fmt.Println("lookup", a, err)
	resp, err := http.Get("http://db/")
	if err != nil {
		fmt.Println("http", err)
		os.Exit(1)
	}
	body, _ := io.ReadAll(resp.Body)
	s := strings.TrimSpace(string(body))
	fmt.Println("http", s[:strings.LastIndexByte(s, ':')])
}
