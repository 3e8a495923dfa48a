# shellcheck shell=bash disable=SC2034,SC2154
# Doors: larder with a socket of systemd's, one in the file system, and TLS with users and certificates; real clients come by each.

# Of loopback addresses docker would think that they need no TLS.
host=192.0.2.1
tls=$host:5443
certified=$host:5444
alices=open-canary

doors() {
    local image=library/hello client
    echo "# doors"
    for client in docker containerd; do
        directly "$client"
        check "$client starts with an empty storage" start_empty "$client"
    done
    involved=(larder)
    check "larder's host has an address" ip address add "$host/32" dev lo
    check "certificates are made" make_certificates
    check "larder starts behind sockets that systemd has opened" start_larder_empty start_larder_doors
    same "who comes by systemd's socket is answered" 200 "$(status "http://$larder/v2/")"
    same "and by the Unix socket" 200 "$(bounded curl -sS --unix-socket "$work/larder.sock" -o /dev/null -w '%{http_code}' http://larder/v2/)"

    echo "# TLS"
    same "curl speaks HTTP/2 by ALPN" "2 200" "$(trusting --user "alice:$alices" -w '%{http_version} %{http_code}' "https://$tls/v2/")"
    same "and HTTP/1.1" "1.1 200" "$(trusting --http1.1 --user "alice:$alices" -w '%{http_version} %{http_code}' "https://$tls/v2/")"
    same "openssl speaks TLS 1.3" "TLSv1.3" "$(speaks -tls1_3)"
    same "and TLS 1.2" "TLSv1.2" "$(speaks -tls1_2)"
    check "TLS 1.1 is refused" fails bounded openssl s_client -connect "$tls" -tls1_1 -cipher DEFAULT@SECLEVEL=0
    same "who has no password is told to log in" 401 "$(trusting -w '%{http_code}' "https://$tls/v2/")"
    same "who has a wrong one as well" 401 "$(trusting --user "alice:$alices-not" -w '%{http_code}' "https://$tls/v2/")"
    same "a certificate spares the password" 200 \
        "$(trusting --cert "$work/build.pem" --key "$work/build.key" -w '%{http_code}' "https://$tls/v2/")"
    check "without one nobody is heard where it is required" fails trusting "https://$certified/v2/"
    same "with one everybody is" 200 \
        "$(trusting --cert "$work/build.pem" --key "$work/build.key" -w '%{http_code}' "https://$certified/v2/")"
    docker_by_tls "$image"
    containerd_by_tls "$image"

    echo "# a new certificate"
    local before
    before=$(shown_certificate)
    check "a transfer goes on while the certificate is changed" changed_under_way "$image"
    check "new connections see the new one" test "$before" != "$(shown_certificate)"
    check "larder ends when it is told to" stop larder
    check "no password is in larder's log or cache" keeps_secrets
    for client in docker containerd; do stop "$client" || true; done
}

make_certificates() {
    local name
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=ca -keyout "$work/ca.key" -out "$work/ca.pem" &&
        for name in server build; do sign "$name" || return; done
    # shellcheck disable=SC2016 # no dollar there is the shell's
    perl -e 'print "alice:", crypt($ARGV[0], q{$2y$05$thesaltoflarderstestsu}), "\n"' "$alices" >"$work/users"
}

sign() {
    openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj "/CN=$1" -keyout "$work/$1.key.new" -out "$work/$1.csr" &&
        openssl x509 -req -in "$work/$1.csr" -CA "$work/ca.pem" -CAkey "$work/ca.key" -days 2 \
            -extfile <(echo subjectAltName=IP:$host) -out "$work/$1.pem.new" &&
        mv "$work/$1.key.new" "$work/$1.key" && mv "$work/$1.pem.new" "$work/$1.pem"
}

