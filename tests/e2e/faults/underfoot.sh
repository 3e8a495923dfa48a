# shellcheck shell=bash disable=SC2015,SC2016,SC2034,SC2154
# What others do to the files in the cache directory.

underfoot() {
    local cache=$work/underfoot digest file kind how
    echo "# underfoot"
    involved=(larder)
    check "the upstream starts" start_origin
    check "larder starts" larder_on "$cache"
    for kind in "while larder runs" "and larder was killed" "and the machine was restarted"; do
        for how in cut emptied zeroed flipped removed "replaced by a directory"; do
            # After a clean stop files of the right size are believed; so are they while larder runs, until a scrub finds them.
            [[ $kind == "while larder runs" && ($how == zeroed || $how == flipped) ]] || damaged "$kind" "$how"
        done
    done
    strangers
    swept_away
    check "nothing torn is visible" whole "$cache"
    check "the accounts are what lies on the disk" within 5 accounts_agree "$cache"
    check "no pull ended well with wrong bytes" nobody_got_wrong_bytes
    check "larder ends when it is told to" stop larder
    check "the upstream ends" stop origin
}

damaged() {
    digest=$(new_blob "$swift" 700k) file=$cache/blobs/sha256/${digest:0:2}/$digest
    pull "$swift" "$digest" && within 2 kept "$cache" "$digest" || fail "a blob is kept"
    # So that nobody has it open.
    [[ $1 != "while larder runs" ]] || { stop larder && larder_on "$cache" || fail "larder starts anew"; }
    [[ $1 == "while larder runs" ]] || kill_larder
    case $2 in
        cut) truncate -s 300k "$file" ;;
        emptied) truncate -s 0 "$file" ;;
        zeroed) dd if=/dev/zero of="$file" bs=1k seek=100 count=64 conv=notrunc status=none ;;
        flipped) printf '\x00\xff' | dd of="$file" bs=1 seek=350000 conv=notrunc status=none ;;
        removed) rm "$file" ;;
        *directory) rm "$file" && mkdir "$file" && touch "$file/stranger" ;;
    esac
    if [[ $1 == *restarted ]]; then
        # The lock tells of which boot the last larder was.
        sed -i 's/ .*/ another-boot/' "$cache/lock"
    fi
    : >"$work/log/asked"
    alive >/dev/null 2>&1 || larder_on "$cache" || fail "larder starts"
    # A body that began as a hit may end short, once; then it is fetched anew.
    pull "$swift" "$digest" >"$work/log/check" 2>&1 || true
    check "a blob is $2 $1: it is right the second time at the latest" pull "$swift" "$digest"
    if [[ $2 == *directory ]]; then
        check "as it was fetched anew" test "$(asked_for GET "$digest")" -ge 1
    else
        same "as it was fetched anew" 1 "$(asked_for GET "$digest")"
        check "and is kept" within 2 kept "$cache" "$digest"
    fi
    if [[ -d $file ]]; then rm -r "$file"; fi
}

strangers() {
    local n
    kill_larder
    mkdir -p "$cache/blobs/sha256/zz" "$cache/blobs/md5/ab" "$cache/notes" "$cache/partial/folder"
    echo mine | tee "$cache/notes/text" "$cache/blobs/sha256/zz/text" "$cache/blobs/md5/ab/text" "$cache/blobs/text" "$cache/partial/text" >/dev/null
    ln -s /etc/passwd "$cache/blobs/sha256/zz/$(printf 'z%.0s' {1..64})"
    digest=$(new_blob "$swift" 10k)
    mkdir -p "$cache/blobs/sha256/${digest:0:2}"
    ln -s /etc/passwd "$cache/blobs/sha256/${digest:0:2}/$digest"
    check "foreign files are in the cache directory: larder starts" larder_on "$cache"
    check "pulls are right" pulls "$swift" "$(new_blob "$swift" 100k)" "$digest"
    check "and what is foreign is left alone" test "$(cat "$cache"/notes/text "$cache"/blobs/sha256/zz/text "$cache"/blobs/md5/ab/text "$cache/blobs/text" "$cache"/partial/text)" == \
        "$(printf 'mine\nmine\nmine\nmine\nmine')"
    check "larder ends when it is told to" stop larder
    rm -rf "$cache/notes" "$cache/blobs/sha256/zz" "$cache/blobs/md5" "$cache/blobs/text" "$cache/partial/text" "$cache/partial/folder"
    find "$cache/blobs" -type l -delete
    check "larder starts" larder_on "$cache"
}

# rm -rf of what is in it while larder runs, and a directory that may not be written to.
swept_away() {
    local before layer first
    before=$(new_blob "$swift" 100k) layer=$(new_blob "$slow" 3M)
    pull "$swift" "$before" || true
    pull "$slow" "$layer" &
    first=$!
    sleep 0.7
    rm -rf "$cache"/blobs/* "$cache"/partial/*
    check "all blobs are removed in the middle of a pull, which ends well" wait "$first"
    check "what was there is pulled" pull "$swift" "$before"
    check "again" pull "$swift" "$before"
    rm -rf "$cache/blobs" "$cache/partial"
    check "the directories are removed: pulls are right" pulls "$swift" "$(new_blob "$swift" 1M)" "$(new_blob "$swift" 10k)"
    check "what is new is kept, within five seconds" within 5 keeps_again "$cache"
    mkdir -p "$cache/partial"
    if chattr +i "$cache/partial" "$cache/blobs" 2>/dev/null; then
        check "the directories may not be written to: pulls are right" pulls "$swift" "$(new_blob "$swift" 1M)" "$(new_blob "$swift" 10k)"
        chattr -i "$cache/partial" "$cache/blobs"
        check "they may: what is new is kept, within five seconds" within 5 keeps_again "$cache"
    fi
    # What larder holds to be there and is not, is noticed at its next use; a start counts anew.
    kill_larder
    check "larder starts" larder_on "$cache"
}
