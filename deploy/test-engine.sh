# What the tests on a Docker Engine share; they source it. It sets patience_s, and needs the function skip and, for the
# image, the folder scratch and the variable SIMSIAM_IMAGE.
# shellcheck shell=bash disable=SC2154

docker info >/dev/null 2>&1 || skip "no Docker Engine answers"
if docker compose version >/dev/null 2>&1; then
    compose() { docker compose --compatibility "$@"; } # containers have the names that docker-compose gives them
elif docker-compose version >/dev/null 2>&1; then
    compose() { docker-compose "$@"; }
else
    skip "there is neither docker compose nor docker-compose"
fi

# For a run that takes one minute alone on two cores.
patience_s=400

# Waits until the command succeeds.
wait_until() {
    local deadline=$((SECONDS + patience_s))
    until "$@"; do
        [ "$SECONDS" -lt "$deadline" ] || { echo "waited in vain for: $*"; return 1; }
        sleep 1
    done
}

# Makes the image SIMSIAM_IMAGE of the programs in the folder $1, without their debug information: a tenth of the size.
make_image() {
    local program
    mkdir -p ../target/deploy
    for program in coordinator worker evaluate; do
        strip -o "../target/deploy/$program" "$1/$program" || { echo "build first"; return 1; }
    done
    ./local-base-images.sh >"$scratch/base.log" 2>&1 ||
        skip "no base image could be made: $(tail -n 1 "$scratch/base.log")"
    build --quiet --file Dockerfile --target runtime-prebuilt --tag "$SIMSIAM_IMAGE" \
        --build-arg PROGRAMS=target/deploy --build-arg RUNTIME_IMAGE=simsiam-base:local .. 2>"$scratch/build.log" ||
        { cat "$scratch/build.log"; return 1; }
}

# A client from 23 on hands builds to its plugin buildx, which may be missing; Debian's older one has BuildKit in it.
build() {
    DOCKER_BUILDKIT=1 docker build "$@" || DOCKER_BUILDKIT=1 /usr/bin/docker build "$@"
}

# The hash in a progress.json.
state_hash() { grep state_hash | cut -d '"' -f 4; }

# The hash that a run with the arguments has at its end in one process, by the coordinator in the folder $1.
hash_of_one_process() {
    "$1/coordinator" --out "$scratch/runs" "${@:2}" >"$scratch/alone.log" 2>&1 || { cat "$scratch/alone.log" >&2; return 1; }
    state_hash <"$scratch/runs/quickstart/checkpoints/step-000160/progress.json"
}
