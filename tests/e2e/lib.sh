# shellcheck shell=bash disable=SC2154
# What every case needs: the hidden machine, processes, larder and its upstream, and the checks.

registry=127.0.0.1:5050
larder=127.0.0.1:5000

# The engines' default places, and what the machine's owner configured there, must neither help nor be changed.
hide_the_machine() {
    local place
    ip link set lo up
    for place in /run /dev/shm /opt /var/lib /var/cache /var/tmp /etc/docker /etc/containerd /etc/containers /etc/cni; do
        [[ ! -d $place ]] || mount -t tmpfs tmpfs "$place"
    done
    [[ -x $work/larder ]] || { echo "TMPDIR lies in a folder that is hidden from the engines: choose another" >&2 && exit 2; }
    mkdir -p /run/lock /etc/containers
    echo '{"default": [{"type": "insecureAcceptAnything"}]}' >/etc/containers/policy.json
}

# === Processes ===

declare -A pids=()

# start NAME COMMAND...: in the background, its output at the end of log/NAME
start() {
    local name=$1
    shift
    "$@" >>"$work/log/$name" 2>&1 &
    pids[$name]=$!
}

# Fails if the process had ended before, or must be killed: either is a server's bug.
stop() {
    local pid=${pids[$1]:-} end=$((SECONDS + 10))
    [[ -n $pid ]] || return 0
    unset "pids[$1]"
    kill -TERM "$pid" || return 1
    while kill -0 "$pid" 2>/dev/null; do
        if ((SECONDS > end)); then
            kill -KILL "$pid" 2>/dev/null || true
            return 1
        fi
        sleep 0.1
    done
}

bounded() { timeout --kill-after=5 60 "$@"; }

# ready NAME COMMAND...: waits until the command succeeds, but not for a process that has ended
ready() {
    local name=$1 end=$((SECONDS + 30))
    shift
    until "$@" >/dev/null 2>&1; do
        ((SECONDS < end)) && kill -0 "${pids[$name]}" || return 1
        sleep 0.1
    done
}

answers() { curl -fsS --max-time 2 -o /dev/null "http://$1/v2/"; }

# === larder and its upstream ===

# With an empty log, which is then the record of what was asked of it.
start_registry() {
    cat >"$work/registry.yml" <<-END
		version: 0.1
		log: {level: warn, accesslog: {disabled: false}}
		storage: {filesystem: {rootdirectory: $work/registry}}
		http: {addr: $registry}
	END
    : >"$work/log/registry"
    start registry docker-registry serve "$work/registry.yml"
    ready registry answers "$registry"
}

stop_registry() { stop registry && ! answers "$registry"; }

start_larder() {
    cat >"$work/larder.toml" <<-END
		[server]
		listen = "$larder"
		[cache]
		dir = "$work/cache"
		max_size = "2GiB"
		min_free = "0%"
		[mirror]
		tag_ttl = "1s"
		[upstream."docker.io"]
		url = "http://$registry"
		[upstream."registry.test"]
		url = "http://$registry"
	END
    start larder "$work/larder" serve --config "$work/larder.toml"
    ready larder answers "$larder"
}

# start_larder_empty [COMMAND]: what starts it is start_larder, if nothing else
start_larder_empty() {
    stop larder || true
    keeps_secrets || return
    rm -rf "$work/cache"
    : >"$work/log/larder"
    "${1:-start_larder}"
}

# === Secrets ===

# Every password of these cases holds the word canary, whose base64 begins in one of three ways.
with_secrets() { grep -rlaF -e canary -e Y2FuYXJ5 -e NhbmFye -e jYW5hcn "$@"; }

# Of all that larder writes: its log, its cache.
keeps_secrets() {
    local told
    told=$(with_secrets "$work"/log/larder* "$work/cache" 2>/dev/null) || return 0
    echo "a secret is in $told" && return 1
}

# === Checks ===

passed=0 failed=0
involved=() # the logs that are shown when a check fails

# check SENTENCE COMMAND...
check() {
    local sentence=$1
    shift
    if "$@" >"$work/log/check" 2>&1; then pass "$sentence"; else fail "$sentence"; fi
}

# same SENTENCE EXPECTED ACTUAL: equal, and not both empty
same() {
    if [[ -n $2 ]] && diff <(echo "$2") <(echo "$3") >"$work/log/check"; then pass "$1"; else fail "$1"; fi
}

pass() {
    passed=$((passed + 1))
    echo "ok  - $1"
}

fail() {
    local log
    failed=$((failed + 1))
    echo "FAIL - $1"
    for log in check "${involved[@]}"; do
        [[ -s $work/log/$log ]] || continue
        echo "     -- $log"
        tail -n 12 "$work/log/$log" | cut -c -400 | sed 's/^/     /'
    done
}

summary() {
    keeps_secrets >"$work/log/check" || fail "no secret is in larder's log or cache"
    echo "$passed passed, $failed failed"
    exit $((failed > 0 || passed == 0))
}
