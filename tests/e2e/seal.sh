# shellcheck shell=bash disable=SC2034,SC2154
# The site without a network: images are pulled outside, carried in as one archive, and pulled there by everyone, signatures and all.
# The inside is a network of its own, with a loopback and nothing else; the registry and its packets stay outside.

names=(docker.io/library/hello docker.io/library/multi docker.io/team/app registry.test/team/app)

sealed() {
    local client image here_too
    echo "# sealed"
    site=$work/seal
    involved=(larder seal)
    mkdir -p "$site"
    for client in "${clients[@]}"; do directly "$client"; done
    check "library/multi and library/hello are signed, and library/multi has an SBOM" publish_signatures
    check "larder starts with an empty cache" start_larder_empty
    check "larder pulls all, for all platforms, from a list" pull_outside
    check "given again it fetches nothing" pulls_nothing
    check "larder writes one archive of them" outside export --all --output "$site/bundle.tar"
    check "the same images give the same bytes, also through a pipe" piped_alike
    check "and in several files" split_alike
    too_small
    takes_the_bundle
    killed_orders

    check "larder ends" stop larder
    # The upstream is left running: that nobody inside reaches it is the point.
    here_too=$(unshare --net --mount bash "$here/inside" "$work" behind_the_wall) || true
    grep -v ' passed, ' <<<"$here_too" || true
    passed=$((passed + $(grep -c '^ok ' <<<"$here_too" || true)))
    failed=$((failed + $(grep -c '^FAIL' <<<"$here_too" || true)))
    check "what is to be shown inside was come to its end" grep -q ' passed, ' <<<"$here_too"
}

outside() { bounded "$work/larder" "$@" --config "$work/larder.toml" 2>>"$work/log/seal"; }

pull_outside() {
    printf '%s  # wanted inside\n' "${names[@]}" >"$site/list"
    outside pull --from "$site/list" --platform all --referrers --pin
}

pulls_nothing() { [[ $(pull_outside | grep -c 'was here already') == "${#names[@]}" ]]; }

piped_alike() { cmp <(outside export --all --output -) "$site/bundle.tar"; }

split_alike() {
    outside export --all --output "$site/split.tar" --split 5MiB && test -f "$site/split.tar.001" &&
        cmp <(cat "$site"/split.tar.*) "$site/bundle.tar"
}

# === a disk that is full under the archive ===

too_small() {
    local small=$site/small size
    involved=(seal)
    size=$(stat -c %s "$site/bundle.tar")
    mkdir -p "$small" && mount -t tmpfs -o size=$((size / 2)) tmpfs "$small" && mkdir "$small/layout"
    check "where the disk is full under the archive, a line says so and nothing stays" does_not_fit "$small/a.tar"
    check "nor of several files" does_not_fit "$small/s.tar" --split 1MiB
    check "nor in a directory" does_not_fit "$small/layout"
    check "what is in the cache is as it was" outside verify --rate 10GiB
    mount -o "remount,size=$((size * 6))" "$small"
    check "with room the same order writes it, whole" fits_now
    umount "$small"
}

# does_not_fit OUTPUT [OPTION...]
does_not_fit() {
    local said status=0
    said=$(bounded "$work/larder" export --all --output "$@" --config "$work/larder.toml" 2>&1 >/dev/null) || status=$?
    [[ $status == 1 && $said == "larder: $1: No space left on device (os error 28)" ]] || { echo "$status: $said" && return 1; }
    [[ $(cd "$small" && find . -mindepth 1) == ./layout ]]
}

fits_now() {
    outside export --all --output "$small/a.tar" && cmp "$small/a.tar" "$site/bundle.tar" &&
        outside export --all --output "$small/s.tar" --split 1MiB && cmp <(cat "$small"/s.tar.*) "$site/bundle.tar" &&
        outside export --all --output "$small/layout" && tar -xf "$site/bundle.tar" -C "$(mktemp -d "$small/here.XXX")" &&
        diff -r "$small/layout" "$small"/here.*
}

# === the archive, as it is, for each of those who load archives ===

