# shellcheck shell=bash disable=SC2034,SC2154
# The conformance suite of the distribution spec: pull and content discovery, read-only, as a mirror takes nothing. What is read was
# first pushed to the upstream by the same suite, in all the shapes that it knows and this registry takes.

conforms() {
    local repository=conformance/repo1
    echo "# conformance"
    involved=(suite larder)
    check "the conformance suite is here" test -x "$work/suite"
    # Debian's registry does not pass it, which is not what is tested.
    suite "$registry" push OCI_API_PUSH=true || true
    contents "$registry/v2/$repository" >"$work/contents"
    local tags manifests blobs
    tags=$(of_kind tag) manifests=$(of_kind manifest) blobs=$(of_kind blob)
    check "the upstream holds tags, manifests and blobs of it" test -n "$tags" -a -n "$manifests" -a -n "$blobs"
    check "larder starts with an empty cache" start_larder_empty
    local what=(OCI_API_PUSH=false OCI_RO_DATA_TAGS="$tags" OCI_RO_DATA_MANIFESTS="$manifests" OCI_RO_DATA_BLOBS="$blobs"
        OCI_RO_DATA_REFERRERS="$manifests")
    for how in cold warm; do conforms_so "$how" "${what[@]}"; done
}

# conforms_so HOW VARIABLE=VALUE...: all that a mirror has passes, and nothing fails
conforms_so() {
    local how=$1 said api count
    shift
    suite "$larder" "read" "$@" || true
    said=$(sed -n '/^OCI Conformance Result/,/^Data conformance/p' "$work/log/suite-read")
    same "$how, the suite says of larder" Pass "$(said_of "OCI Conformance Result")"
    same "$how, so many of its checks fail" 0 "$(said_of FAIL)"
    count=$(said_of Pass)
    check "$how, $count of them pass, some for each thing" test "${count:-0}" -gt "$(wc -l <"$work/contents")"
    for api in "Ping" "Tag listing" "Manifest get by digest" "Manifest get by tag" "Manifest head by digest" "Manifest head by tag" \
        "Blob get" "Blob head" "Referrers"; do
        same "$how, $api" Pass "$(said_of "$api")"
    done
}

# said_of LINE: what stands behind it in the suite's summary
said_of() { sed -nE "s/^ *$1\.*: +//p" <<<"$said" | head -n 1; }

# suite REGISTRY LOG VARIABLE=VALUE...: deletes are for registries that one can push to. It crashes while it writes a report that nobody
# wants of a run without pushes, so its exit status says nothing.
suite() {
    bounded env OCI_REGISTRY="$1" OCI_TLS=disabled OCI_VERSION=1.1 OCI_RESULTS_DIR="$work/tmp/results" OCI_API_TAGS_DELETE=false \
        OCI_API_MANIFESTS_DELETE=false OCI_API_BLOBS_DELETE=false "${@:3}" "$work/suite" >"$work/log/suite-$2" 2>&1
}

# contents REPOSITORY: a line "kind name" for each thing that its tags lead to
contents() {
    local tag
    declare -A seen=()
    for tag in $(curl -fsS "http://$1/tags/list" | jq -r '.tags[]'); do
        echo "tag $tag"
        below "$1" "$(curl -fsSI -H "$manifest_types" "http://$1/manifests/$tag" | sed -nE 's/^docker-content-digest: (\S+).*/\1/Ip')"
    done | sort -u
}

# Layers with URLs of their own are not there to be fetched.
below() {
    local child body
    [[ -n $2 && -z ${seen[$2]:-} ]] || return 0
    seen[$2]=1
    echo "manifest $2"
    body=$(curl -fsS -H "$manifest_types" "http://$1/manifests/$2")
    jq -r '[.config, .layers[]?] | .[] | select(. and (.urls | not)) | "blob " + .digest' <<<"$body"
    for child in $(jq -r '.manifests[]?.digest' <<<"$body"); do below "$1" "$child"; done
}

manifest_types='Accept: application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json'

of_kind() { awk -v kind="$1" '$1 == kind { printf "%s%s", space, $2; space = " " }' "$work/contents"; }
