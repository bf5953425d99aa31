#!/usr/bin/env bash
# Trains in containers, and compares the end of the run with that of one process outside: the state's hash must be the
# same. Needs the programs in target/release, root, and a Docker Engine; without one it says that it skipped.
#
#   deploy/test-compose.sh                  # four workers, one of them killed; an evaluation: two minutes
#   deploy/test-compose.sh rolling disconnect pause join restart coordinator disk    # other mishaps, one run each
set -euo pipefail
cd "$(dirname "$0")"

skip() { echo "compose: SKIPPED, $*"; exit 0; }
# shellcheck source=deploy/test-engine.sh
. ./test-engine.sh

export COMPOSE_PROJECT_NAME=simsiam-test SIMSIAM_IMAGE=simsiam:test RUN=quickstart WORKERS=4
# Not where a coordinator of this machine has its own dashboard.
export DASHBOARD_PORT=17080
flags=(--set training.epochs=10 --set checkpoint.every_steps=20 --set evaluation.every_checkpoints=0)
export COORDINATOR_FLAGS="${flags[*]} --heartbeat-timeout-s 5"
runs=${COMPOSE_PROJECT_NAME}_runs
scratch=$(mktemp -d)
export SIMSIAM_TOKEN_FILE=$scratch/token DATA=$scratch/images
mkdir "$DATA"
od -An -tx1 -N32 /dev/urandom | tr -d ' \n' >"$SIMSIAM_TOKEN_FILE"
clean_up() {
    local result=$?
    [ "$result" = 0 ] || compose logs --no-color --tail 30 2>&1 || true
    compose down --volumes --timeout 1 >/dev/null 2>&1 || true
    docker rm --force "$runs" >/dev/null 2>&1 || true
    docker volume rm --force "$runs" >/dev/null 2>&1 || true
    rm -rf "$scratch"
}
trap clean_up EXIT

make_image ../target/release

# A file of the run, from its volume; empty while it is not there.
show() { docker run --rm --volume "$runs:/runs:ro" "$SIMSIAM_IMAGE" sh -c "cat /runs/$RUN/$1 2>/dev/null" || true; }
steps() { show metrics.jsonl | grep -c '"loss"' || true; }
container() { echo "${COMPOSE_PROJECT_NAME}_$1"; }

has_steps() { [ "$(steps)" -ge "$1" ]; }
has_ended() { [ "$(docker inspect --format '{{.State.Status}} {{.State.ExitCode}}' "$(container coordinator_1)")" = "exited $1" ]; }
has_card() { [ -n "$(show 'evaluations/knn-step-000160-*.json')" ]; }
has_left() { [ "$(show journal.jsonl | grep -c '"left"')" -ge "$1" ]; }
says() { docker logs "$(container coordinator_1)" 2>&1 | grep -q "$1"; }
begin() { compose up --detach >"$scratch/up.log" 2>&1 || { cat "$scratch/up.log"; return 1; }; }

# What goes wrong while the run goes on, and what is done about it.
kill_worker() { docker exec "$(container worker_3)" sh -c 'kill -9 $(pidof worker)'; }
disconnect() {
    docker network disconnect "${COMPOSE_PROJECT_NAME}_training" "$(container worker_2)"
    sleep 15
    docker network connect --alias worker "${COMPOSE_PROJECT_NAME}_training" "$(container worker_2)"
}
pause() {
    docker pause "$(container worker_2)" >/dev/null
    sleep 15
    docker unpause "$(container worker_2)" >/dev/null
}
join() {
    docker rm --force "$(container worker_4)" >/dev/null
    wait_until has_steps 60
    begin
}
# Each worker in turn is told to end, and started again: none of them is lost.
rolling() {
    local worker
    for worker in 1 2 3 4; do
        docker restart "$(container "worker_$worker")" >/dev/null
        wait_until has_left "$worker"
    done
    [ "$(show journal.jsonl | grep -c '"lost"')" = 0 ] || { echo "a worker was lost, and did not leave"; return 1; }
}
restart() {
    compose stop >/dev/null 2>&1
    docker inspect --format '  stopped: {{.Name}} ended with {{.State.ExitCode}}' "$(container coordinator_1)"
    begin
}
coordinator() { docker exec "$(container coordinator_1)" sh -c 'kill -9 $(pidof coordinator)'; }
disk() {
    # The volume is a file system of 7 MiB, held by a container that does nothing else; a checkpoint is 3 MiB.
    wait_until says "No space left"
    docker logs "$(container coordinator_1)" 2>&1 | grep -m 1 "No space left" | sed 's/^/  /'
    mount -o remount,size=100m "$(docker volume inspect --format '{{.Mountpoint}}' "$runs")"
}

# Writes down the longest time in which no step was made, until it is killed; it runs in the background.
watch_steps() {
    exec python3 - "$(docker volume inspect --format '{{.Mountpoint}}' "$runs")/$RUN/metrics.jsonl" "$scratch/longest" <<'PYTHON'
import sys, time
metrics, answer = sys.argv[1:]
size, since, longest = 0, None, 0.0
while True:
    try:
        now = sum(1 for line in open(metrics) if '"loss"' in line)
    except OSError:
        now = size
    if now != size:
        if since is not None:
            longest = max(longest, time.monotonic() - since)
        size, since = now, time.monotonic()
        open(answer, "w").write(f"{longest:.1f}")
    time.sleep(0.05)
PYTHON
}

expected=$(hash_of_one_process ../target/release "${flags[@]}")

for mishap in "${@:-kill_worker}"; do
    if [ "$mishap" = disk ]; then
        docker volume create --opt type=tmpfs --opt device=tmpfs --opt o=size=7m,mode=1777 "$runs" >/dev/null
        docker run --detach --name "$runs" --volume "$runs:/runs" "$SIMSIAM_IMAGE" sleep infinity >/dev/null
        printf 'volumes: { runs: { external: true, name: %s } }\n' "$runs" >"$scratch/disk.yaml"
        export COMPOSE_FILE=compose.yaml:$scratch/disk.yaml
    fi
    began=$SECONDS
    begin
    watch_steps &
    watcher=$!
    wait_until has_steps 30
    "$mishap"
    wait_until has_ended 0
    kill "$watcher"
    found=$(show checkpoints/step-000160/progress.json | state_hash)
    echo "compose: $mishap: $((SECONDS - began)) s, longest time without a step $(cat "$scratch/longest") s, state ${found:0:8}"
    [ "$found" = "$expected" ] || { echo "expected the state $expected of one process"; exit 1; }
    wait_until has_card
    compose down --volumes --timeout 1 >/dev/null 2>&1
    docker rm --force "$runs" >/dev/null 2>&1 || true
    docker volume rm --force "$runs" >/dev/null
    unset COMPOSE_FILE
done
echo "compose: the same state as one process, and the evaluation's card"
