#!/bin/bash
# Guess, before looking: each thread's stack is a mapping of its own in /proc/self/maps, since a page that nobody may touch lies before each;
# so the end of a mapping is the end of a stack, and what profilers, debuggers and crash reporters find there belongs to that thread.
# Seen (glibc 2.43-7 of Debian, Linux 6.18): some mappings hold the stacks of several threads, one behind the other, 8 to 10 for 32. Guards are
# marks in the page tables now (madvise, MADV_GUARD_INSTALL), of which the map of memory says nothing; only a read that comes to one fails. With
# glibc 2.36 on the same kernel each stack has its mapping: 32. It is the same interpreter both times, with another C library.
# Needs x86-64 and Linux 6.13 or later. Exits 0 as long as that is so.
set -eu
directory=$(mktemp -d)
trap 'rm -rf "$directory"' EXIT
package=pool/main/g/glibc/libc6_2.43-7_amd64.deb
curl -sSfLo "$directory/libc6.deb" "http://deb.debian.org/debian/$package" ||
    curl -sSfLo "$directory/libc6.deb" "http://snapshot.debian.org/archive/debian/20261120T000000Z/$package"
dpkg-deb -x "$directory/libc6.deb" "$directory/glibc"
cat > "$directory/stacks.py" <<'END'
import os
import platform
import threading

ended = threading.Event()
threads = [threading.Thread(target=ended.wait) for _ in range(32)]
for thread in threads:
    thread.start()
with open("/proc/self/maps") as file:
    spans = [[int(end, 16) for end in line.split()[0].split("-")] for line in file]
mappings = {first for thread in threads for first, after in spans if first <= thread.ident < after}
print(os.confstr("CS_GNU_LIBC_VERSION"), "Linux", platform.release(), f"stacks of {len(threads)} threads in {len(mappings)} mappings")
ended.set()
raise SystemExit(len(mappings))
END
python=$(python3 -c 'import os, sys; print(os.path.realpath(sys.executable))')
libraries=$(find "$directory/glibc" -name libc.so.6 -printf '%h\n')
own=0 other=0
"$python" -I "$directory/stacks.py" || own=$?
"$libraries/ld-linux-x86-64.so.2" --library-path "$libraries:/usr/lib/x86_64-linux-gnu" "$python" -I "$directory/stacks.py" || other=$?
[ "$other" -ge 1 ] && [ "$other" -lt 32 ]
# that of the host may be as new
[ "$own" -ge 1 ] && [ "$own" -le 32 ]
