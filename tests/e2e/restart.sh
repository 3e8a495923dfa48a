# shellcheck shell=bash disable=SC2034,SC2154
# A restart behind a socket that systemd has opened: nobody is refused, and what was on its way is taken up where it was.

restart() {
    local blob size ended=$work/asked.end clients=() n
    echo "# restart"
    involved=(larder refused)
    blob=$(upstream_manifest library/hello latest | jq -r '.layers | max_by(.size).digest')
    size=$(upstream_manifest library/hello latest | jq -r '.layers | max_by(.size).size')
    check "larder starts behind a socket that is not its own" start_larder_empty start_larder_held
    check "the upstream is stopped" stop_registry
    check "the upstream is back, with an empty log" start_registry

    : >"$work/log/refused"
    for n in {1..8}; do ask_until "$ended" >"$work/asked.$n" 2>>"$work/log/refused" & clients+=($!); done
    check "a layer is cut off by a restart and got to its end after it" got_over_a_restart "$blob"
    for n in {1..5}; do check "restart $n" restarted; done
    touch "$ended"
    wait "${clients[@]}"
    same "each of $(cat "$work"/asked.* | wc -l) new connections was answered" "200" "$(sort -u "$work"/asked.*)"
    same "none was refused or cut off" "nobody" "$(cat "$work/log/refused" && [[ -s $work/log/refused ]] || echo nobody)"
    check "the upstream was asked for the rest alone" only_the_rest "$blob" "$size"
    check "larder ends when it is told to" stop larder
}

# The socket is systemd's, and stays open while one larder ends and the next begins.
start_larder_held() {
    cat >"$work/held.toml" <<-END
		[server]
		listen = "systemd"
		shutdown_grace = "300ms"
		[cache]
		dir = "$work/cache"
		[upstream."docker.io"]
		url = "http://$registry"
		max_rate = "1MiB"
	END
    cat >"$work/held" <<-'END'
		#!/usr/bin/env bash
		trap 'ends=1; kill "$larder"' TERM
		until [[ ${ends:-} ]]; do
		    (LISTEN_PID=$BASHPID exec "$0.larder" serve --config "$0.toml") &
		    larder=$!
		    echo "$larder" >"$0.pid"
		    while kill -0 "$larder" 2>/dev/null; do wait "$larder"; done
		done
	END
    chmod +x "$work/held"
    ln -sf larder "$work/held.larder"
    start larder systemd-socket-activate --listen="$larder" "$work/held"
    ready larder answers "$larder"
}

# Each time by a new connection.
ask_until() {
    until [[ -e $1 ]]; do
        curl -sS --max-time 60 -o /dev/null -w '%{http_code}\n' "http://$larder/v2/" || true
        sleep 0.01
    done
}

restarted() {
    local before end=$((SECONDS + 20))
    before=$(<"$work/held.pid")
    kill -TERM "$before" || return 1
    until [[ $(<"$work/held.pid") != "$before" ]]; do ((SECONDS < end)) && sleep 0.05 || return 1; done
    answers "$larder"
}

got_over_a_restart() {
    local got end=$((SECONDS + 30)) url=http://$larder/v2/library/hello/blobs/$1
    curl -sS -o "$work/part" "$url" &
    got=$!
    until [[ $(stat -c %s "$work/part" 2>/dev/null || echo 0) -gt 1000000 ]]; do ((SECONDS < end)) && sleep 0.05 || return 1; done
    restarted || return 1
    ! wait "$got" || return 1
    bounded curl -sS -C - -o "$work/part" "$url" && same_digest "$1" "$work/part"
}

# By the upstream's log, some part at its end is all that was asked for again.
only_the_rest() {
    local sent
    sent=$(sed -nE "s|.*\"GET /v2/library/hello/blobs/$1[^\"]*\" (20[06]) ([0-9]+) .*|\1 \2|p" "$work/log/registry")
    echo "$sent"
    awk -v size="$2" '$1 == 200 { whole++ } $1 == 206 && $2 > 1 && $2 < size { rest++ } END { exit !(whole == 1 && rest == 1) }' <<<"$sent"
}
