/* Prints how it was executed. */
#define _GNU_SOURCE
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void line(const char *file, const char *key)
{
	char b[512];
	FILE *f = fopen(file, "r");
	while (f && fgets(b, sizeof b, f))
		if (!strncmp(b, key, strlen(key)))
			fputs(b, stdout);
	if (f)
		fclose(f);
}

int main(int argc, char **argv)
{
	char exe[4096] = "", cwd[4096] = "";
	int n = 0;
	struct dirent *e;
	for (int i = 0; i < argc; i++)
		printf("[%s] ", argv[i]);
	readlink("/proc/self/exe", exe, sizeof exe - 1);
	getcwd(cwd, sizeof cwd);
	printf("exe %s cwd %s VAR %s\n", exe, cwd, getenv("VAR") ? getenv("VAR") : "-");
	line("/proc/self/comm", "");
	line("/proc/self/status", "SigBlk");
	line("/proc/self/status", "TracerPid");
	DIR *d = opendir("/proc/self/fd");
	while (d && (e = readdir(d)))
		n += e->d_name[0] != '.';
	printf("descriptors %d\n", n);
	return 7;
}
