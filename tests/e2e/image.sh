# shellcheck shell=bash disable=SC2034,SC2154
# larder's image, built from the Dockerfile by the local engine: it serves a pull as nobody in particular, from a root that is read-only.

image() {
    local base=gcr.io/distroless/cc-debian12:nonroot pid
    echo "# image"
    involved=(image)
    directly skopeo
    check "podman starts with an empty storage" start_empty podman
    check "a base is made of this machine's C library and certificates" make_base "$base"
    check "the image is built" build_image
    same "it runs as nobody in particular" 65532:65532 "$(image_says .Config.User)"
    same "its health is asked for" '[CMD /usr/bin/larder health]' "$(image_says .HealthCheck.Test)"
    check "it runs, with a root that is read-only" run_image
    pid=$(podman_tool inspect --format '{{.State.Pid}}' mirror) || pid=self
    same "as that user" "65532 65532 65532 65532" "$(awk '/^Uid/ { print $2, $3, $4, $5 }' "/proc/$pid/status")"
    same "with no capability" 0000000000000000 "$(awk '/^CapEff/ { print $2 }' "/proc/$pid/status")"
    same "and writes to nothing but its volume" "/data" \
        "$(awk '$4 ~ /^rw/ && $3 !~ /^(proc|sysfs|tmpfs|devpts|mqueue|cgroup2?|devtmpfs|shm)$/ { print $2 }' "/proc/$pid/mounts" | grep -v '^/\(etc\|run\|dev\)/')"
    check "it is healthy" podman_tool healthcheck run mirror
    check "skopeo starts with an empty storage" start_empty skopeo
    pulls_all skopeo "from the container"
    check "a command finds its cache" says library/hello podman_tool exec mirror /usr/bin/larder ls
    check "the container ends when it is told to" podman_tool stop --time 10 mirror
    same "well" 0 "$(podman_tool inspect --format '{{.State.ExitCode}}' mirror)"
    stop skopeo || true
}

# What larder needs of gcr.io/distroless/cc, which is out of reach here.
make_base() {
    local root=$work/base file
    mkdir -p "$root/etc/ssl/certs" "$root/tmp" &&
        echo 'nonroot:x:65532:65532:nonroot:/home/nonroot:/sbin/nologin' >"$root/etc/passwd" &&
        cp -L /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/" &&
        for file in $(ldd "$work/larder" | grep -o '/[^ ]*'); do install -D "$file" "$root$file" || return; done
    tar -C "$root" -c . | podman_tool import - "$1"
}

build_image() {
    local context=$work/image
    mkdir -p "$context/dist/data" && cp -r "$here/../../Dockerfile" "$here/../../.dockerignore" "$here/../../config" "$context" &&
        cp "$work/larder" "$context/dist/larder-$(dpkg --print-architecture)" &&
        podman_tool build --pull=never --format docker --isolation chroot --target released --tag localhost/larder "$context"
}

image_says() { podman_tool image inspect --format "{{$1}}" localhost/larder; }

run_image() {
    local end=$((SECONDS + 20))
    stop larder || true
    podman_tool run --detach --name mirror --read-only --cap-drop all --security-opt no-new-privileges --network host \
        --env "LARDER_UPSTREAM_DOCKER_IO_URL=http://$registry" \
        --env LARDER_UPSTREAM_QUAY_IO_URL="http://$registry" --env LARDER_UPSTREAM_QUAY_IO_ALIASES=registry.test localhost/larder &&
        until answers "$larder"; do ((SECONDS < end)) && sleep 0.1 || return 1; done
}
