#!/bin/sh
# Has OPA compile policy/, and writes it as policy-name.bundle.
#
# With the `opa` in PATH, or the one that OPA_BIN names. policy/policy.toml says which rule decides. TENANT and VERSION say for
# whom and which; what follows build.sh goes to `portcullis policy build`.
set -eu
case $0 in */*) cd "${0%/*}" ;; esac
portcullis=${PORTCULLIS_BIN:-portcullis}
export OPA_BIN="${OPA_BIN:-opa}"

missing() {
    echo "build.sh: $1 is missing: $2" >&2
    exit 1
}

command -v "$OPA_BIN" >/dev/null || missing "OPA 1.0 or newer" "put its program \"opa\" into PATH, or name it in OPA_BIN"
command -v "$portcullis" >/dev/null || missing portcullis "put it into PATH, or name it in PORTCULLIS_BIN"

exec "$portcullis" policy build policy --tenant "${TENANT:-acme}" --policy policy-name --version "${VERSION:-1}" \
    -o policy-name.bundle "$@"
