#!/usr/bin/env bash
# Trains on two hosts with a Docker Engine each, by compose.node.yaml, and compares the end of the run with that of one
# process outside: the state's hash must be the same. Each host is a further engine on this machine with a network, a
# name, mounts and process numbers of its own; a cable joins the two. Needs the programs in target/release, root, and
# Docker with its dockerd; where something is missing it says that it skipped.
#
#   deploy/test-hosts.sh                # a worker of host two is killed; in a second run its cable is cut: 3 minutes
#   deploy/test-hosts.sh unplug         # or kill_worker: one of the two only
#   PROGRAMS=folder SIMSIAM_IMAGE=simsiam deploy/test-hosts.sh    # other programs, and an image that is there already
set -euo pipefail
programs=$(realpath --canonicalize-missing "${PROGRAMS:-$(dirname "$0")/../target/release}")
cd "$(dirname "$0")"

skip() { echo "hosts: SKIPPED, $*"; exit 0; }
[ "$(id -u)" = 0 ] || skip "only root can make hosts"
for needed in docker dockerd ip nsenter pgrep setpriv unshare; do
    command -v "$needed" >/dev/null || skip "there is no $needed"
done
# shellcheck source=deploy/test-engine.sh
. ./test-engine.sh

# What makes a program's surroundings a host. With the last two, /proc shows that host's processes, and they end if
# unshare is killed.
host_of_its_own=(unshare --net --uts --mount --pid --fork --mount-proc --kill-child)
"${host_of_its_own[@]}" true 2>/dev/null || skip "no namespaces can be made"

own_image=${SIMSIAM_IMAGE:-}
export COMPOSE_PROJECT_NAME=simsiam-hosts COMPOSE_FILE=compose.node.yaml
export SIMSIAM_IMAGE=${own_image:-simsiam:test} RUN=quickstart WORKERS=4 THREADS=1
declare -A addresses=([one]=10.98.0.1 [two]=10.98.0.2) processes=()
export JOIN=${addresses[one]}:7070
flags=(--set training.epochs=10 --set checkpoint.every_steps=20 --set evaluation.every_checkpoints=0)
export COORDINATOR_FLAGS="${flags[*]} --heartbeat-timeout-s 5"
scratch=$(mktemp -d)
export SIMSIAM_TOKEN_FILE=$scratch/token DATA=$scratch/images
od -An -tx1 -N32 /dev/urandom | tr -d ' \n' >"$SIMSIAM_TOKEN_FILE"
mkdir "$DATA"