takes_the_bundle() {
    local image name
    involved=(docker containerd podman skopeo)
    check "docker starts with an empty storage" start_empty docker
    check "docker loads the archive" docker_tool load --quiet --input "$site/bundle.tar"
    check "containerd starts with an empty storage" start_empty containerd
    check "ctr imports the archive" containerd_tool images import --all-platforms --snapshotter native "$site/bundle.tar"
    check "podman starts with an empty storage" start_empty podman
    check "podman loads the archive" podman_tool load --quiet --input "$site/bundle.tar"
    for image in "${images[@]}"; do
        name=$(canonical_name "$image")
        same "docker has $image from it" "$(expected docker "$image")" "$(docker_has "$(docker_name "$image")")"
        same "containerd has $image from it" "$(expected containerd "$image")" "$(containerd_has "$name")"
        # An archive for docker load has manifests of nobody's; podman says which it has made.
        same "podman has $image from it" "$(awk '{ $2 = ""; print }' <<<"$(expected podman "$image")")" \
            "$(awk '{ $2 = ""; print }' <<<"$(podman_has "$name")")"
        # To Debian's skopeo only manifests of OCI's types are images of a layout.
        if [[ $image == library/hello ]]; then
            same "skopeo copies $image out of it, as docker would load it" \
                "$(expected docker "$image" | cut -d ' ' -f 1)" "$(config_of "docker-archive:$site/bundle.tar:$name")"
        else
            same "skopeo copies $image out of it, all of it as it was" "$(copied "docker://$registry/$image:latest")" \
                "$(copied "oci-archive:$site/bundle.tar:$name")"
        fi
    done
    stop docker || true
    stop containerd || true
    stop podman || true
}

# copied SOURCE: all that skopeo finds there
copied() {
    local copy
    copy=$(mktemp -d "$site/copy.XXX")
    bounded skopeo copy --quiet --all --src-tls-verify=false "$1" "dir:$copy" >>"$work/log/skopeo" 2>&1 &&
        (cd "$copy" && find . -type f -exec sha256sum {} + | sort -k 2)
    rm -rf "$copy"
}

config_of() { bounded skopeo inspect --raw "$1" 2>>"$work/log/skopeo" | jq -r .config.digest; }

# === kill -9 at any moment of a pull, an import, an export ===

killed_orders() {
    local round rounds=${ROUNDS:-10} on=() wrong=$work/log/wrong-orders
    involved=(wrong-orders seal)
    on=(--config "$work/larder.toml" --set "cache.dir=$site/cache")
    : >"$wrong"
    for ((round = 0; round < rounds; round++)); do
        rm -rf "$site/cache"
        killed_at $((RANDOM % 500)) pull --from "$site/list" --platform all --referrers --pin
        alone pull --from "$site/list" --platform all --referrers --pin >/dev/null || echo "$round: pull" >>"$wrong"
        alone verify --rate 10GiB >/dev/null || echo "$round: verify after pull" >>"$wrong"
        gives_the_bundle || echo "$round: export after pull" >>"$wrong"
        rm -f "$site/killed.tar"
        killed_at $((RANDOM % 200)) export --all --output "$site/killed.tar"
        [[ ! -e $site/killed.tar ]] || cmp "$site/killed.tar" "$site/bundle.tar" || echo "$round: a torn archive" >>"$wrong"
        gives_the_bundle || echo "$round: export after export" >>"$wrong"
        rm -rf "$site/killed" && mkdir "$site/killed"
        killed_at $((RANDOM % 200)) export --all --output "$site/killed"
        gives_a_layout || echo "$round: export into a directory after export" >>"$wrong"
        killed_at $((RANDOM % 100)) rm docker.io/library/hello
        killed_at $((RANDOM % 200)) verify --rate 10GiB
        rm -rf "$site/cache"
        killed_at $((RANDOM % 300)) import "$site/bundle.tar"
        alone import "$site/bundle.tar" >/dev/null || echo "$round: import" >>"$wrong"
        alone verify --rate 10GiB >/dev/null || echo "$round: verify after import" >>"$wrong"
        gives_the_bundle || echo "$round: export after import" >>"$wrong"
    done
    check "after kill -9 in $rounds pulls, imports, exports and others, the same again is right and complete" test ! -s "$wrong"
    rm -rf "$site/cache"
}

# killed_at MILLISECONDS ORDER...
killed_at() { timeout --signal=KILL "$(printf '0.%03d' "$1")" "$work/larder" "${@:2}" "${on[@]}" >>"$work/log/seal" 2>&1 || true; }

alone() { bounded "$work/larder" "$@" "${on[@]}" 2>>"$work/log/seal"; }

# Where it was whole before it could be killed, there is nothing left to do.
gives_a_layout() {
    [[ -e $site/killed/oci-layout ]] || alone export --all --output "$site/killed" >/dev/null || return 1
    rm -rf "$site/layout" && mkdir "$site/layout" && tar -xf "$site/bundle.tar" -C "$site/layout" && diff -r "$site/killed" "$site/layout"
}

gives_the_bundle() { alone export --all --output "$site/again.tar" >/dev/null && cmp "$site/again.tar" "$site/bundle.tar"; }

# === inside ===

