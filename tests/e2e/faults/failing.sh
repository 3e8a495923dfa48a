# shellcheck shell=bash disable=SC2015,SC2016,SC2034,SC2154
# Operations that fail, one kind after the other, and a disk that becomes read-only.

failing() {
    local cache=$work/failing call error n
    echo "# failing"
    involved=(failing larder)
    check "the upstream starts" start_origin
    check "larder starts" larder_on "$cache"
    for call in fallocate pwritev fsync rename,renameat openat; do
        for n in 1 1+; do failing_call "$cache" "$call" EIO "$n"; done
    done
    failing_call "$cache" pwritev ENOSPC 2+
    failing_call "$cache" fdatasync EIO 1+
    failing_call "$cache" mkdir,mkdirat EIO 1+
    failing_call "$cache" statfs EIO 1+
    failing_reads "$cache"
    read_only "$cache"
    check "larder ends when it is told to" stop larder
    check "and starts again" larder_on "$cache"
    check "the accounts are what lies on the disk" accounts_agree "$cache"
    check "no pull ended well with wrong bytes" nobody_got_wrong_bytes
    check "larder ends" stop larder
    broken_by_the_kernel
    check "the upstream ends" stop origin
}

# inject CALLS ERROR WHEN: from now on, in each thread that runs, until healed
inject() {
    start injector strace -f --quiet=all -o "$work/log/injected" -e "trace=$1" -e "inject=$1:error=$2:when=$3" -p "${pids[larder]}"
    within 5 traced
}

traced() { ! grep -qs 'TracerPid:[[:space:]]*0$' /proc/"${pids[larder]}"/task/*/status; }

injected() { grep -q INJECTED "$work/log/injected"; }

heal() {
    stop injector || true
    alive
}

failing_call() {
    local cache=$1 call=$2 error=$3 n=$4 digests=()
    for _ in 1 2 3; do digests+=("$(new_blob "$swift" $((RANDOM * 60 + 1)))"); done
    inject "$call" "$error" "$n" || fail "strace can be attached"
    check "$call number $n of each thread fails with $error: pulls are right" pulls "$swift" "${digests[@]}" "${digests[0]}"
    check "and once more" pulls "$swift" "${digests[@]}"
    within 2 injected || fail "it has failed"
    heal || fail "larder runs"
    check "nothing torn is visible, and what is new is kept, within five seconds" eval 'whole "$cache" && within 5 keeps_again "$cache"'
    within 5 accounts_agree "$cache" >"$work/log/check" 2>&1 || fail "the accounts are what lies on the disk"
}

failing_reads() {
    local cache=$1 n warm cold
    for n in 1 1+; do
        warm=$(new_blob "$swift" 3M)
        pull "$swift" "$warm"
        # Nobody has it open, and nothing of it is in memory.
        stop larder && larder_on "$cache" || fail "larder starts anew"
        sync && echo 1 >/proc/sys/vm/drop_caches
        inject pread64,preadv2,preadv,read EIO "$n" 2>/dev/null || fail "strace can be attached"
        check "read number $n of each thread fails: a hit is right" pull "$swift" "$warm"
        injected || fail "it has failed"
        heal || fail "larder runs"
        check "it is right after that" pull "$swift" "$warm"
        check "nothing torn is visible, and what is new is kept, within five seconds" eval 'whole "$cache" && within 5 keeps_again "$cache"'
    done
}

# What larder had open can still be written, which no file system allows that is read-only as a whole; all else is EROFS.
read_only() {
    local cache=$1 warm cold
    warm=$(new_blob "$swift" 200k) cold=$(new_blob "$swift" 2M)
    check "a blob is pulled" pull "$swift" "$warm"
    check "the disk becomes read-only" eval 'mount --bind "$cache" "$cache" && mount -o remount,bind,ro "$cache"'
    check "what is there is pulled" pull "$swift" "$warm"
    check "and what is not" pulls "$swift" "$cold" "$cold"
    check "again" pulls "$swift" "$cold" "$warm"
    check "nothing of it is kept" eval '! kept "$cache" "$cold"'
    check "larder runs" alive
    umount "$cache"
    check "the disk can be written: what is new is kept, within five seconds" within 5 keeps_again "$cache"
    check "the accounts are what lies on the disk" within 5 accounts_agree "$cache"
}

# What the kernel does with a disk whose metadata it finds broken.
broken_by_the_kernel() {
    local cache warm cold loop trigger
    loop_disk ext4 64 && mount -o remount,errors=remount-ro "$disk"
    cache=$disk/cache loop=$(findmnt -no SOURCE "$disk")
    trigger=/sys/fs/ext4/${loop#/dev/}/trigger_fs_error
    check "larder starts on ext4" larder_on "$cache"
    warm=$(new_blob "$swift" 500k) cold=$(new_blob "$swift" 3M)
    check "a blob is pulled" pull "$swift" "$warm"
    within 2 kept "$cache" "$warm" || true
    check "the kernel finds an error in the file system" eval 'echo larder >"$trigger"'
    check "what is there is pulled" pull "$swift" "$warm"
    check "and what is not" pulls "$swift" "$cold" "$cold" "$warm"
    check "larder runs" alive
    check "larder ends within its grace" eval 'timed stop larder; echo "$took ms"; ((took < 6000))'
    check "the disk is checked and mounted" eval 'umount "$disk"; e2fsck -fy "$work/disk.img"; (($? <= 1)) && mount -o loop "$work/disk.img" "$disk"'
    check "larder starts" larder_on "$cache"
    check "what was kept is there" kept "$cache" "$warm"
    check "pulls are right" pulls "$swift" "$warm" "$cold"
    check "nothing torn is visible" whole "$cache"
    check "what is new is kept" within 5 keeps_again "$cache"
    check "the accounts are what lies on the disk" accounts_agree "$cache"
    check "no pull ended well with wrong bytes" nobody_got_wrong_bytes
    check "larder ends" stop larder
    drop_disk
}
