# shellcheck shell=bash disable=SC2154
# skopeo, which is configured nowhere: it names larder as the registry, and the registry as the first part of the path.

skopeo_start() { :; }

skopeo_name() { echo "$larder/$(canonical_name "$1")"; }

# `oci:` takes this platform's image and makes it an OCI one; `dir:` with --all keeps everything as it came.
skopeo_pull() {
    local copy
    copy=$(mktemp -d "$work/skopeo/copy.XXX")
    bounded skopeo copy --quiet --src-tls-verify=false "docker://$1" "oci:$copy/one" >&2 &&
        bounded skopeo copy --quiet --all --src-tls-verify=false "docker://$1" "dir:$copy/all" >&2 &&
        bounded skopeo inspect --no-tags --tls-verify=false "docker://$1" | jq 'del(.Name)' &&
        (cd "$copy" && find . -type f -exec sha256sum {} + | sort -k 2)
}

skopeo_more() {
    same "skopeo lists the tags of team/app" "$(skopeo_tags "$registry/team/app")" "$(skopeo_tags "$larder/registry.test/team/app")"
}

skopeo_tags() { bounded skopeo list-tags --tls-verify=false "docker://$1" 2>>"$work/log/skopeo" | jq -c .Tags; }
