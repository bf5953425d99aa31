#!/usr/bin/env bash
# Runs the kernels that are written in CUDA C++ on a CPU, for every tile and precision, and looks whether their sums are
# right: nothing here has a GPU. Of instructions that only a GPU has, tests/kernels/instructions.h says what they do.
set -euo pipefail
cd "$(dirname "$0")/kernels"

if ! command -v c++ >/dev/null; then
    echo "kernels: not checked, there is no C++ compiler (c++)"
    exit
fi
folder=$(mktemp -d)
trap 'rm -r "$folder"' EXIT
kernels=$PWD/../../crates/simsiam/src/kernels/cube/cuda

# Kernel, then what crates/simsiam/src/kernels/cube/convolution.rs defines for it.
check() {
    local kernel=$1 bf16=$2 warpgroups=$3 rows=$4 columns=$5 warp_rows=$6 warp_columns=$7 stages=$8
    local name="$kernel of $rows by $columns, bf16 $bf16, warpgroups $warpgroups" is_weight=0
    if [ "$kernel" = convolution_weight ]; then is_weight=1; fi
    local program=$folder/$kernel-$bf16-$warpgroups-$rows-$columns
    # GCC knows neither `#pragma unroll` nor which of the functions a kernel needs.
    c++ -std=c++17 -O1 -Wall -Wno-unknown-pragmas -Wno-unused -U_FORTIFY_SOURCE -DKERNEL="\"$kernels/$kernel.cu\"" -DIS_WEIGHT=$is_weight \
        -DBF16="$bf16" -DWARPGROUPS="$warpgroups" -DCACHED=0 -DROWS="$rows" -DCOLUMNS="$columns" \
        -DWARP_ROWS="$warp_rows" -DWARP_COLUMNS="$warp_columns" -DSTAGES="$stages" convolutions.cpp -o "$program"
    if "$program"; then echo "right: $name"; else
        echo "WRONG: $name"
        return 1
    fi
}
export -f check
export folder kernels

for kernel in convolution convolution_weight; do
    for precision in "1 1" "1 0" "0 0"; do
        for tile in "128 128 64 64 3" "128 64 64 32 4" "64 128 32 64 4"; do
            echo "$kernel $precision $tile"
        done
    done
done | xargs -P "$(nproc)" -L 1 bash -euc 'check "$@"' check
