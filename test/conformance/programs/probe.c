/* Prints what a program sees of its machine; run natively in a pod and under stead it must print
   the same. Built static against musl. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <netdb.h>
#include <poll.h>
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
		struct sockaddr_in6 p;
		n = sizeof p;
		int c = accept(l, (void *)&p, &n);
		char b[4096], h[64], method[16] = "", path[256] = "", body[512], head[600];
		ssize_t k = read(c, b, sizeof b - 1);
		b[k < 0 ? 0 : k] = 0;
		sscanf(b, "%15s %255s", method, path);
		inet_ntop(AF_INET6, &p.sin6_addr, h, sizeof h);
		const char *from = strncmp(h, "::ffff:", 7) ? h : h + 7;
		snprintf(body, sizeof body, "c program: %s %s from %s\n", method, path, from);
		snprintf(head, sizeof head, "HTTP/1.1 200 OK\r\nContent-Length: %zu\r\nConnection: close\r\n\r\n%s", strlen(body), body);
		write(c, head, strlen(head));
		close(c);
		printf("served %s %s %s\n", method, path, from);
		fflush(stdout);
	}
	return 0;
}

int main(int argc, char **argv) {
	if (argc > 3) return serve(atoi(argv[2]), atoi(argv[3]));
	return look();
}
