#!/bin/sh
# Install the stock programs that tests and demos use, where this user may and they are missing.
set -eu
missing=
need() { command -v "$1" >/dev/null 2>&1 || missing="$missing $2"; }
need aria2c aria2
need chromium chromium
need transmission-daemon transmission-daemon
need nginx nginx-light
need bwrap bubblewrap
need patchelf patchelf
need mmdebstrap mmdebstrap
need zstd zstd
need softhsm2-util softhsm2
need busybox busybox
need gcc gcc
need g++ g++
need strip binutils
need shellcheck shellcheck
need opentracker opentracker
need ip iproute2
need dpkg-deb dpkg
[ -e /usr/share/keyrings/debian-archive-keyring.gpg ] || missing="$missing debian-archive-keyring"
[ -z "$missing" ] && exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
    apt-get update -qq >/dev/null
    there=
    for package in $missing; do
        if apt-cache show "$package" >/dev/null 2>&1; then
            there="$there $package"
        else
            echo "apt has no $package; tests that need it are skipped" >&2
        fi
    done
    [ -z "$there" ] && exit 0
    echo "installing$there"
    # shellcheck disable=SC2086
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $there >/dev/null
else
    echo "not installed:$missing; tests that need them are skipped" >&2
fi
