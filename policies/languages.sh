#!/bin/sh
# Installs what the policies of policies/template are built with, in the versions that they name, into target/languages:
# a virtual environment of Python for Go, C and Python, and packages of npm for JavaScript and AssemblyScript. Nothing of
# a package is run while it is installed. Rust is as in build.sh, Rego takes a program of OPA.
#
# Takes python3 with venv, node and npm: apt-get install python3-venv nodejs npm
set -eu

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd -P)
there=$(dirname -- "$here")/target/languages

missing() {
    echo "policies/languages.sh: $1 is missing: apt-get install $2" >&2
    exit 1
}

command -v npm >/dev/null || missing npm "nodejs npm"
python=/usr/bin/python3
[ -x "$python" ] || python=python3
"$python" -c 'import ensurepip, venv' 2>/dev/null || missing "python3 with venv" python3-venv

mkdir -p "$there"
[ -x "$there/python/bin/pip" ] || "$python" -m venv "$there/python"
for language in c go python; do
    set -- "$@" -r "$here/template/$language/requirements.txt"
done
"$there/python/bin/pip" install --quiet --disable-pip-version-check --no-compile --no-deps --only-binary :all: --require-hashes "$@" &
pip=$!
for language in assemblyscript js; do
    mkdir -p "$there/$language"
    cp "$here/template/$language/package.json" "$here/template/$language/package-lock.json" "$there/$language/"
    npm ci --silent --ignore-scripts --no-audit --no-fund --prefix "$there/$language"
done
wait "$pip"
