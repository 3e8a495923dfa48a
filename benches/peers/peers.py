"""The upstream and the peers: how each is configured, started and looked at."""

import os
import re
import signal
import subprocess
import time
import urllib.request

UPSTREAM_PORT = 5900
CACHE_MEMORY = "8G"


class Process:
    """A server, its children, and what they take of the machine."""

    def __init__(self, command, log):
        self.log = open(log, "ab")
        self.child = subprocess.Popen(command, stdout=self.log, stderr=self.log, stdin=subprocess.DEVNULL)

    def stop(self):
        self.child.send_signal(signal.SIGTERM)
        try:
            self.child.wait(20)
        except subprocess.TimeoutExpired:
            self.child.kill()
            self.child.wait()
        self.log.close()

    def tree(self):
        parents = {}
        for entry in os.listdir("/proc"):
            stat = read(f"/proc/{entry}/stat") if entry.isdigit() else ""
            if stat:
                parents[int(entry)] = int(stat.rpartition(")")[2].split()[1])
        tree = {self.child.pid}
        while more := {pid for pid, parent in parents.items() if parent in tree} - tree:
            tree |= more
        return tree


class Peer:
    name = ""
    port = 0
    # Where it speaks TLS, if it does.
    tls_port = None

    def __init__(self, work):
        self.work = work
        self.dir = f"{work}/{self.name}"
        self.processes = []
        os.makedirs(self.dir, exist_ok=True)

    def start(self):
        self.launch()
        deadline = time.monotonic() + 60
        while not answers(self.port):
            if time.monotonic() > deadline or self.processes[0].child.poll() is not None:
                raise SystemExit(f"{self.name} does not start:\n{read(self.dir + '/log')[-3000:]}")
            time.sleep(0.01)

    def launch(self):
        raise NotImplementedError

    def run(self, *command):
        self.processes.append(Process(command, f"{self.dir}/log"))

    def run_nginx(self, http):
        self.run("nginx", "-c", self.write("nginx.conf", nginx(self.dir, http)))

    def write(self, name, text):
        with open(f"{self.dir}/{name}", "w") as file:
            file.write(text)
        return f"{self.dir}/{name}"

    def stop(self):
        for process in reversed(self.processes):
            process.stop()
        self.processes = []

    def restart(self):
        """What an earlier turn needed most is not to count as what it has at rest."""
        self.stop()
        self.start()

    def processor_seconds(self):
        """Of all its processes, in user space and in the kernel."""
        ticks = 0
        for pid in self.tree():
            stat = read(f"/proc/{pid}/stat").rpartition(")")[2].split()
            ticks += int(stat[11]) + int(stat[12]) if stat else 0
        return ticks / os.sysconf("SC_CLK_TCK")

    def anonymous_memory(self):
        """In MiB, of all its processes."""
        kib = 0
        for pid in self.tree():
            found = re.search(r"^RssAnon:\s+(\d+)", read(f"/proc/{pid}/status"), re.M)
            kib += int(found[1]) if found else 0
        return kib / 1024

    def tree(self):
        return set().union(*(process.tree() for process in self.processes))

    def files(self):
        """Where it keeps what it caches; nothing for a cache in memory."""
        return f"{self.dir}/cache"


class Larder(Peer):
    name, port, tls_port = "larder", 5000, 5043

    def launch(self):
        config = self.write(
            "larder.toml",
            f"""
            server.listen = "127.0.0.1:{self.port}"
            admin.listen = ""
            server.listener = [{{ listen = "127.0.0.1:{self.tls_port}", cert_file = "{self.work}/tls.crt", key_file = "{self.work}/tls.key" }}]
            cache.dir = "{self.dir}/cache"
            cache.max_size = "40GiB"
            cache.min_free = "1%"
            mirror.tag_ttl = "1h"
            upstream."docker.io".url = "http://127.0.0.1:{UPSTREAM_PORT}"
            {os.environ.get("LARDER_OPTIONS", "")}
            """,
        )
        self.run(f"{self.work}/bin/larder", "serve", "--config", config)


