# shellcheck shell=bash disable=SC2034,SC2154
# `larder setup`: clients with their configuration where it always is, and with something in it, are led to larder and back.

setup() {
    local client before registered
    echo "# setup"
    involved=(larder setup)
    for client in docker containerd podman; do directly "$client"; done
    check "larder starts with an empty cache" start_larder_empty
    local docker_config=/etc/docker/daemon.json containerd_hosts=/etc/containerd/certs.d podman_registries=
    configure_by_hand
    before=$(configured)
    for client in docker containerd podman; do check "larder setup $client shows what to put where" says "$larder" set_up "$client"; done
    same "and changes nothing" "$before" "$(configured)"
    for client in docker containerd podman; do check "larder setup $client --write" set_up "$client" --write; done
    registered=$(configured)
    for client in docker containerd podman; do check "once more, for $client" set_up "$client" --write; done
    same "changes nothing" "$registered" "$(configured)"
    check "what stood there stays" stands_there

    for client in docker containerd podman; do
        involved=("$client" larder setup)
        check "$client starts with an empty storage" start_empty "$client"
        pulls_all "$client" "as it was set up"
        stop "$client" || true
    done
    for client in docker containerd podman; do check "larder setup $client --undo" set_up "$client" --undo; done
    same "every byte is what it was" "$before" "$(configured)"
    check "docker starts by that" start_empty docker
    check "and knows no mirror of larder's any more" fails says "$larder" docker_tool info
    stop docker || true
}

set_up() { bounded "$work/larder" setup "$@" --config "$work/larder.toml" | tee -a "$work/log/setup"; }

says() { "${@:2}" | grep -F -e "$1"; }

# What a machine's owner may have there already.
configure_by_hand() {
    mkdir -p /etc/containerd/certs.d/docker.io /etc/containers/registries.conf.d
    printf '{\n\t"max-concurrent-downloads": 4,\r\n  "registry-mirrors": ["http://127.0.0.1:1"]\n}' >/etc/docker/daemon.json
    chmod 600 /etc/docker/daemon.json
    printf '# by hand\n[host."http://127.0.0.1:1"]\n  capabilities = ["pull"]\n' >/etc/containerd/certs.d/docker.io/hosts.toml
    printf '[aliases]\n"hello" = "docker.io/library/hello"\n' >/etc/containers/registries.conf.d/shortnames.conf
    printf 'unqualified-search-registries = ["docker.io"]\n' >/etc/containers/registries.conf
}

stands_there() {
    jq -e '."max-concurrent-downloads" == 4 and ."registry-mirrors"[1] == "http://127.0.0.1:1"' /etc/docker/daemon.json &&
        grep -q 'by hand' /etc/containerd/certs.d/docker.io/hosts.toml &&
        [[ $(stat -c %a /etc/docker/daemon.json) == 600 ]]
}

# Every file and directory there, with owner, mode and content.
configured() {
    local places=(/etc/docker /etc/containerd /etc/containers)
    find "${places[@]}" -printf '%p %y %m %U:%G %l\n' | sort
    find "${places[@]}" -type f -exec sha256sum {} + | sort
}
