/*
 * Prints, on one line, the user and group IDs that the process really has and
 * its effective capabilities. Test images hold it three times: plain, setuid
 * root, and with file capabilities.
 */
#include <stdio.h>
#include <string.h>
#include <unistd.h>

int main(void)
{
	char line[256], caps[64] = "?";
	FILE *f = fopen("/proc/self/status", "r");

	while (f && fgets(line, sizeof(line), f))
		if (sscanf(line, "CapEff: %63s", caps) == 1)
			break;
	if (f)
		fclose(f);
	printf("uid=%u euid=%u gid=%u egid=%u capeff=%s\n",
	       (unsigned)getuid(), (unsigned)geteuid(),
	       (unsigned)getgid(), (unsigned)getegid(), caps);
	return 0;
}
