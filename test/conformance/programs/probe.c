/* Prints what a program sees of its machine; run natively in a pod and under stead it must print
   the same. Built static against musl. look; serve PORT COUNT; own PORT speaks with itself on a port of
   its own; errnos ADDRESS... tells how connecting fails. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <netdb.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/utsname.h>
#include <unistd.h>

static void file(const char *p) {
	char b[4096];
	int fd = open(p, O_RDONLY);
	ssize_t n = fd < 0 ? -1 : read(fd, b, sizeof b - 1);
	if (n < 0) { printf("file %s: %s\n", p, strerror(errno)); return; }
	b[n] = 0;
	printf("file %s %s", p, b);
	close(fd);
}

static int byname(const void *a, const void *b) { return strcmp(*(char **)a, *(char **)b); }

static void show(const char *what, struct sockaddr *sa, socklen_t n) {
	char h[64], s[16];
	getnameinfo(sa, n, h, sizeof h, s, sizeof s, NI_NUMERICHOST | NI_NUMERICSERV);
	printf("%s %s %s\n", what, h, s);
}

static void talk(const char *name, const char *port, int type, int nonblock) {
	struct addrinfo hints = {.ai_socktype = type}, *r, *p;
	int e = getaddrinfo(name, port, &hints, &r);
	if (e) { printf("%s: %s\n", name, gai_strerror(e)); return; }
	for (p = r; p; p = p->ai_next) {
		char b[200];
		struct sockaddr_storage sa;
		socklen_t sl = sizeof sa;
		int fd = socket(p->ai_family, type | (nonblock ? SOCK_NONBLOCK : 0), 0);
		show("to", p->ai_addr, p->ai_addrlen);
		if (connect(fd, p->ai_addr, p->ai_addrlen)) {
			printf("connect: %s\n", strerror(errno));
			if (errno != EINPROGRESS) { close(fd); continue; }
			struct pollfd q = {fd, POLLOUT, 0};
			int err = -1;
			socklen_t el = sizeof err;
			poll(&q, 1, 10000);
			getsockopt(fd, SOL_SOCKET, SO_ERROR, &err, &el);
			printf("SO_ERROR: %s\n", strerror(err));
			if (err) { close(fd); continue; }
		}
		if (!getpeername(fd, (void *)&sa, &sl)) show("peer", (void *)&sa, sl);
		if (send(fd, "ping\n", 5, 0) == 5) {
			struct pollfd q = {fd, POLLIN, 0};
			poll(&q, 1, 10000);
			sl = sizeof sa;
			ssize_t n = recvfrom(fd, b, sizeof b - 1, 0, (void *)&sa, &sl);
			if (n > 0) { b[n] = 0; printf("answer %s", b); }
			else printf("answer: %s\n", strerror(errno));
			if (type == SOCK_DGRAM) show("from", (void *)&sa, sl);
		}
		close(fd);
		if (type == SOCK_DGRAM) {
			fd = socket(p->ai_family, type, 0);
			sendto(fd, "pong\n", 5, 0, p->ai_addr, p->ai_addrlen);
			struct iovec v = {b, sizeof b - 1};
			struct msghdr m = {.msg_name = &sa, .msg_namelen = sizeof sa, .msg_iov = &v, .msg_iovlen = 1};
			struct pollfd q = {fd, POLLIN, 0};
			poll(&q, 1, 10000);
			ssize_t n = recvmsg(fd, &m, 0);
			if (n > 0) { b[n] = 0; printf("answer %s", b); show("from", (void *)&sa, m.msg_namelen); }
			close(fd);
		}
	}
	freeaddrinfo(r);
}

/* many counts the addresses of a name whose answer does not fit a datagram. */
static void many(const char *name)
{
	struct addrinfo hints = {.ai_socktype = SOCK_STREAM}, *r, *p;
	int e = getaddrinfo(name, "80", &hints, &r), n = 0;
	if (e) { printf("%s: %s\n", name, gai_strerror(e)); return; }
	for (p = r; p; p = p->ai_next) n++;
	printf("%s: %d addresses\n", name, n);
	freeaddrinfo(r);
}

