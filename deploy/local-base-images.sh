#!/usr/bin/env bash
# Makes base images for deploy/Dockerfile where no registry can be reached: a small Debian from a Debian mirror
# (debootstrap, as root) and, if asked for, the same with a C compiler and this machine's Rust.
#
#   deploy/local-base-images.sh            # simsiam-base:local       for --build-arg RUNTIME_IMAGE=
#   deploy/local-base-images.sh --build    # simsiam-build:local too  for --build-arg BUILD_IMAGE=
set -euo pipefail

mirror=${DEBIAN_MIRROR:-https://deb.debian.org/debian}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

has_image() { docker image inspect "$1" >/dev/null 2>&1; }

# Imports the folder $1 as the image $2, with further Dockerfile instructions as arguments.
import() {
    local folder=$1 image=$2
    shift 2
    tar --directory "$folder" --exclude=./var/cache/apt/archives --exclude=./var/lib/apt/lists --create . |
        docker import "$@" - "$image"
}

if ! has_image simsiam-base:local; then
    debootstrap --variant=minbase --include=ca-certificates,tini bookworm "$scratch/base" "$mirror"
    import "$scratch/base" simsiam-base:local
fi

if [ "${1:-}" = --build ] && ! has_image simsiam-build:local; then
    debootstrap --variant=minbase --include=ca-certificates,gcc,libc6-dev,binutils bookworm "$scratch/build" "$mirror"
    # The toolchain itself, not rustup's proxies, which look for their settings in a home folder.
    cp --archive "$(rustc --print sysroot)" "$scratch/build/opt/rust"
    import "$scratch/build" simsiam-build:local \
        --change 'ENV PATH=/opt/rust/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin' \
        --change 'ENV CARGO_HOME=/usr/local/cargo'
fi
