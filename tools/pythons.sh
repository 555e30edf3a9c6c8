#!/bin/sh
# Run the tests with Debian's newer Pythons, on what is committed here: trixie has 3.13, sid the newest. Needs root, debootstrap and git.
#   tools/pythons.sh [SUITE...] [-- COMMAND...]     SUITE: [trixie sid]     COMMAND: runs in the clone there [make test]
# The folders (about 2 GB each) are kept in SERVD_PYTHONS [/var/tmp/servd-pythons] for the next time. MIRROR: of Debian, [debootstrap's].
set -eu
here=$(cd "$(dirname "$0")/.." && pwd)
home=${SERVD_PYTHONS:-/var/tmp/servd-pythons}
suites=""
while [ $# -gt 0 ] && [ "$1" != -- ]; do suites="$suites $1"; shift; done
[ $# -eq 0 ] || shift
[ $# -gt 0 ] || set -- make test
[ "$(id -u)" = 0 ] || { echo "tools/pythons.sh: needs root, for debootstrap and chroot" >&2; exit 1; }
command -v debootstrap >/dev/null || { echo "tools/pythons.sh: install debootstrap first" >&2; exit 1; }

# $1: suite; $2: where. What is half made is made anew
system() {
    [ ! -e "$2/.made" ] || return 0
    rm -rf "$2" && mkdir -p "$2" || return
    # shellcheck disable=SC2086 # no mirror: no argument
    debootstrap --variant=minbase --include=ca-certificates,curl,git,iproute2,make,nginx-light,openssl,procps,python3-venv,util-linux \
        "$1" "$2" ${MIRROR:-} >"$2.log" 2>&1 || { tail "$2.log" >&2; return 1; }
    # what pip needs to reach its index from this host; not over what is there: links, which lead out of the folder
    rm -rf "$2/etc/ssl/certs" && cp -rL /etc/ssl/certs "$2/etc/ssl/" && { [ ! -e /etc/pip.conf ] || cp /etc/pip.conf "$2/etc/"; } && touch "$2/.made"
}

# $1: where. What git ignores stays: the environment of the last time
checkout() {
    { [ -e "$1/servd/.git" ] || git clone --quiet --no-checkout "$here" "$1/servd"; } &&
        git -C "$1/servd" fetch --quiet "$here" HEAD &&
        git -C "$1/servd" checkout --quiet --force --detach FETCH_HEAD
}

# $1: where; then the command. Mounts and processes of its own, which end with it; the network is the host's, for pip
within() {
    # shellcheck disable=SC2016 # expanded there
    unshare --mount --pid --fork --kill-child sh -euc '
        root=$1; shift
        mount -t proc proc "$root/proc"
        mount --rbind /sys "$root/sys"
        mount --rbind /dev "$root/dev"
        mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
        cp -L /etc/resolv.conf "$root/etc/"
        unset TMPDIR
        # the shell stays, as the process 1 that takes in and reaps what tests orphan. Ctrl-C, which who is started in the background
        # ignores, is one of the things that are tested
        exec env --default-signal=INT,QUIT,HUP chroot "$root" sh -euc "cd /servd; python3 --version; \"\$@\" || exit" sh "$@"
    ' sh "$@"
}

failed=""
for suite in ${suites:-trixie sid}; do
    root=$home/$suite
    { system "$suite" "$root" && checkout "$root" && within "$root" "$@"; } || failed="$failed $suite"
done
[ -z "$failed" ] || { echo "tools/pythons.sh: failed on$failed" >&2; exit 1; }
