#!/bin/sh
# Healthy is a coordinator that listens, and a worker that is connected to one. Asked of the kernel's table of
# connections, so that nobody is called: a worker has no time to answer strangers while it trains. An evaluation has
# no port, and is healthy while it runs.
set -eu

# The arguments of the program under tini, one a line.
arguments() { tr '\0' '\n' </proc/1/cmdline; }

# The value of the flag $1, given as two arguments or as one.
flag() {
    arguments | awk -v name="$1" '
        is_next { print; exit }
        $0 == name { is_next = 1 }
        index($0, name "=") == 1 { print substr($0, length(name) + 2); exit }'
}

case $(arguments | grep -m 1 -E '^(.*/)?(coordinator|worker|evaluate)$') in
*coordinator)
    address=$(flag --listen)
    address=${address:-${SIMSIAM_LISTEN:-}}
    column=2 state=0A # its own address; LISTEN
    ;;
*worker)
    address=$(flag --join)
    address=${address:-${SIMSIAM_JOIN:-${MASTER_ADDR:-}:${MASTER_PORT:-}}}
    column=3 state=01 # the other's address; ESTABLISHED
    ;;
*) exit 0 ;;
esac
# In the host's network the table is the whole host's: what counts are sockets of this container's processes.
own_sockets() { find /proc/[0-9]*/fd -lname 'socket:*' -printf 'own %l\n' 2>/dev/null || true; }
{ own_sockets; cat /proc/net/tcp /proc/net/tcp6 2>/dev/null; } |
    awk -v column="$column" -v state="$state" -v port="$(printf ':%04X$' "${address##*:}")" '
        $1 == "own" { gsub(/[^0-9]/, "", $2); is_own[$2] = 1; next }
        $4 == state && $column ~ port && ($10 in is_own) { found = 1 }
        END { exit !found }'
