#!/bin/sh
# Makes policy-name.wasm of policy.js and an engine for it, and writes it as policy-name.bundle.
#
# TENANT and VERSION say for whom and which; what follows build.sh goes to `portcullis policy build`.
set -eu
case $0 in */*) cd "${0%/*}" ;; esac
portcullis=${PORTCULLIS_BIN:-portcullis}

missing() {
    echo "build.sh: $1 is missing: $2" >&2
    exit 1
}

command -v node >/dev/null || missing "Node.js 20 or newer" "apt-get install nodejs npm"
[ -d node_modules/@bytecodealliance/componentize-js ] || missing componentize-js "npm ci --ignore-scripts"
command -v "$portcullis" >/dev/null || missing portcullis "put it into PATH, or name it in PORTCULLIS_BIN"

node componentize.js policy-name.wasm
exec "$portcullis" policy build policy-name.wasm --tenant "${TENANT:-acme}" --policy policy-name --version "${VERSION:-1}" \
    --memory 32MiB -o policy-name.bundle "$@"
