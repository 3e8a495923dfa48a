//! `larder setup`: what leads clients here, shown, written and taken back.

use std::fs;
use std::path::{Path, PathBuf};

use crate::support::{Authority, Ended, Process};

const CLIENTS: [&str; 6] = ["docker", "containerd", "k3s", "podman", "crio", "buildkit"];

/// A machine's file system, and a larder's configuration beside it.
struct Machine(tempfile::TempDir);

impl Machine {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, path: &str) -> PathBuf {
        self.0.path().join("root").join(path)
    }

    fn read(&self, path: &str) -> String {
        fs::read_to_string(self.path(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
    }

    fn write(&self, path: &str, text: &str) {
        fs::create_dir_all(self.path(path).parent().unwrap()).unwrap();
        fs::write(self.path(path), text).unwrap();
    }

    async fn setup(&self, arguments: &[&str], settings: &[&str]) -> Ended {
        let root = self.path("");
        let arguments = [&["setup"], arguments, &["--root", root.to_str().unwrap()]].concat();
        Process::order(self.0.path(), &arguments, settings).await
    }

    async fn written(&self, arguments: &[&str], settings: &[&str]) -> Ended {
        let ended = self.setup(&[arguments, &["--write"]].concat(), settings).await;
        assert!(ended.status.success(), "{arguments:?}: {}{}", ended.stdout, ended.log);
        ended
    }

    /// All files with what is in them.
    fn files(&self) -> Vec<(PathBuf, Vec<u8>)> {
        fn below(dir: &Path, found: &mut Vec<(PathBuf, Vec<u8>)>) {
            for entry in fs::read_dir(dir).into_iter().flatten() {
                let path = entry.unwrap().path();
                found.push((path.clone(), fs::read(&path).unwrap_or_default()));
                below(&path, found);
            }
        }
        let mut found = Vec::new();
        below(&self.path(""), &mut found);
        found.sort();
        found
    }
}

#[tokio::test]
async fn what_is_shown_is_what_is_written_and_undo_leaves_nothing_of_it() {
    for client in CLIENTS {
        let machine = Machine::new();
        let shown = machine.setup(&[client], &[]).await;
        assert!(shown.status.success() && machine.files().is_empty(), "{client}: {}", shown.log);
        let written = machine.written(&[client], &[]).await;
        assert!(written.stdout.contains(&format!("undo: larder setup {client} --undo --root ")), "{}", written.stdout);
        let files = machine.files();
        let texts = files.iter().filter(|(path, text)| !text.is_empty() && !path.ends_with("larder-setup.json"));
        for (path, text) in texts {
            let text = format!("# {}\n{}", path.display(), String::from_utf8_lossy(text));
            assert!(shown.stdout.contains(&text), "{client}: {text} is not in {}", shown.stdout);
        }
        machine.written(&[client], &[]).await;
        assert!(machine.files() == files, "{client}: once is enough");
        assert!(machine.setup(&[client, "--undo"], &[]).await.status.success());
        let left = machine.files();
        assert!(left.is_empty(), "{client}: {left:?}");
        assert_eq!(machine.setup(&[client, "--undo"], &[]).await.status.code(), Some(1));
    }
}

#[tokio::test]
async fn each_client_is_told_where_larder_is_by_tls_and_who_has_signed_its_certificate() {
    let machine = Machine::new();
    let ca = Authority::new().file(machine.0.path());
    let by_tls = ["--url", "https://mirror.example:5443", "--ca", ca.to_str().unwrap()];
    for client in CLIENTS {
        machine.written(&[&[client], &by_tls[..]].concat(), &[]).await;
    }
    let (ca_file, pem) = (format!("{:?}", ca.display().to_string()), fs::read_to_string(&ca).unwrap());
    assert_eq!(machine.read("etc/docker/daemon.json"), "{\n  \"registry-mirrors\": [\"https://mirror.example:5443\"]\n}\n");
    for dir in ["docker", "containers"] {
        assert_eq!(machine.read(&format!("etc/{dir}/certs.d/mirror.example:5443/ca.crt")), pem);
    }
    let hosts = |server: &str| {
        format!(
            "server = \"{server}\"\n\n[host.\"https://mirror.example:5443\"]\ncapabilities = [\"pull\", \"resolve\"]\nca = {ca_file}\n"
        )
    };
    assert_eq!(machine.read("etc/containerd/certs.d/docker.io/hosts.toml"), hosts("https://registry-1.docker.io"));
    for dir in ["containerd", "docker"] {
        assert_eq!(machine.read(&format!("etc/{dir}/certs.d/quay.io/hosts.toml")), hosts("https://quay.io"));
    }
    // It would have Docker 29 overlook registry-mirrors.
    assert!(!machine.path("etc/docker/certs.d/docker.io").exists());
    let drop_in = machine.read("etc/containers/registries.conf.d/larder.conf");
    assert!(drop_in.contains(
        "prefix = \"ghcr.io\"\nlocation = \"ghcr.io\"\n[[registry.mirror]]\nlocation = \"mirror.example:5443/ghcr.io\"\n"
    ));
    assert!(!drop_in.contains("insecure"));
    let k3s = machine.read("etc/rancher/k3s/registries.yaml");
    assert!(k3s.contains("  \"docker.io\":\n    endpoint:\n      - \"https://mirror.example:5443\"\n"), "{k3s}");
    assert!(k3s.ends_with(&format!("configs:\n  \"mirror.example:5443\":\n    tls:\n      ca_file: {ca_file}\n")), "{k3s}");
    let buildkit = machine.read("etc/buildkit/buildkitd.toml");
    assert!(buildkit.contains("[registry.\"docker.io\"]\nmirrors = [\"mirror.example:5443\"]\n"), "{buildkit}");
    assert!(buildkit.contains(&format!("[registry.\"mirror.example:5443\"]\nca = [{ca_file}]\n")), "{buildkit}");
    let kaniko = machine.setup(&[&["kaniko"], &by_tls[..]].concat(), &[]).await.stdout;
    for word in [
        "--registry-mirror=mirror.example:5443\n",
        "--registry-map=quay.io=mirror.example:5443/quay.io\n",
        &format!("--registry-certificate=mirror.example:5443={}\n", ca.display()),
    ] {
        assert!(kaniko.contains(word), "{kaniko}");
    }
    assert!(machine.setup(&["kaniko", "--write"], &[]).await.log.contains("kaniko reads no file"));
}

#[tokio::test]
async fn what_stands_there_stays_and_comes_back() {
    let machine = Machine::new();
    machine.write("etc/docker/daemon.json", "{ \"debug\": true,\r\n\"registry-mirrors\": [\"https://old.example\"]}");
    machine.write("etc/containerd/certs.d/docker.io/hosts.toml", "[host.\"https://old.example\"] # ours\n");
    machine.write("etc/rancher/k3s/registries.yaml", "mirrors:\n  docker.io:\n    endpoint: [https://old.example]\n");
    machine.write("etc/buildkit/buildkitd.toml", "[registry.\"docker.io\"]\nmirrors = [ 'old.example' ]\n");
    machine.write("etc/containers/registries.conf", "[[registry]]\nlocation = \"quay.io\"\nblocked = true\n");
    let before = machine.files();
    for client in CLIENTS {
        // With another address after the first, which then is gone.
        machine.written(&[client, "--url", "http://first.example"], &[]).await;
        machine.written(&[client, "--url", "http://second.example"], &[]).await;
    }
    for (file, says) in [
        (
            "docker/daemon.json",
            "{ \"debug\": true,\r\n\"registry-mirrors\": [\"http://second.example\", \"https://old.example\"]}",
        ),
        ("rancher/k3s/registries.yaml", "  docker.io:\n    endpoint: [\"http://second.example\", https://old.example]\n"),
        ("buildkit/buildkitd.toml", "[registry.\"docker.io\"]\nmirrors = [\"second.example\", 'old.example' ]\n"),
        ("containerd/certs.d/docker.io/hosts.toml", "[host.\"https://old.example\"] # ours\n"),
    ] {
        let text = machine.read(&format!("etc/{file}"));
        assert!(text.contains(says) && !text.contains("first.example"), "{file}: {text}");
    }
    let drop_in = machine.read("etc/containers/registries.conf.d/larder.conf");
    assert!(!drop_in.contains("quay.io"), "it is blocked there, and would be no more");
    let told = machine.written(&["podman"], &[]).await.stdout;
    assert!(told.contains("quay.io is left as ") && told.contains("location = \"127.0.0.1:5000/quay.io\""), "{told}");
    for client in CLIENTS.iter().filter(|client| **client != "crio") {
        let undone = machine.setup(&[client, "--undo"], &[]).await;
        assert!(undone.status.success(), "{client}: {}{}", undone.stdout, undone.log);
    }
    assert!(machine.files() == before, "{:?}", machine.files());
}

#[tokio::test]
async fn what_is_not_understood_is_refused_in_one_line_and_nothing_is_touched() {
    let machine = Machine::new();
    for (client, file, text) in [
        ("docker", "docker/daemon.json", "{ \"debug\": true, }"),
        ("containerd", "containerd/certs.d/quay.io/hosts.toml", "server = "),
        ("containerd", "containerd/config.toml", "version = "),
        ("k3s", "rancher/k3s/registries.yaml", "mirrors: ["),
        ("podman", "containers/registries.conf.d/larder.conf", "[[registry]]\nlocation = \"quay.io\"\n"),
        ("crio", "containers/registries.conf", "[registries.search]\nregistries = ['docker.io']\n"),
        ("buildkit", "buildkit/buildkitd.toml", "[registry"),
    ] {
        let file = format!("etc/{file}");
        machine.write(&file, text);
        let before = machine.files();
        let refused = machine.setup(&[client, "--write"], &[]).await;
        assert_eq!((refused.status.code(), refused.stdout.as_str()), (Some(1), ""), "{client}: {}", refused.log);
        assert!(refused.log.lines().count() == 1 && refused.log.contains(&file), "{client}: {}", refused.log);
        assert!(machine.files() == before, "{client}");
        fs::remove_file(machine.path(&file)).unwrap();
    }
    for (arguments, settings, says) in [
        (&["docker"][..], &["server.listen=unix:/run/larder.sock"][..], "say how clients reach it, as --url URL"),
        (&["docker", "--url", "mirror.example"], &[], "write it as http://mirror.example:5000"),
        (&["docker", "--ca", "/nowhere", "--url", "https://x"], &[], "/nowhere: "),
    ] {
        let refused = machine.setup(arguments, settings).await;
        assert!(!refused.status.success() && refused.log.contains(says), "{}", refused.log);
    }
}

#[tokio::test]
async fn who_is_asked_for_a_login_is_told_how_to_show_it() {
    let machine = Machine::new();
    let listener = "server.listener=[{ listen = \"0.0.0.0:5443\", cert_file = \"c\", key_file = \"k\", users_file = \"u\" }]";
    for (client, says) in [
        ("docker", "let it come by a listener that asks nothing"),
        ("containerd", "authorization = \"Basic "),
        ("k3s", "auth: {username: NAME, password: PASSWORD}"),
        ("podman", "podman login mirror.example:5443"),
        ("crio", "global_auth_file"),
        ("buildkit", "docker login mirror.example:5443"),
        ("kaniko", "/kaniko/.docker/config.json"),
    ] {
        let told = machine.setup(&[client, "--url", "https://mirror.example:5443"], &[listener]).await.stdout;
        assert!(told.contains("# larder asks there who comes: ") && told.contains(says), "{client}: {told}");
        let told = machine.setup(&[client], &[listener]).await.stdout;
        assert!(!told.contains("larder asks there"), "{client}: on the machine itself nobody is asked: {told}");
    }
    let machines_own = machine.setup(&["docker"], &["mirror.default_upstream=ghcr.io"]).await.stdout;
    assert!(machines_own.contains("[\"http://127.0.0.1:5000/docker.io\"]"), "its requests do not say what they are for");
}

/// Docker 20 to 24 would not start any more.
#[tokio::test]
async fn no_path_is_written_into_dockers_mirrors() {
    let machine = Machine::new();
    let settings = ["mirror.default_upstream=ghcr.io"];
    let written = machine.setup(&["docker", "--write"], &settings).await;
    assert!(written.status.success() && written.stdout.contains("does not start with a path there"), "{}", written.log);
    assert!(machine.path("etc/docker/certs.d/quay.io/hosts.toml").exists());
    assert!(!machine.path("etc/docker/daemon.json").exists());
}
