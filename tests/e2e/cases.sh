# shellcheck shell=bash disable=SC2034,SC2154
# The cases, the same for every client. A client's file beside this one has three functions:
#   CLIENT_start         starts it, or only configures it, in the empty folder $work/CLIENT
#   CLIENT_name IMAGE    how it names the image when that shall come through larder
#   CLIENT_pull NAME HOW pulls and prints what must be equal however the image came: identities, never names or times

clients=(docker containerd podman skopeo)

# pulled_by CLIENT: directly, cold through larder, and then from larder alone
pulled_by() {
    local client=$1 image
    echo "# $client"
    involved=("$client" larder registry)
    directly "$client"

    check "larder starts with an empty cache" start_larder_empty
    check "$client starts with an empty storage" start_empty "$client"
    pulls_all "$client" "through larder"
    for image in "${images[@]}"; do check "larder's log shows $image" grep -F "$image" "$work/log/larder"; done
    if declare -F "${client}_more" >/dev/null; then "${client}_more"; fi

    check "the upstream is stopped" stop_registry
    check "$client starts with an empty storage" start_empty "$client"
    pulls_all "$client" "without the upstream"
    check "larder ends when it is told to" stop larder
    check "larder starts without the upstream" start_larder
    check "$client starts with an empty storage" start_empty "$client"
    pulls_all "$client" "as larder kept it over the restart"
    stop "$client" || true
    check "the upstream is back" start_registry
}

pulls_all() {
    local image
    for image in "${images[@]}"; do same "$1 pulls $image $2" "$(expected "$1" "$image")" "$(through_larder "$1" "$image")"; done
}

# All clients at once, on one empty cache.
fetched_once() {
    local client image blobs manifests jobs=()
    echo "# once"
    involved=(larder registry)
    for client in "${clients[@]}"; do
        directly "$client"
        check "$client starts with an empty storage" start_empty "$client"
    done
    blobs=$(for image in "${images[@]}"; do blobs_of "$image"; done | sort -u)
    manifests=$(for image in library/hello library/multi; do manifests_of "$image"; done | wc -l)
    check "larder starts with an empty cache" start_larder_empty
    check "the upstream is stopped" stop_registry
    check "the upstream is back, with an empty log" start_registry

    for client in "${clients[@]}"; do
        for image in "${images[@]}"; do through_larder "$client" "$image" >"$work/got-$client-${image//\//-}"; done &
        jobs+=($!)
    done
    wait "${jobs[@]}"
    for client in "${clients[@]}"; do
        involved=("$client" larder)
        for image in "${images[@]}"; do
            same "$client pulls $image while the others do" "$(expected "$client" "$image")" "$(<"$work/got-$client-${image//\//-}")"
        done
        stop "$client" || true
    done

    involved=(larder)
    same "the upstream gave each of the $(wc -l <<<"$blobs") blobs once" "$(awk '{print 1, $1}' <<<"$blobs")" \
        "$(upstream_gave '.*/blobs' | sort | uniq -c | awk '{print $1, $2}')"
    # Not so team/app, which is two repositories for larder: Docker asks for it at docker.io, the others at registry.test.
    same "the upstream gave each manifest of library/ once" "$manifests" "$(upstream_gave 'library/.*/manifests' | wc -l)"
}

# What the client makes of the images when nothing lies between.
directly() {
    local client=$1 image
    [[ ! -d $work/expected/$client ]] || return 0
    check "$client starts with an empty storage" start_empty "$client"
    for image in "${images[@]}"; do
        mkdir -p "$(dirname "$work/expected/$client/$image")"
        "${client}_pull" "$registry/$image:latest" directly >"$work/expected/$client/$image" 2>>"$work/log/$client" || true
        check "$client pulls $image directly" test -s "$work/expected/$client/$image"
    done
}

start_empty() {
    stop "$1" || true
    # Engines mount folders of their storage onto themselves, and not all of them undo it.
    awk -v below="$work/$1/" 'index($2, below) == 1 { print $2 }' /proc/mounts | sort -r | xargs -r umount --lazy &&
        rm -rf "${work:?}/$1" && mkdir "$work/$1" && "$1_start"
}

expected() { cat "$work/expected/$1/$2"; }

through_larder() { "$1_pull" "$("$1_name" "$2")" mirrored 2>>"$work/log/$1" || true; }

# The name for clients that can ask for any registry's images.
canonical_name() { if [[ $1 == library/* ]]; then echo "docker.io/$1:latest"; else echo "registry.test/$1:latest"; fi; }

# upstream_gave PATH [REGISTRY]: the last part of each path below it that was answered with a body, from the upstream's access log.
# Not the single byte by which larder makes sure that a repository holds a blob which another has brought.
upstream_gave() { sed -nE "/\" 206 1 /d; s|.*\"GET /v2/$1/([^ ?]*)[^\"]*\" 20[06] .*|\1|p" "$work/log/${2:-registry}"; }
