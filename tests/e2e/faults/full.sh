# shellcheck shell=bash disable=SC2015,SC2016,SC2034,SC2154
# A disk that is full: of bytes, of inodes, for files of a size.

full() {
    echo "# full"
    involved=(larder)
    check "the upstream starts" start_origin
    full_of_bytes
    full_of_files
    full_for_large_files
    check "no pull ended well with wrong bytes" nobody_got_wrong_bytes
    check "the upstream ends" stop origin
}

full_of_bytes() {
    local warm first layer small cache=$work/tiny/cache
    mkdir -p "$work/tiny" && mount -t tmpfs -o size=24m tmpfs "$work/tiny"
    check "larder starts on a disk of 24 MiB" larder_on "$cache"
    warm=$(new_blob "$swift" 100k)
    check "a blob is pulled" pull "$swift" "$warm"

    layer=$(new_blob "$slow" 3M)
    pull "$slow" "$layer" &
    first=$!
    sleep 0.7
    check "in the middle of a pull the disk fills up" fill_disk "$work/tiny"
    check "the pull ends well" wait "$first"
    layer=$(new_blob "$swift" 4M) small=$(new_blob "$swift" 1000)
    check "what is not there is pulled" pulls "$swift" "$layer" "$small"
    check "and again, and by many" pulls "$swift" "$layer" "$layer" "$layer" "$small"
    check "and what was there" pull "$swift" "$warm"
    layer=$(new_blob "$swift" 40M)
    check "and what is larger than the disk" pull "$swift" "$layer"
    check "larder runs" alive
    check "nothing torn is visible" whole "$cache"
    check "space comes back" free_disk "$work/tiny"
    check "and what is new is kept, within five seconds" within 5 keeps_again "$cache"
    check "the accounts are what lies on the disk" accounts_agree "$cache"

    # Nobody says in time that there is no room: the writes themselves fail.
    layer=$(new_blob "$slow" 3M)
    pulls "$slow" "$layer" "$layer" &
    first=$!
    for _ in 1 2 3 4 5; do
        fill_disk "$work/tiny" && sleep 0.3 && free_disk "$work/tiny"
        sleep 0.1
    done
    check "a pull ends well while the disk is full by turns" wait "$first"
    check "what is new is kept after that" within 5 keeps_again "$cache"
    check "larder ends when it is told to" stop larder
    check "and starts again" larder_on "$cache"
    check "nothing torn is visible" whole "$cache"
    check "the accounts are what lies on the disk" accounts_agree "$cache"
    check "it fills up while larder stands still, and larder ends" eval 'fill_disk "$work/tiny"; stop larder'
    check "it starts on the full disk" larder_on "$cache"
    check "and pulls" pull "$swift" "$(new_blob "$swift" 2M)"
    check "larder ends" stop larder
    umount "$work/tiny"
}

full_of_files() {
    local cache=$work/tiny/cache n digests=()
    mount -t tmpfs -o size=64m,nr_inodes=60 tmpfs "$work/tiny"
    check "larder starts on a disk that holds 60 files" larder_on "$cache"
    check "what is new is kept" keeps_again "$cache"
    for n in $(seq 60); do
        touch "$work/tiny/filler-$n" 2>/dev/null || break
    done
    for n in $(seq 8); do digests+=("$(new_blob "$swift" 50k)"); done
    check "with no file to be had pulls go on" pulls "$swift" "${digests[@]}"
    check "again" pulls "$swift" "${digests[@]}"
    check "larder runs" alive
    check "files are to be had again" free_disk "$work/tiny"
    check "and what is new is kept, within five seconds" within 5 keeps_again "$cache"
    for n in $(seq 30); do digests+=("$(new_blob "$swift" 20k)"); done
    check "more blobs than files" pulls "$swift" "${digests[@]}"
    check "the accounts are what lies on the disk" accounts_agree "$cache"
    check "larder ends" stop larder
    umount "$work/tiny"
}

# EFBIG, and a signal that would end a process that does not expect it.
full_for_large_files() {
    local cache=$work/large small large
    under=(prlimit --fsize=2000000)
    check "larder starts where no file may be larger than 2 MB" larder_on "$cache"
    under=()
    small=$(new_blob "$swift" 1M) large=$(new_blob "$swift" 9M)
    check "what is larger is pulled" pulls "$swift" "$small" "$large" "$large"
    check "and again" pull "$swift" "$large"
    check "what is smaller is kept" within 2 kept "$cache" "$small"
    check "larder runs" alive
    check "the accounts are what lies on the disk" accounts_agree "$cache"
    check "larder ends when it is told to" stop larder
}
