#!/bin/sh
# Makes policy-name.wasm of policy.py and an interpreter for it, and writes it as policy-name.bundle.
#
# TENANT and VERSION say for whom and which; what follows build.sh goes to `portcullis policy build`.
set -eu
case $0 in */*) cd "${0%/*}" ;; esac
portcullis=${PORTCULLIS_BIN:-portcullis}

missing() {
    echo "build.sh: $1 is missing: $2" >&2
    exit 1
}

command -v componentize-py >/dev/null || missing componentize-py "pip install --require-hashes -r requirements.txt"
command -v "$portcullis" >/dev/null || missing portcullis "put it into PATH, or name it in PORTCULLIS_BIN"

PYTHONDONTWRITEBYTECODE=1 componentize-py -d wit -w gate componentize --stub-wasi app -o policy-name.wasm
exec "$portcullis" policy build policy-name.wasm --tenant "${TENANT:-acme}" --policy policy-name --version "${VERSION:-1}" \
    --memory 64MiB -o policy-name.bundle "$@"
