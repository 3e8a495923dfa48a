# shellcheck shell=bash disable=SC2034,SC2154
# The operator's page in a real browser, before a registry with a budget and slow layers. Screenshots go to $OUT, where that is given.

page() {
    local line
    echo "# page"
    involved=(page larder-page)
    while read -r line; do
        case $line in
            "ok  - "*) pass "${line#ok  - }" ;;
            "FAIL - "*) fail "${line#FAIL - }" ;;
            *) echo "$line" ;;
        esac
    done < <(bounded_page)
    same "it came to its end" 0 "$(<"$work/page-status")"
}

bounded_page() {
    local status=0
    timeout --kill-after=5 420 node "$here/page/check.mjs" "$work/larder" "$work" "${OUT:-$work/screenshots}" 2>"$work/log/page" || status=$?
    echo "$status" >"$work/page-status"
}
