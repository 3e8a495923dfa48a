# shellcheck shell=bash disable=SC2015,SC2016,SC2034,SC2154
# What the faults need: an upstream of plain files that can be slow, die and come back, larder on a disk of its own, and the
# checks that nobody was given a wrong byte and nothing on the disk is torn.

origin=127.0.0.1:5060
admin=127.0.0.1:5001
swift=library/swift # as fast as it goes
slow=library/slow   # 1 MiB a second and request
under=()            # what larder is started by, such as strace -D

# === the upstream ===

start_origin() {
    mkdir -p "$work/origin/v2/$swift/blobs" "$work/origin/v2/$slow/blobs"
    cat >"$work/origin.conf" <<-END
		daemon off;
		master_process off;
		user root;
		pid $work/origin.pid;
		error_log $work/log/origin-errors;
		events { worker_connections 1000; }
		http {
		    log_format short '\$request_method \$uri \$status \$http_range';
		    access_log $work/log/asked short;
		    client_body_temp_path $work/tmp/body;
		    proxy_temp_path $work/tmp/proxy;
		    fastcgi_temp_path $work/tmp/fastcgi;
		    uwsgi_temp_path $work/tmp/uwsgi;
		    scgi_temp_path $work/tmp/scgi;
		    default_type application/octet-stream;
		    root $work/origin;
		    server {
		        listen $origin;
		        location = /v2/ { return 200 '{}'; }
		        location /v2/$slow/ { limit_rate 1m; limit_rate_after 256k; }
		        location / {}
		    }
		}
	END
    : >"$work/log/asked"
    start origin nginx -c "$work/origin.conf" -p "$work/tmp"
    ready origin answers "$origin"
}

# As a machine that loses its power.
kill_origin() { kill_started origin; }

# asked_for METHOD DIGEST: how often
asked_for() { grep -c "^$1 .*$2" "$work/log/asked" || true; }

# new_blob REPOSITORY BYTES: puts random bytes there and prints their digest
new_blob() {
    local new digest
    new=$(mktemp -p "$work/origin")
    head -c "$2" /dev/urandom >"$new"
    digest=$(sha256sum <"$new" | cut -c -64)
    # Readable by whomever the server runs as.
    chmod 644 "$new"
    mv "$new" "$work/origin/v2/$1/blobs/sha256:$digest"
    echo "$digest"
}

# === larder ===

# larder_on DIRECTORY [OPTION...]: starts it with its cache there; options are KEY=VALUE
larder_on() {
    local cache=$1 option words=()
    shift
    for option; do words+=(--set "$option"); done
    cat >"$work/faults.toml" <<-END
		[server]
		listen = "$larder"
		shutdown_grace = "3s"
		[admin]
		listen = "$admin"
		[cache]
		dir = "$cache"
		max_size = "4GiB"
		min_free = "0%"
		[mirror]
		tag_ttl = "1s"
		negative_ttl = "1s"
		[upstream."docker.io"]
		url = "http://$origin"
		connect_timeout = "1s"
		header_timeout = "4s"
		idle_timeout = "2s"
	END
    start larder "${under[@]}" "$work/larder" serve --config "$work/faults.toml" "${words[@]}"
    awake
}

# Until it answers, and no longer than ten seconds; finer than ready, as it is timed.
awake() {
    local end=$((SECONDS + 10))
    until curl -fsS --max-time 1 -o /dev/null "http://$larder/v2/" 2>/dev/null; do
        ((SECONDS < end)) && kill -0 "${pids[larder]:-none}" 2>/dev/null || return 1
        sleep 0.01
    done
}

kill_larder() { kill_started larder; }

# kill_started NAME: SIGKILL, and waits until the kernel is done with it
kill_started() {
    local pid=${pids[$1]:-}
    [[ -n $pid ]] || return 0
    unset "pids[$1]"
    kill -KILL "$pid" 2>/dev/null || true
    wait "$pid" 2>/dev/null || true
}

alive() { kill -0 "${pids[larder]:-none}" 2>/dev/null && answers "$larder"; }

# gauge NAME: its value, labels and all as the page has them
gauge() { curl -fsS --max-time 5 "http://$admin/metrics" | awk -v name="$1" 'index($0, name " ") == 1 { print $NF }'; }

# count NAME: the sum over all labels
count() { curl -fsS --max-time 5 "http://$admin/metrics" | awk -v name="$1" '$1 ~ "^" name "($|{)" { sum += $NF } END { print sum + 0 }'; }

log_says() { grep -qE "$1" "$work/log/larder"; }

# === pulls ===

