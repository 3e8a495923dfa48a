# shellcheck shell=bash disable=SC2015,SC2016,SC2034,SC2154
# A real dockerd and a real containerd pull while the disk fills up under larder, and while the upstream dies in the middle of
# a layer and comes back.

weak=127.0.0.1:5061 # the registry with the images, by a way that is slow and can be cut
deadly=(docker containerd)

engines() {
    local engine image cache=$work/tiny/cache
    echo "# engines"
    have_images
    for engine in "${deadly[@]}"; do
        involved=("$engine" larder)
        directly "$engine"
        check "$engine starts with an empty storage" start_empty "$engine"
        check "the weak way to the registry is open" start_weak
        mkdir -p "$work/tiny" && mount -t tmpfs -o size=40m tmpfs "$work/tiny"
        check "larder starts on a disk of 40 MiB" larder_on_weak "$cache"

        image=team/app
        through_larder "$engine" "$image" >"$work/got" &
        local pulling=$!
        within 10 a_layer_is_coming || fail "a layer is coming"
        check "in the middle of a layer the disk fills up" fill_disk "$work/tiny"
        wait "$pulling" || true
        same "$engine pulls $image all the same" "$(expected "$engine" "$image")" "$(<"$work/got")"
        image=library/hello
        same "$engine pulls $image with the disk full" "$(expected "$engine" "$image")" "$(through_larder "$engine" "$image")"
        free_disk "$work/tiny"

        check "$engine starts with an empty storage" start_empty "$engine"
        check "larder ends when it is told to" stop larder
        rm -rf "$cache"
        check "larder starts with an empty cache" larder_on_weak "$cache"
        image=library/multi
        through_larder "$engine" "$image" >"$work/got" &
        pulling=$!
        within 10 a_layer_is_coming || fail "a layer is coming"
        check "in the middle of a layer the upstream dies" kill_started weak
        sleep 2
        check "it comes back" start_weak
        wait "$pulling" || true
        same "$engine pulls $image all the same" "$(expected "$engine" "$image")" "$(<"$work/got")"
        check "the transfer was resumed" test "$(count larder_fill_resumes_total)" -ge 1
        check "nothing torn is visible" whole "$cache"
        check "the accounts are what lies on the disk" within 5 accounts_agree "$cache"
        stop "$engine" || true
        check "larder ends when it is told to" stop larder
        check "the way ends" stop weak
        umount "$work/tiny"
    done
}

start_weak() {
    cat >"$work/weak.conf" <<-END
		daemon off;
		master_process off;
		pid $work/weak.pid;
		error_log $work/log/weak-errors;
		events { worker_connections 1000; }
		http {
		    access_log off;
		    client_body_temp_path $work/tmp/weak-body;
		    proxy_temp_path $work/tmp/weak-proxy;
		    fastcgi_temp_path $work/tmp/weak-fastcgi;
		    uwsgi_temp_path $work/tmp/weak-uwsgi;
		    scgi_temp_path $work/tmp/weak-scgi;
		    server {
		        listen $weak;
		        location / {
		            proxy_pass http://$registry;
		            proxy_set_header Host \$http_host;
		            limit_rate 1m;
		            limit_rate_after 256k;
		        }
		    }
		}
	END
    start weak nginx -c "$work/weak.conf" -p "$work/tmp"
    ready weak answers "$weak"
}

larder_on_weak() {
    larder_on "$1" "upstream.\"docker.io\".url=http://$weak" "upstream.\"registry.test\".url=http://$weak"
}

# More of it than would come with a manifest.
a_layer_is_coming() { [[ $(du -sk --apparent-size "$work/tiny/cache/partial" 2>/dev/null | cut -f 1) -gt 500 ]]; }
