# shellcheck shell=sh
# What every example's `run` begins with: a temporary directory, `portcullis demo` with the example's listener, and a service behind
# the proxy. Started with --keep it stays until Ctrl-C; else it asks a few questions and ends all of it.
#
# PORTCULLIS_BIN names a built `portcullis`; PORT, SHOP_PORT and GATE_PORT are other ports than the configuration's 8080, 8081
# and, where the gateway listens on one, 8181. With SLOW set, decisions and those who wait for them have seconds: for a machine
# that may stop for a moment, where an answer in time is not what is looked at.
set -eu

examples=$(dirname -- "$here")
root=$(dirname -- "$examples")
port=${PORT-8080}
shop_port=${SHOP_PORT-8081}
gate_port=${GATE_PORT-8181}
slow=
if [ -n "${SLOW-}" ]; then
    slow='s/"250ms"/"5s"/; s/0\.25s/10s/; s/\(timeout [a-z]* \|_timeout \)1s/\110s/; s/timeout = 1000/timeout = 10000/; s/PATIENCE = 1$/PATIENCE = 10/'
fi
keep=${1-}
dir=
children=

case $keep in
    '' | --keep) ;;
    *) echo "usage: $0 [--keep]" >&2 && exit 64 ;;
esac

fail() {
    echo "$0: $1" >&2
    exit 1
}

# need PROGRAM COMMAND: what installs it if it is missing. Daemons lie where an ordinary user's PATH does not go.
PATH=$PATH:/usr/sbin
need() {
    command -v "$1" >/dev/null || fail "$1 is missing: $2"
}

# The built programs: the release's, else those of the tests.
find_portcullis() {
    portcullis=${PORTCULLIS_BIN-}
    for each in "$root/target/release/portcullis" "$root/target/debug/portcullis"; do
        if [ -z "$portcullis" ] && [ -x "$each" ]; then portcullis=$each; fi
    done
    [ -n "$portcullis" ] || fail "portcullis is missing: cargo build --release"
}

# begin FILE...: the files of this example with the places of this run, the demo, the service behind the proxy.
begin() {
    need curl 'apt-get install curl'
    need python3 'apt-get install python3'
    find_portcullis
    dir=$(mktemp -d /tmp/portcullis-example.XXXXXX)
    chmod 755 "$dir"
    trap 'end' EXIT
    trap 'exit 130' INT TERM
    for each in gateway.toml "$@"; do
        # By marks: a port may have the digits of another.
        sed "s/8080/<port>/g; s/8081/<shop>/g; s/8181/<gate>/g
            s/<port>/$port/g; s/<shop>/$shop_port/g; s/<gate>/$gate_port/g; s|/run/portcullis/gateway|$dir|g
            $slow" \
            "$here/$each" >"$dir/$each"
    done
    echo "starting the demo with $here/gateway.toml"
    "$portcullis" demo --keep --json --gateway "$dir/gateway.toml" >"$dir/demo" 2>"$dir/demo.errors" &
    demo=$!
    python3 "$examples/upstream.py" "$shop_port" &
    children="$!"
    until curl -s -o /dev/null "http://127.0.0.1:$shop_port/"; do
        kill -0 "$children" 2>/dev/null || fail "the service behind the proxy ended"
        sleep 0.1
    done
    until grep -q '"event":"keeping"' "$dir/demo"; do
        kill -0 "$demo" 2>/dev/null || { cat "$dir/demo" "$dir/demo.errors" >&2 && fail 'the demo ended'; }
        sleep 0.1
    done
    tokens=$(sed -n 's/.*"event":"start".*"dir":"\([^"]*\)".*/\1/p' "$dir/demo")
}

# start COMMAND...: the proxy, and waits until it listens and knows its routes; Traefik has 404 for everything until then.
start() {
    echo "starting $1"
    # Some write to where they are.
    (cd "$dir" && exec "$@") >"$dir/proxy.log" 2>&1 &
    proxy=$!
    children="$children $proxy"
    until answered=$(curl -s -o /dev/null -w '%{http_code}' "http://127.0.0.1:$port/") && [ "$answered" != 404 ]; do
        kill -0 "$proxy" 2>/dev/null || { cat "$dir/proxy.log" >&2 && fail "$1 ended"; }
        sleep 0.1
    done
}

# expect STATUS TEXT WHAT CURL-ARGUMENT...: the status, and a line that has to be in the answer ('' for any).
expect() {
    expected=$1 text=$2 what=$3
    shift 3
    got=$(curl -s -o "$dir/answer" -w '%{http_code}' --max-time 20 --path-as-is "$@") || true
    printf '%-62s %s\n' "$what" "$got"
    case $expected in
        closed) case $got in 2*) fail "open: $what" ;; esac ;;
        *) [ "$got" = "$expected" ] || { cat "$dir/answer" "$dir/proxy.log" >&2 && fail "$what: expected $expected"; } ;;
    esac
    if [ -n "$text" ] && ! grep -qi "$text" "$dir/answer"; then
        cat "$dir/answer" >&2
        fail "$what: expected \"$text\" in the answer"
    fi
}

# What the policy jwt-gate has to say, and what nobody has once the service is gone.
questions() {
    url=http://127.0.0.1:$port/v1/orders
    good="authorization: Bearer $(cat "$tokens/demo-orders")"
    expect 200 'x-auth-subject: demo' 'a good token; the service gets x-auth-subject' -H "$good" "$url"
    expect 200 'x-auth-subject: demo' 'and not the one that a client makes up' -H "$good" -H 'x-auth-subject: root' "$url"
    if grep -qi '^authorization:' "$dir/answer"; then fail 'the service got the token'; fi
    expect 401 '' 'no token' "$url"
    expect 403 '' 'a good token for something else' -H "authorization: Bearer $(cat "$tokens/demo-profile")" "$url"
    expect closed '' 'no token, and x-original-uri and x-forwarded-uri made up' \
        -H 'x-original-uri: /health' -H 'x-original-method: GET' -H 'x-forwarded-uri: /health' -H 'x-forwarded-method: GET' "$url"
    expect closed '' 'a good token and a path with two readings' -H "$good" "$url/../admin"
    stay "curl -i -H \"authorization: Bearer \$(cat $tokens/demo-orders)\" $url"
    stop_demo
    expect closed '' 'a good token, and Portcullis is gone' -H "$good" "$url"
    echo 'all as expected'
}

# With --keep: what to type, and Ctrl-C.
stay() {
    [ "$keep" = --keep ] || return 0
    printf '\nrunning until Ctrl-C; try\n  %s\n' "$1"
    wait "$demo"
}

stop_demo() {
    kill "$demo" 2>/dev/null || true
    wait "$demo" 2>/dev/null || true
}

end() {
    for each in $children; do kill "$each" 2>/dev/null || true; done
    [ -z "${demo-}" ] || stop_demo
    for each in $children; do wait "$each" 2>/dev/null || true; done
    rm -rf "$dir"
}
