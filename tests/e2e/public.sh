# shellcheck shell=bash disable=SC2034,SC2154
# mirror.any_public: a registry that nobody configured, at a public address as far as this network without an outside knows.

any_public() {
    local name=registry.public.test path=v2/library/hello/manifests/latest
    echo "# public"
    involved=(public larder)
    check "larder starts with an empty cache" start_larder_empty
    check "larder ends when it is told to" stop larder
    check "a registry starts at a public address" start_public "$name"
    check "larder starts and trusts it" start_larder_public

    local expected
    expected=$(manifest "http://$registry/$path")
    same "a public registry is asked by ns" "$expected" "$(manifest "http://$larder/$path?ns=$name")"
    same "and by a prefix" "$expected" "$(manifest "http://$larder/v2/$name/${path#v2/}")"
    same "it was asked once" "1 /$path" "$(asked_of_public)"
    same "skopeo pulls from it" "$(bounded skopeo inspect --raw --tls-verify=false "docker://$registry/library/multi")" \
        "$(bounded skopeo inspect --raw --tls-verify=false "docker://$larder/$name/library/multi")"

    : >"$work/log/public"
    same "a name that leads inside is refused" 502 "$(status "http://$larder/$path?ns=registry.inside.test")"
    same "an address is refused" 404 "$(status "http://$larder/$path?ns=127.0.0.1%3A443")"
    check "the log says why" grep -F "registry.inside.test, which is not a public address" "$work/log/larder"
    check "nobody was dialled inside" test ! -s "$work/log/public"
    check "larder ends when it is told to" stop larder
    check "the registry ends" stop public
}

# At all addresses of this world, so that only larder's own judgement keeps it from those inside.
start_public() {
    ip addr add 93.184.215.14/32 dev lo
    printf '127.0.0.1 localhost registry.inside.test\n93.184.215.14 %s\n' "$1" >"$work/hosts"
    mount --bind "$work/hosts" /etc/hosts
    printf '[req]\ndistinguished_name=dn\nx509_extensions=ext\n[dn]\n[ext]\nsubjectAltName=DNS:*.public.test,DNS:*.inside.test\n' \
        >"$work/openssl.cnf"
    openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=larder-e2e -config "$work/openssl.cnf" \
        -keyout "$work/public.key" -out "$work/public.pem"
    sed "s|^http:.*|http: {addr: ':443', tls: {certificate: $work/public.pem, key: $work/public.key}}|" "$work/registry.yml" >"$work/public.yml"
    start public docker-registry serve "$work/public.yml"
    ready public bounded curl -fsS --cacert "$work/public.pem" -o /dev/null "https://$1/v2/"
    : >"$work/log/public"
}

start_larder_public() {
    start larder env SSL_CERT_FILE="$work/public.pem" "$work/larder" serve --config "$work/larder.toml" --set mirror.any_public=true
    ready larder answers "$larder"
}

asked_of_public() { grep -o '"GET /v2/[^ ]*manifests/[^ ]*' "$work/log/public" | cut -c 6- | sort | uniq -c | awk '{print $1, $2}'; }

manifest() { bounded curl -fsS -H 'Accept: application/vnd.docker.distribution.manifest.v2+json' "$1"; }

status() { bounded curl -sS -o /dev/null -w '%{http_code}' "$1"; }
