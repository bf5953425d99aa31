#!/usr/bin/env bash
# Everything that only a GPU can show, in one go: is it right, how fast is it.
#
#   tests/gpu.sh build FOLDER    here, where Rust is; no GPU and no CUDA toolkit is needed
#   FOLDER/gpu.sh check          there, where a GPU is; needs its driver, NVRTC and the CUDA headers, no Rust
#   FOLDER/gpu.sh time           there: a table of milliseconds and images/s; beside PyTorch with PEER=torch
#   FOLDER/gpu.sh train DATA     there: CIFAR-10 by the paper's recipe, EPOCHS epochs, and what its features are worth
#   FOLDER/gpu.sh compare DATA   there: the same in PyTorch, if there is one
#
# DEVICE=cpu checks the same on the CPU, to try the script itself.
set -euo pipefail

build() {
    local folder=$1
    cd "$(dirname "$0")/.."
    mkdir -p "$folder"
    # Names and paths of the compiled tests and of the benchmark, from cargo's own messages.
    local package target
    for target in "simsiam --features cuda --lib" "simsiam --features cuda --test parity" \
        "simsiam --features cuda --test trainer" "simsiam --features cuda --bench phases" \
        "collective --features nccl --lib"; do
        package=${target%% *}
        # shellcheck disable=SC2086 # several words
        cargo test --release --locked --no-run --message-format=json -p $target |
            sed -n 's/.*"executable":"\([^"]*\)".*/\1/p' | while read -r program; do
            local name
            name=$(basename "$program")
            name=${name%-*}
            if [ "$name" = "$package" ]; then name=$package-units; fi
            strip -o "$folder/$name" "$program"
        done
    done
    cargo build --release --workspace --features cuda --locked --bin coordinator --bin evaluate
    for program in coordinator evaluate; do
        strip -o "$folder/$program" "target/release/$program"
    done
    cp -r crates/simsiam/tests/fixtures "$folder/fixtures"
    cp tests/gpu.sh tests/torch_cifar10.py tests/torch_step.py "$folder/"
    echo "built: $folder; take it to the GPU and say $folder/gpu.sh check"
}

check() {
    local program
    for program in simsiam-units collective-units parity trainer; do
        echo "== $program on $SIMSIAM_DEVICE"
        "./$program" --test-threads=1 --quiet ${FILTER:+"$FILTER"}
    done
    for program in simsiam-units parity; do
        echo "== $program on $SIMSIAM_DEVICE, bf16 by warpgroups"
        SIMSIAM_WARPGROUPS=1 "./$program" --test-threads=1 --quiet ${FILTER:+"$FILTER"}
    done
    echo "== networks of full size on $SIMSIAM_DEVICE and on the CPU"
    ./parity --test-threads=1 --quiet --ignored --nocapture
    echo "== the quickstart, one worker"
    ./coordinator --workers 1 --device "$SIMSIAM_DEVICE" --out "$(mktemp -d)"
}

# Backbone, crop side, batch.
CASES=${CASES:-"resnet18,96,256 resnet18,96,512 resnet18,32,512 resnet50,96,256"}

time_steps() {
    local case precision
    for case in $CASES; do
        for precision in bf16 f32; do
            ./phases "$case,$precision"
            if [ "$precision" = bf16 ]; then SIMSIAM_WARPGROUPS=1 ./phases "$case,$precision"; fi
            if [ "${PEER:-}" = torch ]; then peer "$case" "$precision"; fi
        done
    done
}

# The same step in PyTorch, as it is and compiled.
peer() {
    local backbone side batch compile
    IFS=, read -r backbone side batch <<<"$1"
    for compile in "" compile; do
        # shellcheck disable=SC2086 # none is no argument
        python3 torch_step.py "$backbone" "$side" "$batch" "$2" $compile || true
    done
}

train() {
    local run=$PWD/runs/cifar10-gpu
    ./coordinator --config cifar10-resnet18 --workers 1 --device "$SIMSIAM_DEVICE" --name cifar10-gpu --out runs \
        --set data.path="$1" --set training.precision=bf16 --set training.shards=1 \
        --set training.epochs="${EPOCHS:-800}"
    ./evaluate knn "$run" --device "$SIMSIAM_DEVICE"
    ./evaluate linear "$run" --device "$SIMSIAM_DEVICE"
}

compare() {
    python3 torch_cifar10.py "$1" "${EPOCHS:-800}"
}

case ${1:-} in
build)
    build "${2:?a folder to build into}"
    exit
    ;;
esac
cd "$(dirname "$0")"
export SIMSIAM_DEVICE=${DEVICE:-cuda} SIMSIAM_FIXTURES=$PWD/fixtures
case ${1:-} in
check) check ;;
time) time_steps ;;
train) train "${2:?the folder of the images}" ;;
compare) compare "${2:?the folder of the images}" ;;
*)
    sed -n '2,11s/^# \{0,1\}//p' "$0"
    exit 2
    ;;
esac
