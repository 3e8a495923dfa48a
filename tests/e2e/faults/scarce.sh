# shellcheck shell=bash disable=SC2015,SC2016,SC2034,SC2154
# Of what the kernel gives there is no more: threads, ports.

scarce() {
    echo "# scarce"
    involved=(larder)
    check "the upstream starts" start_origin
    check "a resolver starts" start_resolver
    without_threads
    without_ports
    check "no pull ended well with wrong bytes" nobody_got_wrong_bytes
    stop resolver || true
    check "the upstream ends" stop origin
}

# A limit on threads is one of a user, and none of root's.
without_threads() {
    local cache=$work/threads/cache warm threads digests=() user=(setpriv --reuid 54321 --regid 54321 --clear-groups)
    install -d -o 54321 "$work/threads"
    chmod 755 "$work"
    under=("${user[@]}")
    check "larder starts as a user of its own" larder_by_name "$cache"
    under=()
    threads=$(find "/proc/${pids[larder]}/task" -mindepth 1 -maxdepth 1 | wc -l)
    check "no thread more than the $threads that it has" "${user[@]}" prlimit --pid "${pids[larder]}" --nproc="$threads:1000"
    for _ in 1 2 3 4 5 6 7 8 9 10 11 12; do digests+=("$(new_blob "$swift" 1M)"); done
    warm=$(new_blob "$swift" 1M)
    timed check "a blob is pulled from an upstream whose name must be resolved" pull "$swift" "$warm"
    check "soon ($took ms)" test "$took" -lt 2000
    check "twelve at once" pulls "$swift" "${digests[@]}"
    check "and again, now that they are here" pulls "$swift" "${digests[@]}"
    same "it has not one thread more" "$threads" "$(find "/proc/${pids[larder]}/task" -mindepth 1 -maxdepth 1 | wc -l)"
    check "that is told" log_says 'WARN .*no further thread for disk work'
    check "threads are to be had again" "${user[@]}" prlimit --pid "${pids[larder]}" --nproc=1000:1000
    check "what is new is kept" within 5 keeps_again "$cache"
    check "nothing has panicked" eval '! log_says panicked && [[ $(gauge larder_panics_total) == 0 ]]'
    check "nothing torn is visible" whole "$cache"
    check "the accounts are what lies on the disk" within 5 accounts_agree "$cache"
    check "larder ends when it is told to" stop larder
}

# Four connections to one place, and not one more.
without_ports() {
    local cache=$work/ports warm layers=() lost range first
    range=$(cat /proc/sys/net/ipv4/ip_local_port_range)
    warm=$(new_blob "$swift" 100k) lost=$(new_blob "$swift" 100k)
    for _ in 1 2 3 4; do layers+=("$(new_blob "$slow" 5M)"); done
    new_tag "$swift" latest "$warm"
    : >"$work/log/larder"
    check "larder starts" larder_on "$cache"
    check "an image is pulled" eval 'pull "$swift" "$warm" && tag_is fresh'
    # The clients have ports of their own.
    echo 'local-port = 40000-40999' >"$HOME/.curlrc"
    echo '61000 61003' >/proc/sys/net/ipv4/ip_local_port_range
    ss -K dst "${origin%:*}" dport = "${origin#*:}" >/dev/null 2>&1 || true
    pulls "$slow" "${layers[@]}" &
    first=$!
    check "four transfers take all ports" within 3 eval '[[ $(ss -Htn state established dst "$origin" | wc -l) == 4 ]]'
    check "a hit is a hit" pull "$swift" "$warm"
    check "a tag is served as it was, with a warning" tag_is stale
    timed same "what is not there is a 503" 503 "$(status_of "$swift" "$lost")"
    check "for a second" eval 'curl -sS -D- -o /dev/null "http://$larder/v2/$swift/blobs/sha256:$lost" | grep -i "^retry-after: 1"'
    check "it is counted" test "$(gauge 'larder_shed_total{reason="sockets"}')" -gt 0
    check "and told" log_says 'WARN .*no socket is left.*Cannot assign requested address'
    check "as larder's own trouble" eval '! log_says "an upstream does not answer"'
    check "the transfers end well" wait "$first"
    timed check "there are ports: what was not there is pulled" within 8 pull "$swift" "$lost" 2>/dev/null
    check "within five seconds ($took ms)" test "$took" -lt 5000
    check "and the tag is fresh" within 5 tag_is fresh
    echo "$range" >/proc/sys/net/ipv4/ip_local_port_range
    rm "$HOME/.curlrc"
    check "nothing torn is visible" whole "$cache"
    check "larder ends when it is told to" stop larder
}