behind_the_wall() {
    local client image digest
    echo "# inside"
    site=$work/seal
    involved=(larder seal)
    check "there is nothing but a loopback" only_loopback
    check "the upstream is out of reach" out_of_reach
    check "larder starts there, with an empty cache" start_sealed
    check "it takes the archive in" outside import "$site/bundle.tar"
    check "an archive that is here already brings nothing" brings_nothing
    for client in "${clients[@]}"; do
        involved=("$client" larder)
        check "$client starts with an empty storage" start_empty "$client"
        pulls_all "$client" "inside"
        for image in "${images[@]}"; do
            digest=$(outside ls --json "$(canonical_name "$image")" | jq -r .digest)
            same "$client pulls $image inside by its digest" "$(by_digest "$client" "$(expected "$client" "$image")")" \
                "$(by_digest "$client" "$("${client}_pull" "$(digest_name "$client" "$image" "$digest")" mirrored 2>>"$work/log/$client")")"
        done
        if [[ $client == skopeo ]]; then believes_signatures; fi
        stop "$client" || true
    done
    involved=(larder seal)
    check "the SBOM is among the referrers" has_sbom
    check "what is not there is a 404 at once" lacks library/other
    check "and on the list for the next delivery" lists docker.io/library/other:v9
    check "nobody was asked for anything, nor for a name" not grep AF_INET "$work/log/dialled"
    check "larder ends" stop larder
    check "it is imported from several files, without a larder" imports_alone "$site/split.tar"
    check "and from a pipe that compresses" imports_piped
}

only_loopback() { [[ -z $(ip route) ]] && ! ip -6 route | grep -qv ' dev lo '; }

out_of_reach() { ! answers "$registry"; }

# strace writes down whom it would have asked, names' servers too.
start_sealed() {
    rm -rf "$site/inside"
    cat >"$work/larder.toml" <<-END
		[server]
		listen = "$larder"
		[cache]
		dir = "$site/inside"
		max_size = "2GiB"
		min_free = "0%"
		[mirror]
		offline = true
		[upstream."docker.io"]
		url = "http://$registry"
		[upstream."registry.test"]
		url = "http://$registry"
	END
    : >"$work/log/larder"
    start larder strace -D -f --seccomp-bpf --quiet=all -e trace=connect -o "$work/log/dialled" \
        "$work/larder" serve --config "$work/larder.toml"
    ready larder answers "$larder"
}

brings_nothing() { [[ $(outside import "$site/bundle.tar" | grep -vc 'was here already') == 0 ]]; }

digest_name() {
    case $1 in
        docker) echo "${2#library/}@$3" ;;
        skopeo) echo "$larder/$(canonical_name "$2" | sed 's/:[^:]*$//')@$3" ;;
        *) echo "$(canonical_name "$2" | sed 's/:[^:]*$//')@$3" ;;
    esac
}

# podman says by which digest it was asked.
by_digest() { if [[ $1 == podman ]]; then awk '{ $2 = ""; print }' <<<"$2"; else echo "$2"; fi; }

# skopeo, which takes signatures along where it is told to, as cosign would find them; and whose they are.
believes_signatures() {
    local image digest here
    mkdir -p "$site/registries.d"
    printf 'default-docker:\n  use-sigstore-attachments: true\n' >"$site/registries.d/default.yaml"
    for image in library/hello library/multi; do
        here=$(mktemp -d "$site/signed.XXX")
        check "skopeo copies $image inside with its signature" bounded skopeo --registries.d "$site/registries.d" copy --quiet \
            --src-tls-verify=false "docker://$larder/docker.io/$image:latest" "dir:$here"
        digest=sha256:$(sha256sum <"$here/manifest.json" | cut -c -64)
        check "which is one of that image, by the key outside" is_signed "$here/signature-1" "$digest" "$site/key.pub"
        check "and not by another" not is_signed "$here/signature-1" "$digest" "$site/other.pub"
    done
}

not() { ! "$@"; }

# is_signed SIGNATURE DIGEST KEY
is_signed() {
    local said
    said=$(tail -c +2 "$1" | sed 1d)
    jq -r .payload <<<"$said" | base64 -d >"$site/payload" &&
        jq -r '.annotations["dev.cosignproject.cosign/signature"]' <<<"$said" | base64 -d >"$site/signature" &&
        openssl dgst -sha256 -verify "$3" -signature "$site/signature" "$site/payload" &&
        grep -F "\"docker-manifest-digest\":\"$2\"" "$site/payload"
}

has_sbom() {
    local digest referrer layer
    digest=$(outside ls --json docker.io/library/multi:latest | jq -r .digest)
    referrer=$(curl -fsS "http://$larder/v2/library/multi/referrers/$digest" | jq -r '.manifests[0].digest')
    layer=$(curl -fsS "http://$larder/v2/library/multi/manifests/$referrer" | jq -r '.layers[0].digest')
    curl -fsS "http://$larder/v2/library/multi/blobs/$layer" | cmp - "$site/sbom"
}

lacks() { [[ $(curl -sS --max-time 1 -o /dev/null -w '%{http_code}' "http://$larder/v2/$1/manifests/v9") == 404 ]]; }

lists() { outside missing | sed 's/  #.*//' | grep -Fx "$1"; }

