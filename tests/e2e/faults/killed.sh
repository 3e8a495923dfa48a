# shellcheck shell=bash disable=SC2015,SC2016,SC2034,SC2154
# kill -9 in the middle of pulls, at a random moment and at the n-th of each system call that changes the disk.

killed() {
    local rounds=${ROUNDS:-50} round call n cache=$work/cache
    echo "# killed"
    involved=(killed larder)
    check "the upstream starts" start_origin
    slowest=0
    : >"$work/log/killed"
    for ((round = 0; round < rounds; round++)); do
        # Not more and more of them for ever: the machine's disk has an end.
        ((round % 25)) || empty "$cache"
        killed_once "$cache" "$round" $((RANDOM % 250)) >>"$work/log/killed" 2>&1 || true
    done
    after_kills "$rounds kills at random moments"

    slowest=0 n=0
    : >"$work/log/killed"
    for call in openat fallocate pwritev fsync rename,renameat fdatasync unlink,unlinkat ftruncate; do
        empty "$cache"
        for n in 1 2 3 7; do
            under=(strace -D -f --seccomp-bpf --quiet=all -o /dev/null -e "trace=$call" -e "inject=$call:signal=KILL:when=$n")
            killed_once "$cache" "at $call $n" 400 >>"$work/log/killed" 2>&1 || true
        done
    done
    after_kills "a kill at the n-th openat, fallocate, pwritev, fsync, rename, fdatasync, unlink, ftruncate"
    check "the upstream ends" stop origin
}

empty() {
    rm -rf "$1"
    find "$work/origin" -type f -delete
}

# killed_once CACHE NAME MILLISECONDS: what is wrong is said by a line with a word in capitals, one for each promise
killed_once() {
    local cache=$1 what=$2 digest digests=() before pulling
    larder_on "$cache" || echo "$what: dead before it listens"
    under=()
    for _ in 1 2 3 4; do digests+=("$(new_blob "$swift" $((RANDOM * 120 + 1)))"); done
    pulls "$swift" "${digests[@]}" "${digests[0]}" &
    pulling=$!
    sleep "$(printf '0.%03d' "$3")"
    before=$(visible "$cache")
    kill_larder
    wait "$pulling" || true
    whole "$cache" || echo "$what: TORN"

    : >"$work/log/asked"
    timed larder_on "$cache"
    ((took <= slowest)) || slowest=$took
    ((took <= 1000)) || echo "$what: SLOW, serves after $took ms"
    [[ -z $(comm -23 <(echo "$before" | grep .) <(visible "$cache")) ]] || echo "$what: LOST"
    pulls "$swift" "${digests[@]}" || echo "$what: FAILED to pull after the restart"
    for digest in $before; do
        [[ $(asked_for GET "$digest") == 0 ]] || echo "$what: LOST, as $digest is fetched again"
    done
    within 3 all_kept "$cache" "${digests[@]}" || echo "$what: UNKEPT after the restart"
    whole "$cache" || echo "$what: TORN after the restart"
    accounts_agree "$cache" || echo "$what: ACCOUNTS"
    kill_larder
}

after_kills() {
    check "$1 leave no torn blob visible" never TORN
    check "after them it serves within a second (the slowest: $slowest ms)" never SLOW
    check "nothing that was visible is lost or fetched again" never LOST
    check "pulls are right after them" never FAILED
    check "and kept" never UNKEPT
    check "the accounts are what lies on the disk" never ACCOUNTS
    check "no pull ended well with wrong bytes" nobody_got_wrong_bytes
}

never() { ! grep "$1" "$work/log/killed"; }
