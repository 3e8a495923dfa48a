# shellcheck shell=bash disable=SC2154
# The Docker engine, pointed at larder by "registry-mirrors": nothing in its requests says docker.io.

docker_start() {
    local home=$work/docker
    echo "{\"registry-mirrors\": [\"http://$larder\"]}" >"$home/daemon.json"
    start docker dockerd --config-file "${docker_config:-$home/daemon.json}" --data-root "$home/data" --exec-root "$home/exec" \
        --pidfile "$home/pid" --host "unix://$home/socket" --log-level warn --storage-driver vfs \
        --bridge none --iptables=false --ip6tables=false
    ready docker docker_tool version
}

docker_tool() { bounded docker --host "unix://$work/docker/socket" "$@"; }

# Docker mirrors docker.io alone, so team/app is asked for there as well.
docker_name() { echo "${1#library/}:latest"; }

docker_pull() { docker_tool pull --quiet "$1" >&2 && docker_has "$1"; }

docker_has() { docker_tool image inspect --format '{{.Id}} {{.RootFS.Layers}}' "$1"; }
