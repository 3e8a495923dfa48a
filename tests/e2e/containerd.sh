# shellcheck shell=bash disable=SC2154
# containerd, pointed at larder by a hosts directory: it adds the registry's name to every request, as ?ns=.

containerd_start() {
    local host home=$work/containerd
    cat >"$home/config.toml" <<-END
		version = 2
		root = "$home/root"
		state = "$home/state"
		disabled_plugins = ["io.containerd.grpc.v1.cri"]
		[grpc]
		address = "$home/socket"
		[debug]
		level = "warn"
	END
    for host in docker.io registry.test; do
        mkdir -p "$home/hosts/$host"
        cat >"$home/hosts/$host/hosts.toml" <<-END
			server = "https://$host"
			[host."http://$larder"]
			capabilities = ["pull", "resolve"]
		END
    done
    start containerd containerd --config "$home/config.toml"
    ready containerd containerd_tool version
}

containerd_tool() { bounded ctr --address "$work/containerd/socket" "$@"; }

containerd_name() { canonical_name "$1"; }

# First for this platform, as an engine would, then everything that the index names; an export fails if any of it is not there.
# More words are ctr's.
containerd_pull() {
    local name=$1 way=(--hosts-dir "${containerd_hosts:-$work/containerd/hosts}")
    [[ $2 == mirrored ]] || way=(--plain-http "${@:3}")
    containerd_tool images pull "${way[@]}" --snapshotter native "$name" >&2 &&
        containerd_tool images pull "${way[@]}" --snapshotter native --all-platforms "$name" >&2 &&
        containerd_has "$name"
}

containerd_has() {
    local name=$1 export=$work/containerd/export
    containerd_tool images export --all-platforms "$export" "$name" >&2 &&
        containerd_tool images ls "name==$name" | awk 'NR > 1 { print $3 }' &&
        tar -tf "$export" | grep '^blobs/.*/.' | sort
}
