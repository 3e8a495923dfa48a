# shellcheck shell=bash disable=SC2034,SC2154
# auth = "passthrough": a registry with one user, and clients that log in to larder as this user.

private=127.0.0.1:5051
elsewhere=localhost:5000 # also larder, but not its public_url
# A wrong one is this and more.
password='open:canary/%2F 42'
login="alice:$password"

passthrough() {
    local image=library/hello client
    echo "# passthrough"
    for client in "${clients[@]}"; do
        directly "$client"
        check "$client starts with an empty storage" start_empty "$client"
    done
    involved=(private larder)
    check "a registry starts that has one user" start_private
    same "it lets in nobody else" 401 "$(status "http://$private/v2/")"
    check "larder starts before it with an empty cache" start_larder_empty start_larder_passthrough

    skopeo_logs_in "$image"
    logs_in podman "$image" --tls-verify=false
    logs_in docker "$image"
    containerd_logs_in "$image"

    involved=(private larder)
    same "the registry gave each blob once" "$(blobs_of "$image" | sort -u | awk '{print 1, $1}')" \
        "$(upstream_gave '.*/blobs' private | sort | uniq -c | awk '{print $1, $2}')"
    same "by its name in ns it is not to be had" 403 "$(status_for_alice "$elsewhere/v2/$image/manifests/latest?ns=private.test")"
    same "nor by a prefix" 403 "$(status_for_alice "$elsewhere/v2/private.test/$image/manifests/latest")"
    same "nor by a prefix before /v2" 403 "$(status_for_alice "$elsewhere/private.test/v2/$image/manifests/latest")"
    same "only at its public_url" 200 "$(status_for_alice "$larder/v2/$image/manifests/latest")"
    check "larder's log tells of the image" grep -F "$image" "$work/log/larder"
    check "larder's cache holds the image" grep -raF '"/hello"' "$work/cache"
    cp "$HOME/.docker/config.json" "$work/login" || true

    # docker first, as podman would use its login.
    for client in docker podman; do
        involved=("$client" larder private)
        check "$client logs out" "${client}_tool" logout "$larder"
        check "$client is refused what is in the cache" refused "${client}_pull" "$larder/$image:latest" directly
    done
    check "larder ends when it is told to" stop larder
    same "the password is in what docker keeps of its login" "$work/login" "$(with_secrets "$work/login")"
    check "and not in larder's log or cache" keeps_secrets
    check "the registry ends" stop private
    for client in "${clients[@]}"; do stop "$client" || true; done
}

# It holds what the other registry holds.
start_private() {
    # The registry takes bcrypt alone, which the C library can do.
    # shellcheck disable=SC2016 # no dollar there is the shell's
    perl -e 'print "alice:", crypt($ARGV[0], q{$2y$05$thesaltoflarderstestsu}), "\n"' "$password" >"$work/htpasswd"
    {
        sed "s/$registry/$private/" "$work/registry.yml"
        echo "auth: {htpasswd: {realm: private, path: $work/htpasswd}}"
    } >"$work/private.yml"
    start private docker-registry serve "$work/private.yml"
    ready private bounded curl -fsS --user "$login" "http://$private/v2/" && : >"$work/log/private"
}

start_larder_passthrough() {
    cat >"$work/passthrough.toml" <<-END
		[server]
		listen = "$larder"
		[cache]
		dir = "$work/cache"
		[log]
		level = "trace"
		[upstream."private.test"]
		url = "http://$private"
		auth = "passthrough"
		public_url = "http://$larder"
	END
    start larder "$work/larder" serve --config "$work/passthrough.toml"
    ready larder answers "$elsewhere"
}

skopeo_logs_in() {
    local image=docker://$larder/$1
    local copy=(bounded skopeo copy --src-tls-verify=false "$image" "dir:$work/skopeo/copy")
    involved=(skopeo larder private)
    check "skopeo is refused without credentials" refused "${copy[@]}"
    check "skopeo is refused with a wrong password" refused "${copy[@]}" --src-creds "$login-skopeo"
    check "skopeo copies with the right one" "${copy[@]}" --src-creds "$login"
    same "skopeo inspects what the registry holds" "$(bounded skopeo inspect --raw --tls-verify=false "docker://$registry/$1")" \
        "$(bounded skopeo inspect --raw --tls-verify=false --creds "$login" "$image")"
}

# logs_in CLIENT IMAGE [OPTION...]: with the options that its login needs
logs_in() {
    local log_in=("$1_tool" login "${@:3}" --username alice --password-stdin "$larder")
    involved=("$1" larder private)
    check "$1 is refused with a wrong password" refused "${log_in[@]}" <<<"$password-$1"
    check "$1 logs in with the right one" "${log_in[@]}" <<<"$password"
    same "$1 pulls" "$(expected "$1" "$2")" "$("$1_pull" "$larder/$2:latest" directly 2>>"$work/log/$1")"
}

containerd_logs_in() {
    local pull=(containerd_pull "$larder/$1:latest" directly)
    involved=(containerd larder private)
    check "containerd is refused without credentials" refused "${pull[@]}"
    check "containerd is refused with a wrong password" refused "${pull[@]}" --user "$login-containerd"
    same "containerd pulls with the right one" "$(expected containerd "$1")" \
        "$("${pull[@]}" --user "$login" 2>>"$work/log/containerd")"
}

# refused COMMAND...: it fails, and says that it is for want of the right login
refused() {
    local said
    if said=$("$@" 2>&1); then return 1; fi
    grep -iE 'unauthorized|invalid username/password|no basic auth credentials' <<<"$said" || { echo "$said" && return 1; }
}

status_for_alice() { bounded curl -sS --user "$login" -o /dev/null -w '%{http_code}' "http://$1"; }
