# shellcheck shell=bash disable=SC2034,SC2154
# The images that the upstream holds, and what they consist of.

images=(library/hello team/app library/multi)

# Once, for all cases that are about images.
have_images() {
    local part
    [[ ! -d $work/context ]] || return 0
    start_registry || { tail -n 20 "$work/log/registry" && exit 1; }
    for part in hello app amd64 arm64; do
        mkdir -p "$work/context/$part"
        # Random bytes stay as big as they are: a layer of a few MiB takes many reads and writes on its way.
        head -c 4M /dev/urandom >"$work/context/$part/large"
        head -c 300k /dev/urandom >"$work/context/$part/small"
        echo "this is $part" >"$work/context/$part/text"
    done
    check "the upstream holds library/hello, a Docker schema 2 image" publish_hello
    check "the upstream holds team/app, an OCI image on the layers of library/hello" publish_app
    check "the upstream holds library/multi, an OCI index of two platforms" publish_multi
}

publish_hello() { layers hello scratch | build docker --tag hello && push hello library/hello:latest; }

publish_app() { layers app localhost/hello | build oci --tag app && push app team/app:latest && push app team/app:2.0; }

publish_multi() {
    layers amd64 scratch | build oci --platform linux/amd64 --manifest multi &&
        layers arm64 scratch | build oci --platform linux/arm64 --manifest multi &&
        builder manifest push --tls-verify=false --all multi "docker://$registry/library/multi:latest"
}

layers() { printf 'FROM %s\n' "$2" && printf "COPY $1/%s /$1/\n" large small text && echo "CMD [\"/$1\"]"; }

build() { builder build --layers --isolation chroot --pull=false --format "$1" "${@:2}" --file - "$work/context"; }

push() { builder push --tls-verify=false "$1" "docker://$registry/$2"; }

builder() { bounded buildah --root "$work/build/root" --runroot "$work/build/run" --storage-driver vfs "$@"; }

# manifests_of IMAGE: the references of all manifests that it consists of
manifests_of() { echo latest && upstream_manifest "$1" latest | jq -r '.manifests[]?.digest'; }

# blobs_of IMAGE: the digests of configurations and layers, over all platforms
blobs_of() {
    local reference
    for reference in $(manifests_of "$1"); do
        upstream_manifest "$1" "$reference" | jq -r '.config // empty, .layers[]? | .digest'
    done
}

upstream_manifest() {
    local type=application/vnd
    curl -fsS "http://$registry/v2/$1/manifests/$2" -H "Accept: $type.docker.distribution.manifest.v2+json" \
        -H "Accept: $type.oci.image.manifest.v1+json" -H "Accept: $type.oci.image.index.v1+json"
}