# pull REPOSITORY DIGEST [RANGE]: fails if it does not come whole; a body that ends well and is wrong is written down for good
pull() {
    local got status=0
    got=$(mktemp -p "$work/tmp")
    curl -fsS --max-time "${patience:-25}" ${3:+--range "$3"} -o "$got" "http://$larder/v2/$1/blobs/sha256:$2" || status=$?
    if ((status == 0)) && ! cmp -s "$got" <(part "$work/origin/v2/$1/blobs/sha256:$2" "${3:-}"); then
        echo "$(date +%T) $1 $2 ${3:-}: $(stat -c %s "$got") bytes that are wrong and end well" >>"$work/log/wrong"
        status=1
    fi
    rm -f "$got"
    return "$status"
}

# part FILE RANGE: all of it, or FIRST-LAST, or FIRST-
part() {
    local first=${2%-*} last=${2#*-}
    if [[ -z $2 ]]; then
        cat "$1"
    elif [[ -z $last ]]; then
        tail -c +$((first + 1)) "$1"
    else
        tail -c +$((first + 1)) "$1" | head -c $((last - first + 1))
    fi
}

# pulls REPOSITORY DIGEST...: all at once; fails if one of them does
pulls() {
    local repository=$1 digest job jobs=() status=0
    shift
    for digest; do
        pull "$repository" "$digest" &
        jobs+=($!)
    done
    for job in "${jobs[@]}"; do wait "$job" || status=1; done
    return "$status"
}

# status_of REPOSITORY DIGEST: the status of a HEAD
status_of() { curl -sS --max-time 15 -I -o /dev/null -w '%{http_code}' "http://$larder/v2/$1/blobs/sha256:$2"; }

# timed COMMAND...: sets took to the milliseconds that it took, whatever became of it
timed() {
    local begun
    begun=$(date +%s%N)
    "$@" || true
    took=$((($(date +%s%N) - begun) / 1000000))
}

# within SECONDS COMMAND...: tries until it succeeds
within() {
    local end=$(($(date +%s%N) + $1 * 1000000000))
    shift
    until "$@"; do
        (($(date +%s%N) < end)) || return 1
        sleep 0.1
    done
}

# comes_again: something new is pulled at once and kept
keeps_again() {
    local digest
    digest=$(new_blob "$swift" 300k)
    pull "$swift" "$digest" && within 2 kept "$1" "$digest"
}

nobody_got_wrong_bytes() { [[ ! -s $work/log/wrong ]] || ! cat "$work/log/wrong"; }

# === the cache directory ===

# kept DIRECTORY DIGEST
kept() { [[ -f $1/blobs/sha256/${2:0:2}/$2 ]]; }

all_kept() {
    local cache=$1 digest
    shift
    for digest; do kept "$cache" "$digest" || { echo "$digest is not kept" && return 1; }; done
}

# Every file under blobs/ hashes to its name.
whole() {
    local torn
    torn=$(cd "$1/blobs/sha256" 2>/dev/null && find . -type f -printf '%f  %p\n' | sha256sum --check --quiet 2>&1 | grep -v 'no properly formatted') || return 0
    [[ -z $torn ]] || { echo "$torn" && return 1; }
}

# visible DIRECTORY: the digests of all files under blobs/
visible() { find "$1/blobs" -type f -printf '%f\n' 2>/dev/null | sort; }

# With nothing under way, what larder counts is what lies there.
accounts_agree() {
    local cache=$1 counted lie
    within 3 idle || { echo "still busy: $(gauge 'larder_cache_bytes{for="reserved"}')" && return 1; }
    counted=$(gauge 'larder_cache_bytes{for="committed"}') lie=$(find "$cache/blobs" -type f -printf '%s\n' | awk '{ sum += int(($1 + 4095) / 4096) * 4096 } END { printf "%d", sum }')
    [[ $counted == "$lie" ]] || { echo "committed: $counted counted, $lie there" && return 1; }
    counted=$(gauge 'larder_cache_bytes{for="partial"}') lie=$(find "$cache/partial" -type f -printf '%b\n' | awk '{ sum += $1 * 512 } END { printf "%d", sum }')
    [[ $counted == "$lie" ]] || { echo "partial: $counted counted, $lie there" && return 1; }
}

idle() { [[ $(gauge 'larder_cache_bytes{for="reserved"}') == 0 && $(gauge 'larder_cache_bytes{for="leaving"}') == 0 ]]; }

# === disks ===

# loop_disk FILE-SYSTEM MEBIBYTES: an empty one of its own at $disk
loop_disk() {
    disk=$work/disk
    mkdir -p "$disk"
    rm -f "$work/disk.img"
    truncate -s "$2M" "$work/disk.img"
    "mkfs.$1" -q "$work/disk.img" && mount -o loop "$work/disk.img" "$disk"
}

remount_disk() { umount "$disk" && mount -o loop "$work/disk.img" "$disk"; }

drop_disk() { umount "$disk" && rm -f "$work/disk.img"; }

# fill_disk DIRECTORY: until not one byte more fits
fill_disk() { ! dd if=/dev/zero of="$1/filler" bs=1M 2>/dev/null || ! dd if=/dev/zero of="$1/filler-2" bs=512 2>/dev/null; }

free_disk() { rm -f "$1"/filler*; }
