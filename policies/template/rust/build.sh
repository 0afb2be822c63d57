#!/bin/sh
# Compiles this policy to policy-name.wasm, and writes it as policy-name.bundle. The same source gives the same bytes in
# every directory.
#
# POLICY_TOOLCHAIN=rustup or =debian takes that one. Otherwise rustup's wasm32 target is used where it is installed and
# Debian's rustc-web where it is not. CARGO_TARGET_DIR says where to build, if not in target/.
# TENANT and VERSION say for whom and which; what follows build.sh goes to `portcullis policy build`.
set -eu

case $0 in */*) cd "${0%/*}" ;; esac
here=$(pwd -P)
target=wasm32-unknown-unknown
output=${CARGO_TARGET_DIR:-$here/target}
portcullis=${PORTCULLIS_BIN:-portcullis}
# Stack of a guest, bytes.
stack=131072

main() {
    compile
    command -v "$portcullis" >/dev/null || missing portcullis "put it into PATH, or name it in PORTCULLIS_BIN"
    cp "$output/$target/release/policy.wasm" policy-name.wasm
    exec "$portcullis" policy build policy-name.wasm --tenant "${TENANT:-acme}" --policy policy-name \
        --version "${VERSION:-1}" -o policy-name.bundle "$@"
}

missing() {
    echo "build.sh: $1 is missing: $2" >&2
    exit 1
}

has_rustup_target() {
    command -v rustup >/dev/null && rustup target list --installed 2>/dev/null | grep -qx "$target"
}

has_debian() {
    [ -x /usr/bin/rustc ] && [ -x /usr/bin/cargo ] && [ -x /usr/bin/wasm-ld ] &&
        [ -f "$(/usr/bin/rustc --print sysroot)/lib/rustlib/src/rust/library/Cargo.lock" ]
}

compile() {
    toolchain=${POLICY_TOOLCHAIN-}
    if [ -z "$toolchain" ]; then
        if has_rustup_target; then toolchain=rustup; else toolchain=debian; fi
    fi
    # Cargo itself says nothing of where this directory is. The flags are the same for every policy, so what policies have in
    # common is compiled once where they share CARGO_TARGET_DIR.
    flags="--remap-path-prefix=${CARGO_HOME:-$HOME/.cargo}=/cargo -C link-arg=-zstack-size=$stack"
    set -- build --quiet --locked --release --target "$target" --target-dir "$output"
    unset CARGO_ENCODED_RUSTFLAGS CARGO_BUILD_TARGET
    case $toolchain in
        rustup)
            has_rustup_target || missing "rustup with $target" "rustup target add $target"
            RUSTFLAGS="$flags" cargo "$@"
            ;;
        debian)
            has_debian || missing "a toolchain for $target" "install one of them:
    rustup target add $target
    apt-get install rustc-web cargo-web rust-web-src lld"
            # rustc-web has no core for this target: cargo builds it from rust-web-src, which is a nightly option.
            unset RUSTUP_TOOLCHAIN
            RUSTFLAGS="$flags -C linker=/usr/bin/wasm-ld" RUSTC_BOOTSTRAP=1 RUSTC=/usr/bin/rustc \
                /usr/bin/cargo "$@" -Zbuild-std=core,alloc
            ;;
        *)
            echo "build.sh: POLICY_TOOLCHAIN is \"$toolchain\", expected \"rustup\" or \"debian\"" >&2
            exit 1
            ;;
    esac
}

main "$@"