/* ends compares getsockname with what the other side saw. */
static void ends(const char *name)
{
	struct addrinfo hints = {.ai_socktype = SOCK_STREAM}, *r, *p;
	if (getaddrinfo(name, "80", &hints, &r)) return;
	for (p = r; p; p = p->ai_next) {
		struct sockaddr_storage sa;
		socklen_t n = sizeof sa;
		char b[1024] = "", h[64], s[16], want[100];
		int k = 0, got, fd = socket(p->ai_family, SOCK_STREAM, 0);
		if (connect(fd, p->ai_addr, p->ai_addrlen)) { printf("ends: %s\n", strerror(errno)); close(fd); continue; }
		getsockname(fd, (void *)&sa, &n);
		getnameinfo((void *)&sa, n, h, sizeof h, s, sizeof s, NI_NUMERICHOST | NI_NUMERICSERV);
		snprintf(want, sizeof want, p->ai_family == AF_INET6 ? "\n[%s]:%s\n" : "\n%s:%s\n", h, s);
		dprintf(fd, "GET / HTTP/1.0\r\n\r\n");
		while (k < (int)sizeof b - 1 && (got = read(fd, b + k, sizeof b - 1 - k)) > 0) k += got;
		printf("ends %s %d\n", h, strstr(b, want) != 0);
		close(fd);
	}
	freeaddrinfo(r);
}

