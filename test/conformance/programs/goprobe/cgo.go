//go:build cgo

package main

/*
#include <arpa/inet.h>
#include <netdb.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

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
	"fmt"
	"unsafe"
)

// askC asks the C library directly.
func askC() {
	const size = 1024
	buf := (*C.char)(C.malloc(size))
	defer C.free(unsafe.Pointer(buf))
	if C.host(buf, size) == 0 {
		fmt.Println("gethostname", C.GoString(buf))
	}
	for _, n := range []string{"db", "db.shop.svc.cluster.local", "no-such-name"} {
		name := C.CString(n)
		if e := C.lookup(name, buf, size); e != 0 {
			fmt.Println("getaddrinfo", n, "error", e)
		} else {
			fmt.Println("getaddrinfo", n, C.GoString(buf))
		}
		C.free(unsafe.Pointer(name))
	}
}
