# shellcheck shell=bash disable=SC2015,SC2016,SC2034,SC2154
# The upstream is known by a name: there is no such name, the resolver fails, it says nothing.

names() {
    local trouble
    echo "# names"
    involved=(larder resolver)
    check "the upstream starts" start_origin
    check "a resolver starts" start_resolver
    for trouble in nxdomain servfail silence; do name_trouble "$trouble"; done
    check "no pull ended well with wrong bytes" nobody_got_wrong_bytes
    stop resolver || true
    check "the upstream ends" stop origin
}

name_trouble() {
    local cache=$work/names-$1 warm lost next counted
    warm=$(new_blob "$swift" 100k) lost=$(new_blob "$swift" 100k) next=$(new_blob "$swift" 100k)
    new_tag "$swift" latest "$warm"
    resolver_says well
    check "larder starts" larder_by_name "$cache"
    check "an image is pulled by the upstream's name" eval 'pull "$swift" "$warm" && tag_is fresh'
    within 2 kept "$cache" "$warm" || true
    check "larder ends" stop larder

    # One that has just started remembers no name.
    resolver_says "$1"
    check "$1: larder starts" larder_by_name "$cache"
    check "$1: a hit is a hit" pull "$swift" "$warm"
    check "$1: a tag is served as it was, with a warning" tag_is stale
    timed same "$1: what is not there is a 502" 502 "$(status_of "$swift" "$lost")"
    timed pull "$swift" "$lost" 2>/dev/null
    check "$1: the next fails soon ($took ms)" test "$took" -lt 1000
    check "$1: it is counted" test "$(count larder_dns_errors_total)" -gt 0
    check "$1: and told" log_says 'WARN .*an upstream does not answer.*(resolve|lookup|name)'
    resolver_says well
    timed check "the name is known again: what was not there is pulled" within 8 pull "$swift" "$lost" 2>/dev/null
    check "within five seconds ($took ms)" test "$took" -lt 5000
    check "and the tag is fresh" within 5 tag_is fresh

    # Where the name led is remembered, for new connections.
    resolver_says "$1"
    counted=$(count larder_dns_errors_total)
    ss -K dst "${origin%:*}" dport = "${origin#*:}" >/dev/null 2>&1 || true
    timed check "$1: where the name led before is asked" pull "$swift" "$next"
    check "soon ($took ms)" test "$took" -lt 2000
    check "after the resolver was" test "$(count larder_dns_errors_total)" -gt "$counted"
    check "which is told" log_says 'WARN .*a name cannot be resolved; where it led before is used'
    check "larder ends when it is told to" stop larder
}

larder_by_name() {
    : >"$work/log/larder"
    larder_on "$1" "upstream.\"docker.io\".url=http://registry.test:${origin#*:}"
}

# new_tag REPOSITORY TAG DIGEST: an image that consists of this blob
new_tag() {
    mkdir -p "$work/origin/v2/$1/manifests"
    printf '{"schemaVersion":2,"mediaType":"%s","config":{"mediaType":"a/b","digest":"sha256:%s","size":1},"layers":[]}' \
        application/vnd.oci.image.manifest.v1+json "$3" >"$work/origin/v2/$1/manifests/$2"
}

# tag_is fresh|stale: past its TTL of a second, and right
tag_is() {
    sleep 1.1
    curl -fsS --max-time 10 -D "$work/tmp/head" -o "$work/tmp/manifest" "http://$larder/v2/$swift/manifests/latest" || return 1
    cmp "$work/tmp/manifest" "$work/origin/v2/$swift/manifests/latest" || return 1
    if [[ $1 == stale ]]; then grep -i '^warning: 299 ' "$work/tmp/head"; else ! grep -i '^warning' "$work/tmp/head"; fi
}

# === the resolver ===

start_resolver() {
    local file
    file=$(readlink -f /etc/resolv.conf)
    echo "nameserver 127.0.0.1" >"$work/resolv.conf"
    # It may have been in a place that is hidden here.
    [[ -e $file ]] || { mkdir -p "${file%/*}" && : >"$file"; }
    mount --bind "$work/resolv.conf" "$file"
    resolver_says well
    start resolver perl -e "$resolver" "$work/mood"
    within 5 getent --no-addrconfig ahostsv4 registry.test
}

resolver_says() { echo "$1" >"$work/mood"; }

# All names lead here, as long as it is well.
resolver='
    use strict;
    use Socket;
    socket(my $socket, PF_INET, SOCK_DGRAM, 0) or die "$!";
    bind($socket, sockaddr_in(53, INADDR_LOOPBACK)) or die "$!";
    while (my $from = recv($socket, my $query, 1500, 0)) {
        open(my $file, "<", $ARGV[0]);
        chomp(my $mood = <$file>);
        next if $mood eq "silence";
        my $end = 12;
        while (my $label = ord(substr($query, $end, 1))) { $end += 1 + $label }
        my $question = substr($query, 12, $end + 5 - 12);
        my $is_v4 = unpack("n", substr($question, -4, 2)) == 1;
        my $code = { nxdomain => 3, servfail => 2 }->{$mood} // 0;
        my $answer = $code == 0 && $is_v4 ? pack("nnnNna4", 0xc00c, 1, 1, 0, 4, INADDR_LOOPBACK) : "";
        my $head = pack("nnnnnn", unpack("n", $query), 0x8180 | $code, 1, length($answer) ? 1 : 0, 0, 0);
        send($socket, $head . $question . $answer, 0, $from);
    }
'
