#!/bin/sh
# Asks the policy every question of cases.json, in the engine and with the limits of the server. What follows test.sh goes to
# `portcullis policy test`: --coverage, --watch, --junit FILE.
set -eu
case $0 in */*) cd "${0%/*}" ;; esac
portcullis=${PORTCULLIS_BIN:-portcullis}
[ -e policy-name.bundle ] || ./build.sh
exec "$portcullis" policy test policy-name.bundle --cases cases.json "$@"