class Nginx(Peer):
    name, port, tls_port = "nginx", 5010, 5053

    def launch(self):
        self.run_nginx(
            f"""
                proxy_cache_path {self.dir}/cache levels=1:2 keys_zone=blobs:64m max_size=40g inactive=1d use_temp_path=off;
                upstream registry {{ server 127.0.0.1:{UPSTREAM_PORT}; keepalive 32; }}
                server {{
                    listen 127.0.0.1:{self.port} backlog=4096;
                    listen 127.0.0.1:{self.tls_port} ssl http2 backlog=4096;
                    ssl_certificate {self.work}/tls.crt;
                    ssl_certificate_key {self.work}/tls.key;
                    ssl_protocols TLSv1.2 TLSv1.3;
                    location /v2/ {{
                        proxy_pass http://registry;
                        proxy_http_version 1.1;
                        proxy_set_header Connection "";
                        proxy_cache blobs;
                        proxy_cache_key $uri;
                        proxy_cache_lock on;
                        proxy_cache_valid 200 1d;
                    }}
                }}
            """
        )


class Varnish(Peer):
    name, port = "varnish", 5020

    def launch(self):
        vcl = self.write(
            "default.vcl",
            f"""
            vcl 4.1;
            backend registry {{ .host = "127.0.0.1"; .port = "{UPSTREAM_PORT}"; }}
            sub vcl_backend_response {{ set beresp.ttl = 1d; }}
            """,
        )
        place = f"{self.dir}/run"
        self.run(
            *("varnishd", "-F", "-j", "none", "-n", place, "-f", vcl, "-a", f"127.0.0.1:{self.port}"),
            *("-s", f"malloc,{CACHE_MEMORY}", "-T", "none"),
        )
        while not os.path.exists(f"{place}/_.vsm_child"):
            time.sleep(0.01)
        self.run("varnishncsa", "-n", place, "-w", f"{self.dir}/access.log")

    def files(self):
        return None


class Registry(Peer):
    name, port = "registry", 5030

    def launch(self):
        config = self.write(
            "registry.yml",
            f"""
version: 0.1
log: {{level: warn, accesslog: {{disabled: false}}}}
storage: {{filesystem: {{rootdirectory: {self.dir}/cache}}}}
http: {{addr: "127.0.0.1:{self.port}"}}
proxy: {{remoteurl: "http://127.0.0.1:{UPSTREAM_PORT}"}}
""",
        )
        self.run("docker-registry", "serve", config)


class Upstream(Peer):
    """A registry of files: as fast as the kernel sends them. Asked without anything between, it is the measure for cold pulls."""

    name, port = "upstream", UPSTREAM_PORT

    def launch(self):
        self.run_nginx(
            f"""
                map $uri $digest {{ default ""; include {self.dir}/digests; }}
                server {{
                    listen 127.0.0.1:{self.port} backlog=4096;
                    root {self.dir}/files;
                    add_header Docker-Content-Digest $digest;
                    location = /v2/ {{ return 200 "{{}}"; }}
                    location ~ /manifests/ {{ default_type application/vnd.oci.image.manifest.v1+json; }}
                }}
            """
        )

    def files(self):
        return None


PEERS = [Larder, Nginx, Varnish, Registry]


def nginx(place, http):
    """As people run it: two workers, sendfile, an access log."""
    return f"""
        daemon off;
        master_process on;
        user root;
        worker_processes 2;
        worker_rlimit_nofile 65536;
        pid {place}/nginx.pid;
        error_log {place}/log warn;
        events {{ worker_connections 16384; }}
        http {{
            access_log {place}/access.log;
            default_type application/octet-stream;
            sendfile on;
            tcp_nopush on;
            etag off;
            keepalive_timeout 1h;
            keepalive_requests 100000000;
            map_hash_bucket_size 512;
            {http}
        }}
        """


def answers(port):
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/", timeout=2) as answer:
            return answer.status == 200
    except OSError:
        return False


def read(path):
    try:
        with open(path) as file:
            return file.read()
    except OSError:
        return ""