imports_alone() {
    rm -rf "$site/inside"
    outside import "$1" && cmp <(outside export --all --output -) "$site/bundle.tar"
}

imports_piped() {
    rm -rf "$site/inside"
    gzip <"$site/bundle.tar" | outside import - && cmp <(outside export --all --output -) "$site/bundle.tar"
}

# === signatures ===

# As cosign makes them, of the index and of each of its manifests; and an SBOM as oras attaches it where there is no referrers API.
publish_signatures() {
    local image reference digest
    openssl ecparam -name prime256v1 -genkey -noout -out "$site/key" && openssl ec -in "$site/key" -pubout -out "$site/key.pub"
    openssl ecparam -name prime256v1 -genkey -noout | openssl ec -pubout -out "$site/other.pub"
    for image in library/hello library/multi; do
        for reference in $(manifests_of "$image"); do
            digest=$(digest_of "$image" "$reference") && signed "$image" "$digest" || return 1
        done
    done
    attached library/multi "$(digest_of library/multi latest)"
}

digest_of() { echo "sha256:$(upstream_manifest "$1" "$2" | sha256sum | cut -c -64)"; }

# signed IMAGE DIGEST
signed() {
    local payload=$site/payload signature config layer
    printf '{"critical":{"identity":{"docker-reference":"docker.io/%s"},"image":{"docker-manifest-digest":"%s"},"type":"cosign container image signature"},"optional":null}' \
        "$1" "$2" >"$payload"
    signature=$(openssl dgst -sha256 -sign "$site/key" "$payload" | base64 -w 0)
    printf '{"architecture":"","os":"","config":{},"rootfs":{"type":"layers","diff_ids":["sha256:%s"]}}' \
        "$(sha256sum <"$payload" | cut -c -64)" >"$site/config"
    config=$(put_blob "$1" "$site/config" application/vnd.oci.image.config.v1+json) &&
        layer=$(put_blob "$1" "$payload" application/vnd.dev.cosign.simplesigning.v1+json) &&
        jq -cn --argjson config "$config" --argjson layer "$layer" --arg signature "$signature" \
            '{schemaVersion: 2, mediaType: "application/vnd.oci.image.manifest.v1+json", config: $config,
              layers: [$layer + {annotations: {"dev.cosignproject.cosign/signature": $signature}}]}' |
        put_manifest "$1" "${2/:/-}.sig" application/vnd.oci.image.manifest.v1+json
}

# attached IMAGE DIGEST
attached() {
    local config layer digest
    echo '{"spdxVersion": "SPDX-2.3"}' >"$site/sbom"
    echo '{}' >"$site/config"
    config=$(put_blob "$1" "$site/config" application/vnd.oci.empty.v1+json) &&
        layer=$(put_blob "$1" "$site/sbom" application/spdx+json) &&
        jq -cn --argjson config "$config" --argjson layer "$layer" --arg digest "$2" \
            '{schemaVersion: 2, mediaType: "application/vnd.oci.image.manifest.v1+json", artifactType: "application/spdx+json",
              config: $config, layers: [$layer], subject: {mediaType: "application/vnd.oci.image.index.v1+json", digest: $digest, size: 1}}' \
            >"$site/artifact" &&
        digest=sha256:$(sha256sum <"$site/artifact" | cut -c -64) &&
        put_manifest "$1" "$digest" application/vnd.oci.image.manifest.v1+json <"$site/artifact" &&
        jq -cn --arg digest "$digest" --argjson size "$(stat -c %s "$site/artifact")" \
            '{schemaVersion: 2, mediaType: "application/vnd.oci.image.index.v1+json", manifests: [{digest: $digest, size: $size,
              mediaType: "application/vnd.oci.image.manifest.v1+json", artifactType: "application/spdx+json"}]}' |
        put_manifest "$1" "${2/:/-}" application/vnd.oci.image.index.v1+json
}

# put_blob IMAGE FILE TYPE: its descriptor
put_blob() {
    local digest to
    digest=sha256:$(sha256sum <"$2" | cut -c -64)
    to=$(curl -fsS -X POST -D - -o /dev/null "http://$registry/v2/$1/blobs/uploads/" | sed -nE 's/^location: *([^\r]*)\r?$/\1/Ip')
    curl -fsS -X PUT -H 'Content-Type: application/octet-stream' --data-binary "@$2" -o /dev/null "$to&digest=$digest" &&
        jq -cn --arg type "$3" --arg digest "$digest" --argjson size "$(stat -c %s "$2")" \
            '{mediaType: $type, digest: $digest, size: $size}'
}

# put_manifest IMAGE REFERENCE TYPE <MANIFEST
put_manifest() { curl -fsS -X PUT -H "Content-Type: $3" --data-binary @- "http://$registry/v2/$1/manifests/$2"; }
