#!/bin/sh
# Compiles policy.c to policy-name.wasm, and writes it as policy-name.bundle.
#
# With zig's C compiler, or the one that CC names, for example CC="clang-19 --target=wasm32".
# TENANT and VERSION say for whom and which; what follows build.sh goes to `portcullis policy build`.
set -eu
case $0 in */*) cd "${0%/*}" ;; esac
portcullis=${PORTCULLIS_BIN:-portcullis}

missing() {
    echo "build.sh: $1 is missing: $2" >&2
    exit 1
}

if [ -n "${CC-}" ]; then
    set -- "$CC" "$@"
elif command -v zig >/dev/null; then
    set -- "zig cc --target=wasm32-freestanding" "$@"
elif command -v python3 >/dev/null && python3 -c 'import ziglang' 2>/dev/null; then
    set -- "python3 -m ziglang cc --target=wasm32-freestanding" "$@"
else
    missing "a C compiler for WebAssembly" "pip install --require-hashes -r requirements.txt"
fi
command -v "$portcullis" >/dev/null || missing portcullis "put it into PATH, or name it in PORTCULLIS_BIN"

cc=$1
shift
# With the names of functions, for test.sh --coverage; what a worker is given has none.
# shellcheck disable=SC2086 # a compiler and its flags
$cc -Os -g1 -fdebug-compilation-dir=. -std=c11 -Wall -Wextra -nostdlib -Wl,--no-entry -Wl,-z,stack-size=16384 \
    -o policy-name.wasm policy.c portcullis.c
exec "$portcullis" policy build policy-name.wasm --tenant "${TENANT:-acme}" --policy policy-name --version "${VERSION:-1}" \
    -o policy-name.bundle "$@"
