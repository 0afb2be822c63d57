#!/bin/sh
# Asks the policy every question of cases.json, in the engine and with the limits of the server.
set -eu
case $0 in */*) cd "${0%/*}" ;; esac
portcullis=${PORTCULLIS_BIN:-portcullis}
[ -f policy-name.wasm ] || ./build.sh
exec "$portcullis" policy test policy-name.wasm --cases cases.json "$@"
