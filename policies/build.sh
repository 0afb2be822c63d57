#!/bin/sh
# Rebuilds every component in this folder from its source, and the policy of template/ in the languages in which it is small.
# Those take what policies/languages.sh installs; Rego is compiled by OPA where OPA_BIN names it. Where a compiler is missing,
# what is committed stays, and is said.
#
#   policies/build.sh           builds, writes the .wasm files and digests.txt
#   policies/build.sh --check   builds elsewhere and compares with what is committed
#
# PORTCULLIS_BIN names a built `portcullis`; without it, cargo builds one.
# POLICY_TOOLCHAIN=rustup or =debian takes that one. Otherwise rustup's wasm32 target is used where it is installed and
# Debian's rustc-web where it is not; --check first looks for the toolchain that digests.txt names.
set -eu

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd -P)
root=$(dirname -- "$here")
target=wasm32-unknown-unknown
# Stack of a guest, bytes: what p256 needs, four times over.
stack=131072

rust_policies="ip-allowlist jwt-gate rate-class hash"
rust_hostile="import-wasi selective"
# Features of rego/adapter.
rego_adapters="policy regex time tokens yaml"
# Folders of template/. In Go, JavaScript and Python it has megabytes: tests/languages builds those.
languages="assemblyscript c rego rust"

main() {
    case "${1-}" in
        '') out=$here ;;
        --check) out=$(mktemp -d) && trap 'rm -rf "$out"' EXIT ;;
        *) fail "usage: policies/build.sh [--check]" ;;
    esac
    choose_toolchain "${1-}"
    build_modules
    write_components
    build_adapters
    write_languages
    case "${1-}" in
        --check) compare ;;
        *)
            write_digests >"$here/digests.txt"
            adapter_digests >"$here/rego/digests.txt"
            ;;
    esac
}

fail() {
    echo "policies/build.sh: $*" >&2
    exit 1
}

has_rustup_target() {
    command -v rustup >/dev/null && rustup target list --installed 2>/dev/null | grep -qx "$target"
}

has_debian() {
    [ -x /usr/bin/rustc ] && [ -x /usr/bin/cargo ] && [ -x /usr/bin/wasm-ld ] &&
        [ -f "$(/usr/bin/rustc --print sysroot)/lib/rustlib/src/rust/library/Cargo.lock" ]
}

debian_name() {
    echo "$(/usr/bin/rustc --version); $(/usr/bin/wasm-ld --version); Debian rustc-web with rust-web-src"
}

named_toolchain() {
    sed -n 's/^# toolchain: //p' "$here/digests.txt"
}

# Sets `toolchain`, what to call it, and `name`, what exactly it is.
choose_toolchain() {
    toolchain=${POLICY_TOOLCHAIN-}
    if [ -z "$toolchain" ]; then
        if [ "$1" = --check ] && has_debian && [ "$(debian_name)" = "$(named_toolchain)" ]; then
            toolchain=debian
        elif has_rustup_target; then
            toolchain=rustup
        else
            toolchain=debian
        fi
    fi
    case $toolchain in
        rustup)
            has_rustup_target || fail "rustup has no $target; install it: rustup target add $target"
            name="$(rustc --version); rustup"
            ;;
        debian)
            has_debian || fail "no toolchain for $target; install one of them:
    rustup target add $target
    apt-get install rustc-web cargo-web rust-web-src lld"
            name=$(debian_name)
            ;;
        *) fail "POLICY_TOOLCHAIN is \"$toolchain\", expected \"rustup\" or \"debian\"" ;;
    esac
    echo "building with $name" >&2
}

# The same bytes in every checkout: no path of this machine may be left in what is built.
build_modules() {
    cargo_home=${CARGO_HOME:-$HOME/.cargo}
    adapter_flags="--remap-path-prefix=$here=/policies --remap-path-prefix=$cargo_home=/cargo"
    flags="$adapter_flags -C link-arg=-zstack-size=$stack"
    modules=$here/target/$target/release
    set -- build --quiet --locked --release --target "$target" --target-dir "$here/target"
    for each in $rust_policies $rust_hostile; do
        set -- "$@" --package "$each"
    done
    cd "$here"
    unset CARGO_ENCODED_RUSTFLAGS RUSTUP_TOOLCHAIN CARGO_BUILD_TARGET
    if [ "$toolchain" = rustup ]; then
        RUSTFLAGS="$flags" cargo "$@"
    else
        # rustc-web has no core for this target: cargo builds it from rust-web-src, which is a nightly option.
        RUSTFLAGS="$flags -C linker=/usr/bin/wasm-ld" RUSTC_BOOTSTRAP=1 RUSTC=/usr/bin/rustc \
            /usr/bin/cargo "$@" -Zbuild-std=core,alloc
    fi
    cd "$root"
}