# Runs a command with the engine of the host $1.
on() { DOCKER_HOST=unix://$scratch/$1/engine.sock "${@:2}"; }
node() { compose --profile coordinator --profile cpu "$@"; }

clean_up() {
    local result=$? host
    for host in "${!processes[@]}"; do
        [ "$result" != 0 ] || break
        echo "--- host $host"
        on "$host" node logs --no-color --tail 30 2>&1 || true
    done
    for host in "${!processes[@]}"; do
        on "$host" node down --volumes --timeout 1 >/dev/null 2>&1 || true
        # The engine is its host's first process: the kernel ends all the others with it, and takes the mounts and
        # the cable away. Only then does unshare end, so nothing writes any more when the folder is removed.
        kill -KILL "$(pgrep --parent "${processes[$host]}")" 2>/dev/null || true
        wait "${processes[$host]}" 2>/dev/null || true
    done
    rm -rf "$scratch"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# Starts the engine of the host $1. It has its own containerd, whose children end up in this host, and its own settings,
# since the machine's may contradict these flags. It needs no network for containers: they use the host's.
start_host() {
    local folder=$scratch/$1
    mkdir "$folder"
    echo '{}' >"$folder/engine.json"
    # Whoever kills this script ends its hosts too.
    # shellcheck disable=SC2016
    setpriv --pdeathsig KILL "${host_of_its_own[@]}" sh -c 'echo "$0" >/proc/sys/kernel/hostname && exec "$@"' "$1" \
        dockerd --config-file "$folder/engine.json" --host "unix://$folder/engine.sock" --pidfile "$folder/engine.pid" \
        --data-root "$folder/data" --exec-root "$folder/exec" --bridge none --iptables=false --ip6tables=false \
        >"$folder/engine.log" 2>&1 </dev/null &
    processes[$1]=$!
}
answers_or_ended() { on "$1" docker info >/dev/null 2>&1 || ! kill -0 "${processes[$1]}" 2>/dev/null; }
in_network_of() { nsenter --target "${processes[$1]}" --net "${@:2}"; }

start_host one
start_host two
for host in one two; do
    wait_until answers_or_ended "$host"
    kill -0 "${processes[$host]}" 2>/dev/null ||
        skip "no further engine starts: $(tail -n 1 "$scratch/$host/engine.log")"
done
# As between machines of a cluster, frames are large.
ip link add name cable mtu 9000 netns "${processes[one]}" type veth \
    peer name cable mtu 9000 netns "${processes[two]}" || skip "this kernel has no cable between two networks"
for host in one two; do
    in_network_of "$host" ip link set lo up
    in_network_of "$host" ip address add "${addresses[$host]}/24" dev cable
    in_network_of "$host" ip link set cable up
done

[ -n "$own_image" ] || make_image "$programs"
for host in one two; do docker save "$SIMSIAM_IMAGE" | on "$host" docker load --quiet >/dev/null; done

# A file of the run, from its volume on host one; empty while it is not there.
show() { cat "$scratch/one/data/volumes/${COMPOSE_PROJECT_NAME}_runs/_data/$RUN/$1" 2>/dev/null || true; }
# How many lines of the run's file $1 match $2.
count() { show "$1" | grep --count "$2" || true; }
steps() { count metrics.jsonl '"loss"'; }
has_steps() { [ "$(steps)" -ge "$1" ]; }
has_lost() { [ "$(count journal.jsonl '"lost"')" -ge "$1" ]; }
# Whether $2 workers, those that came back counted again, were reached at the address of the host $1.
has_joined_from() { [ "$(count journal.jsonl "\"joined\".*\"${addresses[$1]}:")" -ge "$2" ]; }
# The containers of the host $1 that have the service $2.
containers() { on "$1" docker ps --all --quiet --filter "label=com.docker.compose.service=$2"; }
# The states of these.
states() { containers "$@" | on "$1" xargs docker inspect --format '{{.State.Status}} {{.State.ExitCode}}' | uniq; }
have_ended() { [ "$(states "$@")" = "exited 0" ]; }

begin() {
    { on one compose --profile coordinator --profile cpu up --detach --scale worker-cpu=2 &&
        on two compose --profile cpu up --detach --scale worker-cpu=2; } >"$scratch/up.log" 2>&1 ||
        { cat "$scratch/up.log"; return 1; }
}

# What goes wrong on host two while the run goes on, until its workers are back: its engine starts them again.
kill_worker() {
    # shellcheck disable=SC2016
    on two docker exec "$(containers two worker-cpu | head -n 1)" sh -c 'kill -9 $(pidof worker)'
    wait_until has_joined_from two 3
}
# No connection is closed by this: what is sent finds no answer, until the cable is whole again.
unplug() {
    in_network_of two ip link set cable down
    wait_until has_lost 2
    wait_until has_steps $(($(steps) + 20))
    in_network_of two ip link set cable up
    wait_until has_joined_from two 4
}

# What is in the folders of a worker on host two that may hold images or a run.
contents() {
    local folder
    for folder in data runs cache; do
        on two docker cp "$1:/$folder" - | tar --list || return
    done
}
# Whether the workers there have blocks of images, and nothing else.
have_only_blocks() {
    local worker found block='cache/blocks/[0-9a-f]+\.block'
    for worker in $(containers two worker-cpu); do
        found=$(contents "$worker")
        grep --quiet --extended-regexp "^$block$" <<<"$found" ||
            { echo "a worker of host two has no blocks"; return 1; }
        if grep --invert-match --extended-regexp "^($block|(data|runs|cache|cache/blocks)/)$" <<<"$found"; then
            echo "a worker of host two has these, which are no blocks"
            return 1
        fi
    done
}

expected=$(hash_of_one_process "$programs" "${flags[@]}")

[ "$#" -gt 0 ] || set -- kill_worker unplug
for mishap in "$@"; do
    began=$SECONDS
    begin
    wait_until has_steps 30
    for host in one two; do has_joined_from "$host" 2 || { echo "host $host has not two workers"; exit 1; }; done
    "$mishap"
    wait_until have_ended one coordinator
    wait_until have_ended one worker-cpu
    wait_until have_ended two worker-cpu
    found=$(show checkpoints/step-000160/progress.json | state_hash)
    echo "hosts: $mishap: $((SECONDS - began)) s, state ${found:0:8}"
    [ "$found" = "$expected" ] || { echo "expected the state $expected of one process"; exit 1; }
    have_only_blocks
    for host in one two; do on "$host" node down --volumes --timeout 1 >/dev/null 2>&1; done
done
echo "hosts: the same state as one process, and host two had blocks of images only"
