# shellcheck shell=bash disable=SC2015,SC2016,SC2034,SC2154
# A disk that hangs: who writes to it sleeps in the kernel, deaf to all signals, until it is thawed.

hung() {
    local cache warm cold=() jobs=() first layer
    echo "# hung"
    involved=(larder)
    loop_disk ext4 256
    cache=$disk/cache
    check "the upstream starts" start_origin
    check "larder starts on ext4" larder_on "$cache"
    warm=$(new_blob "$swift" 2M) layer=$(new_blob "$slow" 6M)
    for _ in 1 2 3 4 5 6; do cold+=("$(new_blob "$swift" $((RANDOM * 150 + 1)))"); done
    check "a blob is pulled" pull "$swift" "$warm"
    within 2 kept "$cache" "$warm" || true

    pull "$slow" "$layer" &
    first=$!
    sleep 1
    hang 15 || fail "the disk can be frozen"
    timed check "what is there is pulled while the disk hangs" pull "$swift" "$warm"
    check "at once ($took ms)" test "$took" -lt 1000
    timed check "what is not there is pulled" pull "$swift" "${cold[0]}"
    check "within 8 seconds ($took ms)" test "$took" -lt 8000
    timed check "the disk is known to hang: more is pulled" pulls "$swift" "${cold[@]:1}" "${cold[1]}"
    check "within 8 seconds ($took ms)" test "$took" -lt 8000
    check "the pull that was under way ends well" wait "$first"
    check "what is there is pulled" pull "$swift" "$warm"
    check "larder runs" alive
    check "the disk was frozen all the while" test -e "$work/frozen"
    check "it goes on" within 16 test ! -e "$work/frozen"
    check "what is new is kept, within five seconds" within 5 keeps_again "$cache"
    check "nothing torn is visible" whole "$cache"
    check "the accounts are what lies on the disk" within 5 accounts_agree "$cache"

    layer=$(new_blob "$slow" 9M)
    pull "$slow" "$layer" &
    first=$!
    sleep 1
    hang 24 || fail "the disk can be frozen"
    sleep 0.5
    kill -TERM "${pids[larder]}"
    # Its grace, the second that the invariants allow, and what a busy machine takes.
    timed check "told to end while the disk hangs, larder does all that a process can" within 20 nothing_left_to_do
    check "within its grace of three seconds, and some ($took ms)" test "$took" -lt 6000
    wait "$first" || true
    check "the disk was frozen all the while" test -e "$work/frozen"
    check "it goes on" within 25 test ! -e "$work/frozen"
    check "and the kernel lets go of it" within 3 gone
    unset "pids[larder]"
    check "larder starts" larder_on "$cache"
    check "nothing torn is visible" whole "$cache"
    check "what it was fetching is pulled" pull "$slow" "$layer"
    check "the accounts are what lies on the disk" within 5 accounts_agree "$cache"
    check "no pull ended well with wrong bytes" nobody_got_wrong_bytes
    check "larder ends" stop larder
    drop_disk
    check "the upstream ends" stop origin
}

# hang SECONDS: who thaws it is there before it is frozen
hang() {
    touch "$work/frozen"
    (sleep "$1" && rm -f "$work/frozen" && fsfreeze -u "$disk") &
    fsfreeze -f "$disk"
}

# What is left of the process are threads that the kernel does not let go: the first one has exited.
nothing_left_to_do() { gone || [[ $(sed 's/.*) //; s/ .*//' "/proc/${pids[larder]}/stat" 2>/dev/null) == [ZX] ]]; }

gone() { ! kill -0 "${pids[larder]}" 2>/dev/null; }
