#!/bin/sh
# Compiles policy.rego to policy-name.wasm, and writes it as policy-name.bundle.
#
# With the `opa` in PATH, or the one that OPA_BIN names. TENANT and VERSION say for whom and which; what follows build.sh
# goes to `portcullis policy build`.
set -eu
case $0 in */*) cd "${0%/*}" ;; esac
portcullis=${PORTCULLIS_BIN:-portcullis}
opa=${OPA_BIN:-opa}

missing() {
    echo "build.sh: $1 is missing: $2" >&2
    exit 1
}

command -v "$opa" >/dev/null || missing "OPA 0.27 to 1.9" "put its program \"opa\" into PATH, or name it in OPA_BIN"
command -v "$portcullis" >/dev/null || missing portcullis "put it into PATH, or name it in PORTCULLIS_BIN"

"$opa" build -t wasm -e gate/answer -o policy-name.tar.gz policy.rego data.json
"$portcullis" policy componentize policy-name.tar.gz -o policy-name.wasm
exec "$portcullis" policy build policy-name.wasm --tenant "${TENANT:-acme}" --policy policy-name --version "${VERSION:-1}" \
    -o policy-name.bundle "$@"
