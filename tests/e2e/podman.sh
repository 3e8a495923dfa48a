# shellcheck shell=bash disable=SC2154
# podman, pointed at larder by registries.conf: the registry's name is the first part of the path.

podman_start() {
    local host
    for host in docker.io registry.test; do
        cat <<-END
			[[registry]]
			prefix = "$host"
			location = "$host"
			[[registry.mirror]]
			location = "$larder/$host"
			insecure = true
		END
    done >"$work/podman/registries.conf"
}

podman_tool() {
    local home=$work/podman
    local registries=${podman_registries-$home/registries.conf}
    bounded env ${registries:+"CONTAINERS_REGISTRIES_CONF=$registries"} podman --root "$home/root" --runroot "$home/run" \
        --tmpdir "$home/tmp" --storage-driver vfs --cgroup-manager cgroupfs --events-backend none "$@"
}

podman_name() { canonical_name "$1"; }

podman_pull() {
    local way=()
    [[ $2 == mirrored ]] || way=(--tls-verify=false)
    podman_tool pull --quiet "${way[@]}" "$1" >&2 && podman_has "$1"
}

podman_has() { podman_tool image inspect --format '{{.Id}} {{.Digest}} {{.RootFS.Layers}}' "$1"; }
