# shellcheck shell=bash disable=SC2034,SC2154
# What docker, podman and skopeo write for `docker load` comes in by larder import, and podman has the same image from there.

saved() {
    local name=docker.io/library/saved:v1 layers archive
    echo "# saved"
    involved=(podman skopeo docker larder)
    mkdir -p "$work/saved"
    check "podman starts with an empty storage" start_empty podman
    check "podman pulls library/hello directly" podman_tool pull --quiet --tls-verify=false "$registry/library/hello:latest"
    layers=$(podman_layers "$registry/library/hello:latest")
    check "podman saves it" podman_tool save --quiet --output "$work/saved/podman" "$registry/library/hello:latest"
    check "skopeo copies it into such an archive" bounded skopeo copy --quiet --src-tls-verify=false \
        "docker://$registry/library/hello:latest" "docker-archive:$work/saved/skopeo:$name"
    check "docker starts with an empty storage" start_empty docker
    check "docker pulls library/hello directly" docker_tool pull --quiet "$registry/library/hello:latest"
    # Debian's names layers by IDs of its own.
    check "docker saves it" docker_tool save --output "$work/saved/docker" "$registry/library/hello:latest"
    check "it is what Docker wrote before 25" grep -q '/layer.tar$' <(tar -tf "$work/saved/docker")
    stop docker || true
    # It would say that it has no such image.
    check "the upstream is stopped" stop_registry
    for archive in podman skopeo docker; do
        check "larder ends" stop larder
        rm -rf "$work/cache"
        check "larder imports what $archive wrote" bounded "$work/larder" import "$work/saved/$archive" --as "$name" \
            --set "cache.dir=$work/cache" --set cache.min_free=0%
        check "larder starts with it" start_larder
        check "podman starts with an empty storage" start_empty podman
        check "podman pulls it" podman_tool pull --quiet "$name"
        same "it has the layers that it had" "$layers" "$(podman_layers "$name")"
    done
    stop podman || true
    check "larder ends" stop larder
    check "the upstream is back" start_registry
}

podman_layers() { podman_tool image inspect --format '{{.RootFS.Layers}}' "$1" 2>>"$work/log/podman"; }