static int look(void) {
	struct utsname u;
	char b[PATH_MAX];
	struct stat st;
	uname(&u);
	gethostname(b, sizeof b);
	printf("hostname %s %s\n", u.nodename, b);
	const char *keys[] = {"POD_NAME", "DATABASE_URL", "GREETING"};
	for (int i = 0; i < 3; i++) printf("env %s %s\n", keys[i], getenv(keys[i]));
	file("/etc/orders/config.yaml");
	file("/var/run/secrets/orders/token");
	file("/etc/resolv.conf");
	file("/etc/hosts");
	file("/etc/ssl/certs/orders-pod.pem");
	file("/etc/no/such");
	ssize_t n = readlink("/var/data/link", b, sizeof b - 1);
	b[n < 0 ? 0 : n] = 0;
	printf("link %s ", b);
	printf("%s\n", realpath("/var/data/link", b));
	stat("/var/data/link", &st);
	int fd = open("/var/data/big.bin", O_RDONLY);
	unsigned char *m = mmap(0, st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
	unsigned long sum = 0;
	for (off_t i = 0; i < st.st_size; i++) sum = sum * 31 + m[i];
	printf("big %lld %o %lld %lx\n", (long long)st.st_size, st.st_mode, (long long)st.st_mtime, sum);
	chdir("/var/data");
	printf("cwd %s %d %d\n", getcwd(b, sizeof b), access("many", R_OK), access("none", F_OK));
	DIR *d = opendir("many");
	char *names[4096];
	int k = 0;
	for (struct dirent *e; (e = readdir(d));) if (e->d_name[0] != '.') names[k++] = strdup(e->d_name);
	qsort(names, k, sizeof *names, byname);
	printf("list %d %s %s\n", k, names[0], names[k - 1]);
	talk("db", "5432", SOCK_STREAM, 0);
	talk("db.shop.svc.cluster.local", "5432", SOCK_STREAM, 1);
	talk("db", "1", SOCK_STREAM, 0);
	talk("db", "1", SOCK_STREAM, 1);
	talk("db", "5433", SOCK_DGRAM, 0);
	talk("no-such-name", "1", SOCK_STREAM, 0);
	talk("127.0.0.1", "9000", SOCK_STREAM, 0);
	talk("::1", "9000", SOCK_STREAM, 0);
	talk("::1", "9000", SOCK_STREAM, 1);
	talk("::ffff:127.0.0.1", "9000", SOCK_STREAM, 0);
	many("dozens");
	many("hundreds");
	ends("db");
	return 0;
}

/* A listener of the program's own is its own, whatever listens on that port of the pod. */
static int own(const char *port)
{
	const char *at[] = {"127.0.0.1", "::1"};
	for (int i = 0; i < 2; i++) {
		struct addrinfo hints = {.ai_socktype = SOCK_STREAM}, *r;
		struct sockaddr_storage from, peer, name;
		socklen_t n = sizeof from, pn = sizeof peer, nn = sizeof name;
		char b[16] = "";
		int one = 1;
		getaddrinfo(at[i], port, &hints, &r);
		int l = socket(r->ai_family, SOCK_STREAM, 0), c = socket(r->ai_family, SOCK_STREAM, 0);
		setsockopt(l, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
		if (bind(l, r->ai_addr, r->ai_addrlen) || listen(l, 1)) { perror("listen"); return 1; }
		if (connect(c, r->ai_addr, r->ai_addrlen)) { perror("connect"); return 1; }
		int s = accept(l, (void *)&from, &n);
		write(s, "own", 3);
		read(c, b, sizeof b - 1);
		getpeername(s, (void *)&peer, &pn);
		getsockname(c, (void *)&name, &nn);
		printf("own %s %s %d\n", at[i], b, n == pn && n == nn && !memcmp(&from, &peer, n) && !memcmp(&from, &name, n));
		close(l); close(c); close(s);
		freeaddrinfo(r);
	}
	return 0;
}

struct attempt { const char *to; int type, nonblock; char said[200]; };

static void *attempt(void *v)
{
	struct attempt *a = v;
	struct addrinfo hints = {.ai_socktype = a->type, .ai_flags = AI_NUMERICHOST}, *r;
	getaddrinfo(a->to, "1", &hints, &r);
	int fd = socket(r->ai_family, a->type | (a->nonblock ? SOCK_NONBLOCK : 0), 0), err = 0;
	socklen_t n = sizeof err;
	struct pollfd q = {fd, a->type == SOCK_STREAM ? POLLOUT : POLLIN, 0};
	int e = connect(fd, r->ai_addr, r->ai_addrlen) ? errno : 0;
	char b[8];
	if (a->type == SOCK_DGRAM) {
		int sent = send(fd, "x", 1, 0) < 0 ? errno : 0;
		poll(&q, 1, 5000);
		int got = recv(fd, b, sizeof b, MSG_DONTWAIT) < 0 ? errno : 0;
		snprintf(a->said, sizeof a->said, "udp %s: connect %s, send %s, recv %s", a->to, strerror(e), strerror(sent), strerror(got));
	} else if (a->nonblock) {
		poll(&q, 1, 150000);
		if (q.revents == POLLERR) // tcp_poll takes no lock: a failure may be half told
			poll(&q, 1, 1000);
		getsockopt(fd, SOL_SOCKET, SO_ERROR, &err, &n);
		snprintf(a->said, sizeof a->said, "tcp %s: %s, events %x, %s", a->to, strerror(e), q.revents, strerror(err));
	} else {
		snprintf(a->said, sizeof a->said, "tcp %s: %s", a->to, strerror(e));
	}
	close(fd);
	freeaddrinfo(r);
	return 0;
}

static int errnos(char **to, int count)
{
	struct attempt a[64];
	pthread_t t[64];
	int n = 0;
	for (int i = 0; i < count && n < 60; i++)
		for (int kind = 0; kind < 3; kind++)
			a[n++] = (struct attempt){to[i], kind == 2 ? SOCK_DGRAM : SOCK_STREAM, kind == 1, ""};
	for (int i = 0; i < n; i++) pthread_create(&t[i], 0, attempt, &a[i]);
	for (int i = 0; i < n; i++) { pthread_join(t[i], 0); puts(a[i].said); }
	return 0;
}

static int serve(int port, int count) {
	int one = 1, l = socket(AF_INET6, SOCK_STREAM, 0);
	struct sockaddr_in6 a = {.sin6_family = AF_INET6, .sin6_port = htons(port)};
	setsockopt(l, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
	if (bind(l, (void *)&a, sizeof a) || listen(l, 16)) { perror("listen"); return 1; }
	socklen_t n = sizeof a;
	getsockname(l, (void *)&a, &n);
	printf("listening %d\n", ntohs(a.sin6_port));
	fflush(stdout);
	while (count--) {
		struct sockaddr_in6 p, peer, at;
		n = sizeof p;
		int c = accept(l, (void *)&p, &n);
		socklen_t pn = sizeof peer, an = sizeof at;
		char b[4096], method[16] = "", path[256] = "", ends[400], body[700], head[900];
		ssize_t k = read(c, b, sizeof b - 1);
		b[k < 0 ? 0 : k] = 0;
		sscanf(b, "%15s %255s", method, path);
		getsockname(c, (void *)&at, &an);
		getpeername(c, (void *)&peer, &pn);
		char h[3][64];
		inet_ntop(AF_INET6, &p.sin6_addr, h[0], sizeof h[0]);
		inet_ntop(AF_INET6, &at.sin6_addr, h[1], sizeof h[1]);
		inet_ntop(AF_INET6, &peer.sin6_addr, h[2], sizeof h[2]);
		snprintf(ends, sizeof ends, "%s %d at %s %d peer %s %d", h[0], ntohs(p.sin6_port), h[1], ntohs(at.sin6_port), h[2], ntohs(peer.sin6_port));
		snprintf(body, sizeof body, "c program: %s %s from %s\n", method, path, ends);
		snprintf(head, sizeof head, "HTTP/1.1 200 OK\r\nContent-Length: %zu\r\nConnection: close\r\n\r\n%s", strlen(body), body);
		write(c, head, strlen(head));
		close(c);
		printf("served %s %s %s\n", method, path, ends);
		fflush(stdout);
	}
	return 0;
}

int main(int argc, char **argv) {
	if (argc > 3 && !strcmp(argv[1], "serve")) return serve(atoi(argv[2]), atoi(argv[3]));
	if (argc > 2 && !strcmp(argv[1], "own")) return own(argv[2]);
	if (argc > 2 && !strcmp(argv[1], "errnos")) return errnos(argv + 2, argc - 2);
	return look();
}
