# shellcheck shell=bash disable=SC2015,SC2016,SC2034,SC2154
# The way to the upstream: nothing comes back, everything is refused, connections die, the upstream dies.

network() {
    local cache=$work/network warm layer digest first lost
    echo "# network"
    involved=(larder)
    check "the upstream starts" start_origin
    check "larder starts" larder_on "$cache"
    warm=$(new_blob "$swift" 1M)
    check "a blob is pulled" pull "$swift" "$warm"
    within 2 kept "$cache" "$warm" || true
    cut_off DROP
    cut_off REJECT --reject-with tcp-reset
    connections_die
    upstream_dies
    packets_get_lost
    check "nothing torn is visible" whole "$cache"
    check "the accounts are what lies on the disk" within 5 accounts_agree "$cache"
    check "no pull ended well with wrong bytes" nobody_got_wrong_bytes
    check "larder ends when it is told to" stop larder
    check "the upstream ends" stop origin
}

# cut_off TARGET...: what iptables does with all that goes to the upstream, for some seconds
cut_off() {
    local rule=(OUTPUT -p tcp --dport "${origin#*:}" -j "$@")
    layer=$(new_blob "$slow" 4M) digest=$(new_blob "$swift" 100k) lost=$(new_blob "$swift" 100k)
    pull "$slow" "$layer" &
    first=$!
    sleep 1
    iptables -I "${rule[@]}"
    timed check "$1: a hit is a hit" pull "$swift" "$warm"
    check "at once ($took ms)" test "$took" -lt 500
    timed check "$1: what is not there is a 502 or 504" eval '[[ $(status_of "$swift" "$digest") == 50[24] ]]'
    check "within the time for a connection, and some ($took ms)" test "$took" -lt 4500
    timed pull "$swift" "$lost" 2>/dev/null
    check "it is known then: the next fails at once ($took ms)" test "$took" -lt 1000
    sleep 1
    iptables -D "${rule[@]}"
    timed check "the way is free: what was not there is pulled" within 8 pull "$swift" "$digest" 2>/dev/null
    check "within five seconds ($took ms)" test "$took" -lt 5000
    check "the pull that was under way ends well" wait "$first"
}

# The kernel ends larder's connections to the upstream, all at once, every 300 ms.
connections_die() {
    local resumed
    layer=$(new_blob "$slow" 4M)
    resumed=$(count larder_fill_resumes_total)
    pulls "$slow" "$layer" "$layer" &
    first=$!
    for _ in 1 2 3 4; do
        sleep 0.4
        ss -K dst "${origin%:*}" dport = "${origin#*:}" >>"$work/log/check" 2>&1 || true
    done
    check "connections to the upstream die in the middle of a body: clients see nothing" wait "$first"
    check "the transfer was resumed" test "$(count larder_fill_resumes_total)" -gt "$resumed"
    check "with ranges, and never from the start" eval '[[ $(asked_for GET "$layer") -gt 1 && $(grep -c "$layer 200" "$work/log/asked") == 1 ]]'
}

upstream_dies() {
    local digests=()
    layer=$(new_blob "$slow" 4M) digest=$(new_blob "$swift" 100k)
    pulls "$slow" "$layer" "$layer" &
    first=$!
    sleep 1
    kill_origin
    check "the upstream is dead: a hit is a hit" pull "$swift" "$warm"
    same "what is not there is a 502" 502 "$(status_of "$swift" "$digest")"
    sleep 1
    check "the upstream is back" start_origin
    timed check "what was not there is pulled" within 8 pull "$swift" "$digest" 2>/dev/null
    check "within five seconds ($took ms)" test "$took" -lt 5000
    check "the pull that was under way ends well" wait "$first"
}

packets_get_lost() {
    local digests=() rule=(OUTPUT -p tcp -m multiport --ports "${origin#*:}" -m statistic --mode random --probability 0.03 -j DROP)
    for _ in 1 2 3 4; do digests+=("$(new_blob "$swift" 2M)"); done
    # Packets of the size that they have on wires, or a few lost ones are half a blob.
    ip link set lo mtu 1500
    iptables -I "${rule[@]}"
    check "of a hundred packets three get lost: pulls are right" pulls "$swift" "${digests[@]}"
    iptables -D "${rule[@]}"
    ip link set lo mtu 65536
}
