package sys

import "golang.org/x/sys/unix"

const sysNewfstatat = unix.SYS_FSTATAT // the same call: its number has another name in x/sys