start_larder_doors() {
    cat >"$work/doors.toml" <<-END
		[server]
		listen = "systemd"
		[[server.listener]]
		listen = "unix:$work/larder.sock"
		[[server.listener]]
		listen = "$tls"
		cert_file = "$work/server.pem"
		key_file = "$work/server.key"
		client_ca_file = "$work/ca.pem"
		client_cert = "optional"
		users_file = "$work/users"
		rule = [{ who = ["user:alice", "cert:build"], allow = ["docker.io/library/**"] }]
		[[server.listener]]
		listen = "$certified"
		cert_file = "$work/server.pem"
		key_file = "$work/server.key"
		client_ca_file = "$work/ca.pem"
		[cache]
		dir = "$work/cache"
		[upstream."docker.io"]
		url = "http://$registry"
	END
    # It opens the socket, and larder with the first who comes.
    start larder systemd-socket-activate --listen="$larder" "$work/larder" serve --config "$work/doors.toml"
    ready larder answers "$larder"
}

trusting() { bounded curl -sS --cacert "$work/ca.pem" -o /dev/null "$@"; }

speaks() {
    bounded openssl s_client -connect "$tls" -CAfile "$work/ca.pem" "$@" </dev/null 2>/dev/null |
        sed -nE 's/^ *(New, |Protocol *: )(TLSv[0-9.]+).*/\2/p' | head -n 1
}

shown_certificate() { bounded openssl s_client -connect "$tls" </dev/null 2>/dev/null | openssl x509 -noout -fingerprint; }

fails() { ! "$@"; }

# docker finds the authority by the host's name.
docker_by_tls() {
    mkdir -p "/etc/docker/certs.d/$tls" && cp "$work/ca.pem" "/etc/docker/certs.d/$tls/ca.crt"
    involved=(docker larder)
    check "docker is refused without a login" refused docker_pull "$tls/$1:latest"
    check "docker is refused with a wrong password" refused docker_tool login --username alice --password-stdin "$tls" <<<"$alices-not"
    check "docker logs in" docker_tool login --username alice --password-stdin "$tls" <<<"$alices"
    same "docker pulls by TLS, as alice" "$(expected docker "$1")" "$(docker_pull "$tls/$1:latest" 2>>"$work/log/docker")"
    check "docker may not have what no rule allows" fails docker_pull "$tls/team/app:latest"
    check "docker logs out" docker_tool logout "$tls"
}

containerd_by_tls() {
    local hosts="$work/containerd/hosts/$tls"
    mkdir -p "$hosts"
    printf 'server = "https://%s"\n[host."https://%s"]\nca = "%s"\n' "$tls" "$tls" "$work/ca.pem" >"$hosts/hosts.toml"
    involved=(containerd larder)
    check "containerd is refused without a login" refused containerd_pull "$tls/$1:latest" mirrored
    same "containerd pulls by TLS, as alice" "$(expected containerd "$1")" \
        "$(containerd_pull "$tls/$1:latest" authenticated --hosts-dir "$work/containerd/hosts" --user "alice:$alices" 2>>"$work/log/containerd")"
    printf 'server = "https://%s"\n[host."https://%s"]\nca = "%s"\nclient = [["%s", "%s"]]\n' \
        "$tls" "$tls" "$work/ca.pem" "$work/build.pem" "$work/build.key" >"$hosts/hosts.toml"
    same "containerd pulls with a certificate" "$(expected containerd "$1")" \
        "$(containerd_pull "$tls/$1:latest" mirrored 2>>"$work/log/containerd")"
}

# changed_under_way IMAGE: a slow download begins before the change and ends after it
changed_under_way() {
    local blob got end=$((SECONDS + 20))
    blob=$(upstream_manifest "$1" latest | jq -r ".layers | max_by(.size).digest")
    bounded curl -sS --cacert "$work/ca.pem" --user "alice:$alices" --limit-rate 1M -o "$work/slow" "https://$tls/v2/$1/blobs/$blob" &
    got=$!
    sign server
    until grep -q 'read anew' "$work/log/larder"; do ((SECONDS < end)) && sleep 0.1 || return 1; done
    kill -0 "$got" && wait "$got" && same_digest "$blob" "$work/slow"
}

same_digest() { [[ "sha256:$(sha256sum <"$2" | cut -d ' ' -f 1)" == "$1" ]]; }
