#!/bin/sh
# Compiles assembly/ to policy-name.wasm, and writes it as policy-name.bundle.
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
asc=node_modules/assemblyscript/bin/asc.js
[ -f "$asc" ] || missing AssemblyScript "npm ci --ignore-scripts"
command -v "$portcullis" >/dev/null || missing portcullis "put it into PATH, or name it in PORTCULLIS_BIN"

# With the names of functions, for test.sh --coverage; what a worker is given has none.
node "$asc" assembly/world.ts -o policy-name.wasm -O3 --debug --runtime stub --use abort=
exec "$portcullis" policy build policy-name.wasm --tenant "${TENANT:-acme}" --policy policy-name --version "${VERSION:-1}" \
    -o policy-name.bundle "$@"
