# shellcheck shell=bash disable=SC2015,SC2016,SC2034,SC2154
# The power fails at a random moment of a pull: the file system is shut down under larder's feet, with or without its journal
# written, and what was not synced is gone.

power() {
    local rounds=${ROUNDS:-6} system mode round
    echo "# power"
    involved=(killed larder)
    check "the upstream starts" start_origin
    for system in ext4 xfs; do
        for mode in 1 2; do
            : >"$work/log/killed"
            slowest=0
            loop_disk "$system" 400 || fail "a disk with $system can be made"
            for ((round = 0; round < rounds; round++)); do
                if ((round % 25 == 0)); then empty "$disk/cache"; fi
                power_fails "$mode" "$system, mode $mode, $round" >>"$work/log/killed" 2>&1 || true
            done
            drop_disk
            check "$system, $([[ $mode == 1 ]] && echo "data lost" || echo "journal lost too"), $rounds times: all rounds came to their end" \
                test "$(grep -c 'is over$' "$work/log/killed")" == "$rounds"
            after_kills "these power losses"
        done
    done
    check "the upstream ends" stop origin
}

power_fails() {
    local mode=$1 what=$2 cache=$disk/cache old=() new=() digest pulling
    larder_on "$cache" || echo "$what: FAILED to start"
    for _ in 1 2 3; do
        old+=("$(new_blob "$swift" $((RANDOM * 40 + 1)))")
        new+=("$(new_blob "$swift" $((RANDOM * 120 + 1)))")
    done
    pulls "$swift" "${old[@]}" || echo "$what: FAILED before it"
    # With nothing reserved any more all of it has been synced, its names too.
    within 3 all_kept "$cache" "${old[@]}" && within 3 idle || echo "$what: UNKEPT before it"
    pulls "$swift" "${new[@]}" &
    pulling=$!
    sleep "$(printf '0.%03d' $((RANDOM % 250)))"
    cut_power "$disk" "$mode"
    # Nobody told larder; it goes on without a disk.
    wait "$pulling" || echo "$what: FAILED in the middle of it"
    pulls "$swift" "${new[@]}" || echo "$what: FAILED after it"
    kill_larder
    remount_disk || echo "$what: FAILED to mount"
    whole "$cache" || echo "$what: TORN"

    : >"$work/log/asked"
    timed larder_on "$cache"
    ((took <= slowest)) || slowest=$took
    ((took <= 1000)) || echo "$what: SLOW, serves after $took ms"
    pulls "$swift" "${old[@]}" "${new[@]}" || echo "$what: FAILED after the restart"
    for digest in "${old[@]}"; do
        [[ $(asked_for GET "$digest") == 0 ]] || echo "$what: LOST $digest"
    done
    within 3 all_kept "$cache" "${old[@]}" "${new[@]}" || echo "$what: UNKEPT after the restart"
    whole "$cache" || echo "$what: TORN after the restart"
    within 5 accounts_agree "$cache" || echo "$what: ACCOUNTS"
    kill_larder
    echo "$what is over"
}

# 1: the journal is written, data are not; 2: nothing is.
cut_power() {
    # EXT4_IOC_SHUTDOWN, which is XFS_IOC_GOINGDOWN as well
    perl -e 'open my $d, "<", $ARGV[0] or die $!; ioctl($d, 0x8004587d, pack("I", $ARGV[1])) or die $!' "$1" "$2"
}