write_components() {
    if [ -z "${PORTCULLIS_BIN-}" ]; then
        cargo build --quiet --locked --bin portcullis
        PORTCULLIS_BIN=${CARGO_TARGET_DIR:-$root/target}/debug/portcullis
    fi
    for each in $rust_policies; do
        component "$modules/$(echo "$each" | tr - _).wasm" "$each/$each.wasm"
    done
    for each in $rust_hostile; do
        component "$modules/$(echo "$each" | tr - _).wasm" "hostile/$each.wasm"
    done
    for each in "$here"/hostile/*.wat "$here"/since-0.1/*.wat; do
        component "$each" "$(basename "$(dirname "$each")")/$(basename "$each" .wat).wasm"
    done
}

component() {
    mkdir -p "$out/$(dirname "$2")"
    "$PORTCULLIS_BIN" policy componentize "$1" -o "$out/$2"
}

# What Rego policies are merged with (rego/README.md). Not components: the builder moves them, so the linker leaves behind
# which bytes are addresses.
build_adapters() {
    mkdir -p "$out/rego/modules"
    for each in $rego_adapters; do
        adapter "$each"
    done
}

adapter() {
    feature=$1
    set -- build --quiet --locked --release --target "$target" --target-dir "$here/target/rego" --package rego-adapter \
        --no-default-features --features "$feature"
    cd "$here"
    if [ "$toolchain" = rustup ]; then
        CARGO_PROFILE_RELEASE_STRIP=false RUSTFLAGS="$adapter_flags" cargo "$@"
    else
        CARGO_PROFILE_RELEASE_STRIP=false RUSTFLAGS="$adapter_flags -C linker=/usr/bin/wasm-ld" RUSTC_BOOTSTRAP=1 \
            RUSTC=/usr/bin/rustc /usr/bin/cargo "$@" -Zbuild-std=std,panic_abort
    fi
    cd "$root"
    python3 "$here/rego/strip.py" "$here/target/rego/$target/release/rego_adapter.wasm" "$out/rego/modules/$feature.wasm"
}

# One policy in many languages, each built as its own project does.
write_languages() {
    tools=$root/target/languages
    projects=$(mktemp -d)
    # Rust is compiled by the toolchain that the other policies are.
    for each in $languages; do
        mkdir -p "$out/template/$each"
        "$PORTCULLIS_BIN" policy new policy --lang "$each" --dir "$projects/$each" >/dev/null
        [ "$each" = assemblyscript ] && ln -s "$tools/assemblyscript/node_modules" "$projects/$each/node_modules"
        if [ "$each" = rego ]; then
            rego "$projects/rego/policy"
        elif PATH="$tools/python/bin:$PATH" PORTCULLIS_BIN="$PORTCULLIS_BIN" POLICY_TOOLCHAIN="$toolchain" \
            CARGO_TARGET_DIR="$here/target" "$projects/$each/build.sh" --no-code >"$projects/log" 2>&1; then
            component "$projects/$each/policy.wasm" "template/$each/policy.wasm"
        elif [ "$each" != rust ] && grep -q 'is missing' "$projects/log"; then
            echo "not built in $each: run policies/languages.sh" >&2
            [ "$out" = "$here" ] || cp "$here/template/$each/policy.wasm" "$out/template/$each/"
        else
            cat "$projects/log" >&2
            fail "the policy of template/$each does not build"
        fi
    done
    rm -rf "$projects"
}

# Of what OPA made, which is committed, with the digests of what it made it of.
rego() {
    made=$here/template/rego/opa.tar.gz
    if [ -n "${OPA_BIN-}" ]; then
        (cd "$1" && "$OPA_BIN" build --target wasm --entrypoint gate/answer --output "$projects/opa.tar.gz" --bundle .)
        if [ "$out" = "$here" ]; then
            cp "$projects/opa.tar.gz" "$made"
            (cd "$here/template/rego" && sha256sum opa.tar.gz policy/data.json policy/policy.rego >opa.txt)
        else
            cmp "$projects/opa.tar.gz" "$made"
        fi
    fi
    (cd "$here/template/rego" && sha256sum --quiet --check opa.txt) ||
        fail "template/rego/opa.tar.gz is not of what lies beside it; run policies/build.sh with OPA_BIN=/usr/local/bin/opa"
    "$PORTCULLIS_BIN" policy componentize "$made" --manifest "$1/policy.toml" -o "$out/template/rego/policy.wasm"
}

adapter_digests() {
    echo "# SHA-256 of the adapters of Rego policies. Written by build.sh."
    echo "# toolchain: $name"
    (cd "$out/rego/modules" && LC_ALL=C && export LC_ALL && sha256sum ./*.wasm | sed 's| \./| |')
}

write_digests() {
    echo "# SHA-256 of every component here. Written by build.sh."
    echo "# toolchain: $name"
    (cd "$out" && LC_ALL=C && export LC_ALL && sha256sum ./*/*.wasm ./template/*/*.wasm | sed 's| \./| |')
}

compare() {
    write_digests >"$out/digests.txt"
    adapter_digests >"$out/rego/digests.txt"
    if cmp -s "$out/digests.txt" "$here/digests.txt" && (cd "$here" && sha256sum --quiet --check digests.txt) &&
        cmp -s "$out/rego/digests.txt" "$here/rego/digests.txt" &&
        (cd "$here/rego/modules" && sha256sum --quiet --check ../digests.txt); then
        echo "all components are what their sources give" >&2
        return
    fi
    if [ "$name" != "$(named_toolchain)" ]; then
        echo "policies/build.sh: everything builds, but not compared:" >&2
        echo "    this toolchain: $name" >&2
        echo "    digests.txt:    $(named_toolchain)" >&2
        return
    fi
    diff -u "$here/digests.txt" "$out/digests.txt" >&2 || true
    diff -u "$here/rego/digests.txt" "$out/rego/digests.txt" >&2 || true
    (cd "$here" && sha256sum --quiet --check digests.txt) || true
    fail "committed components are not what their sources give; run policies/build.sh and commit the result"
}

main "$@"
