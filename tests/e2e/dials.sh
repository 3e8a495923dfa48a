# shellcheck shell=bash disable=SC2034,SC2154
# What others make of larder's metrics: promtool finds nothing wrong, and a real Prometheus scrapes them, has what larder has, and
# answers whatever the dashboard and the alerts ask.

prometheus=127.0.0.1:9290
operator=127.0.0.1:5001
shipped=$here/../../config

dials() {
    local blob
    echo "# dials"
    involved=(larder prometheus)
    check "larder starts with an empty cache" start_larder_empty
    check "a Prometheus starts that scrapes it" start_prometheus
    blob=$(upstream_manifest library/hello latest | jq -r '.layers | max_by(.size).digest')
    check "a layer is pulled, and again" twice "library/hello/blobs/$blob"
    check "a manifest is pulled, and again" twice library/hello/manifests/latest
    check "tags are listed" bounded curl -fsS -o /dev/null "http://$larder/v2/library/hello/tags/list"
    same "what is not there is refused" 404 "$(status "http://$larder/v2/library/none/manifests/latest")"
    same "what is nowhere is refused" 404 "$(status "http://$larder/nowhere")"
    same "a push is refused" 405 "$(bounded curl -sS -o /dev/null -w '%{http_code}' -X PUT "http://$larder/v2/library/hello/manifests/x")"

    check "promtool finds nothing wrong with the page" well_made
    check "nor with the alerts" promtool check rules "$shipped/prometheus/larder.yml"
    check "each alert is raised by its trouble, and by nothing that only looks like it" alerts_are_right
    same "Prometheus says that larder is up" 1 "$(asked 'up{job="larder"}')"
    same "it finds nothing wrong with the page as it asks for it" "up none" "$(target)"
    same "it has the hits" "$(shown 'larder_answers_total{served="hit"}')" "$(asked 'larder_answers_total{served="hit"}')"
    same "it has the bytes from upstream" "$(shown 'larder_upstream_bytes_total{upstream="docker.io",kind="blob"}')" \
        "$(asked 'larder_upstream_bytes_total{upstream="docker.io",kind="blob"}')"
    same "it has the buckets" 1 "$(asked 'larder_answer_seconds_bucket{kind="blob",served="hit",le="+Inf"}')"
    same "it has the refusals" 1 "$(asked 'larder_errors_total{code="MANIFEST_UNKNOWN",status="404"}')"
    same "it has the process" true "$(asked 'process_open_fds > bool 3' | sed s/1/true/)"
    same "it knows what each is" counter "$(bounded curl -fsS "http://$prometheus/api/v1/metadata" | jq -r '.data.larder_answers[0].type')"
    check "each query of the dashboard is answered" dashboard_is_answered
    same "each alert can be judged, and none is raised" "11 ok inactive" "$(alerts)"
    check "Prometheus ends when it is told to" stop prometheus
    check "larder ends when it is told to" stop larder
}

start_prometheus() {
    rm -rf "$work/prometheus" && mkdir "$work/prometheus"
    cp "$shipped/prometheus/larder.yml" "$work/prometheus/"
    cat >"$work/prometheus/prometheus.yml" <<-END
		global: {scrape_interval: 1s, evaluation_interval: 1s}
		rule_files: [larder.yml]
		scrape_configs:
		  - job_name: larder
		    static_configs: [{targets: ["$operator"]}]
	END
    promtool check config "$work/prometheus/prometheus.yml" &&
        start prometheus prometheus --config.file="$work/prometheus/prometheus.yml" --storage.tsdb.path="$work/prometheus/data" \
            --web.listen-address="$prometheus" && ready prometheus curl -fsS --max-time 2 "http://$prometheus/-/ready"
}

# Until the blob is kept, it would be joined.
twice() {
    local end=$((SECONDS + 20)) before
    before=$(shown 'larder_answers_total{served="hit"}')
    until [[ $(shown 'larder_answers_total{served="hit"}') -gt ${before:-0} ]]; do
        ((SECONDS < end)) && bounded curl -fsS -o /dev/null "http://$larder/v2/$1" || return 1
        sleep 0.1
    done
}

# promtool says on stderr what it finds, also where it does not fail.
well_made() {
    local found
    bounded curl -fsS "http://$operator/metrics" >"$work/page" || return 1
    found=$(promtool check metrics <"$work/page" 2>&1) && [[ -z $found ]] || { echo "$found" && return 1; }
}

# shown SERIES: as larder tells it
shown() { bounded curl -fsS "http://$operator/metrics" | awk -v series="$1" 'index($0, series " ") == 1 { print $NF }'; }

# asked QUERY: the one value that it has, once Prometheus has scraped what has happened by now
asked() {
    local now value end=$((SECONDS + 20))
    now=$(date +%s.%N)
    until value=$(query "timestamp(up{job=\"larder\"}) > $now" | jq -er '.data.result[0].value[1]'); do
        ((SECONDS < end)) && sleep 0.2 || return 1
    done
    query "$1" | jq -r '.data.result[].value[1]'
}

query() { bounded curl -fsS "http://$prometheus/api/v1/query" --data-urlencode "query=$1"; }

target() {
    bounded curl -fsS "http://$prometheus/api/v1/targets" |
        jq -r '.data.activeTargets[] | "\(.health) \(if .lastError == "" then "none" else .lastError end)"'
}

dashboard_is_answered() {
    local expr failed=0 answered=0 total=0
    while IFS= read -r expr; do
        expr=${expr//\$__rate_interval/1m}
        expr=${expr//\$__range/10m}
        expr=${expr//\$job/larder}
        expr=${expr//\$instance/.*}
        total=$((total + 1))
        if query "$expr" >"$work/answer"; then
            answered=$((answered + $(jq '.data.result | length > 0 | if . then 1 else 0 end' "$work/answer")))
        else
            echo "not answered: $expr"
            failed=1
        fi
    done < <(jq -r '.panels[].targets[]?.expr' "$shipped/grafana/larder.json")
    echo "$answered of $total have something to show"
    # Where nothing counts pulls and nothing goes wrong, some have not.
    ((!failed && total > 40 && answered > 30))
}

# All of them are in the test, and the test passes.
alerts_are_right() {
    rm -rf "$work/alerts" && mkdir "$work/alerts"
    cp "$shipped/prometheus/larder.yml" "$here/dials/alerts.yml" "$work/alerts/"
    diff <(grep -o 'alert: [A-Za-z]*' "$work/alerts/larder.yml" | cut -d' ' -f2 | sort) \
        <(grep -o 'alertname="[A-Za-z]*"' "$work/alerts/alerts.yml" | cut -d'"' -f2 | sort) &&
        bounded promtool test rules "$work/alerts/alerts.yml"
}

alerts() {
    bounded curl -fsS "http://$prometheus/api/v1/rules" | jq -r '[.data.groups[].rules[]] |
        "\(length) \([.[].health] | unique | join(",")) \([.[].state] | unique | join(","))"'
}
