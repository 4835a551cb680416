// As hello/main.go, with plain system calls of the C library's: built static against musl where that is there.
#include <arpa/inet.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

static void check(int ok, const char *what) {
	if (!ok) {
		perror(what);
		exit(1);
	}
}

static const char *text(struct sockaddr_in *a) {
	static char s[2][64];
	static int n;
	char ip[INET_ADDRSTRLEN];
	n = !n;
	snprintf(s[n], sizeof s[n], "%s:%d", inet_ntop(AF_INET, &a->sin_addr, ip, sizeof ip), ntohs(a->sin_port));
	return s[n];
}

static void look(void) {
	struct addrinfo hints = {.ai_family = AF_INET, .ai_socktype = SOCK_STREAM}, *db;
	check(getaddrinfo("db", "5432", &hints, &db) == 0, "getaddrinfo");
	int c = socket(AF_INET, SOCK_STREAM, 0);
	check(connect(c, db->ai_addr, db->ai_addrlen) == 0, "connect");
	check(write(c, "hello\n", 6) == 6, "write");
	char answer[128];
	ssize_t n = read(c, answer, sizeof answer);
	check(n > 0, "read");
	struct sockaddr_in here, there;
	socklen_t size = sizeof here;
	check(getsockname(c, (void *)&here, &size) == 0 && getpeername(c, (void *)&there, &size) == 0, "names");
	char host[65], ip[INET_ADDRSTRLEN];
	struct stat st;
	check(gethostname(host, sizeof host) == 0 && stat("/etc/orders/config.yaml", &st) == 0, "look");
	printf("env    GREETING: %s\nhost   %s\nfile   /etc/orders/config.yaml: %ld bytes\n", getenv("GREETING"), host, (long)st.st_size);
	printf("name   db: %s\n", inet_ntop(AF_INET, &((struct sockaddr_in *)db->ai_addr)->sin_addr, ip, sizeof ip));
	printf("tcp    %s -> %s: %.*s", text(&here), text(&there), (int)n, answer);
	close(c);
}

int main(int argc, char **argv) {
	if (argc < 2)
		look();
	int l = socket(AF_INET, SOCK_STREAM, 0), yes = 1;
	setsockopt(l, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
	struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(8080)}, from;
	check(bind(l, (void *)&at, sizeof at) == 0 && listen(l, 8) == 0, "listen");
	printf("listening on 8080\n");
	fflush(stdout);
	socklen_t size = sizeof from;
	int c = accept(l, (void *)&from, &size);
	char request[4096] = {0}, path[256] = {0}, ip[INET_ADDRSTRLEN];
	check(c >= 0 && read(c, request, sizeof request - 1) > 0 && sscanf(request, "GET %255s", path) == 1, "accept");
	printf("got GET %s from %s\n", path, inet_ntop(AF_INET, &from.sin_addr, ip, sizeof ip));
	dprintf(c, "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nthe program on the laptop: GET %s\n", path);
	shutdown(c, SHUT_WR);
	while (read(c, request, sizeof request) > 0)
		;
	return 0;
}
