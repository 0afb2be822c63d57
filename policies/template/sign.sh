#!/bin/sh
# Signs the bundle with release.key, or the key that KEY names, and looks at it as a registry would.
# Keep the key out of the repository: whoever has it signs as you do.
set -eu
case $0 in */*) cd "${0%/*}" ;; esac
portcullis=${PORTCULLIS_BIN:-portcullis}
key=${KEY:-release.key}
[ -e policy-name.bundle ] || ./build.sh
[ -f "$key" ] || "$portcullis" policy keygen --out "$key"
"$portcullis" policy sign policy-name.bundle --key "$key"
exec "$portcullis" policy verify policy-name.bundle --key "$key.pub" --tenant "${TENANT:-acme}" --policy policy-name
