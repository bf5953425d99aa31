#!/usr/bin/env bash
# Everything that only a GPU can show, in one go: is it right, how fast is it.
#
#   tests/gpu.sh build FOLDER    here, where Rust is; no GPU and no CUDA toolkit is needed
#   FOLDER/gpu.sh run            there, where a GPU is; needs its driver, NVRTC and the CUDA headers, no Rust
#
# Prints what passed and a table of images/s. DEVICE=cpu runs the same on the CPU, to try the script itself.
set -euo pipefail

build() {
    local folder=$1
    cd "$(dirname "$0")/.."
    mkdir -p "$folder"
    # Names and paths of the compiled tests and of the benchmark, from cargo's own messages.
    for target in "--test parity" "--test trainer" "--bench step"; do
        # shellcheck disable=SC2086 # two words
        cargo test --release --workspace --features cuda --locked --no-run --message-format=json $target |
            sed -n 's/.*"executable":"\([^"]*\)".*/\1/p' | while read -r program; do
            local name
            name=$(basename "$program")
            strip -o "$folder/${name%-*}" "$program"
        done
    done
    cargo build --release --workspace --features cuda --locked --bin coordinator
    strip -o "$folder/coordinator" target/release/coordinator
    cp -r crates/simsiam/tests/fixtures "$folder/fixtures"
    cp tests/gpu.sh "$folder/gpu.sh"
    echo "built: $folder; take it to the GPU and say $folder/gpu.sh run"
}

run() {
    cd "$(dirname "$0")"
    export SIMSIAM_DEVICE=${DEVICE:-cuda} SIMSIAM_FIXTURES=$PWD/fixtures
    echo "== checks on $SIMSIAM_DEVICE"
    ./parity --test-threads=1
    ./trainer --test-threads=1
    echo "== the quickstart, one worker"
    ./coordinator --workers 1 --device "$SIMSIAM_DEVICE" --out "$(mktemp -d)"
    echo "== images/s of one step and of features"
    for precision in f32 bf16; do
        for batch in ${BATCHES:-256 512}; do
            echo "-- $precision, batch $batch"
            SIMSIAM_PRECISION=$precision SIMSIAM_BATCH=$batch ./step --bench | grep -E "resnet|thrpt|time:"
        done
    done
}

case ${1:-} in
build) build "${2:?a folder to build into}" ;;
run) run ;;
*)
    sed -n '2,8s/^# \{0,1\}//p' "$0"
    exit 2
    ;;
esac
