//! The proxies on the way to an upstream: those of the environment, as a larder that runs on its own sees it, and its own.

use std::net::SocketAddr;

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional},
    net::{TcpListener, TcpStream},
    sync::mpsc,
};

use crate::support::{Authority, Fault, Match, Process, Registry, TestMirror, digest_of, get, noise};

/// Reads the head of a request, no byte more, and gives its first line.
async fn first_line(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let Ok(byte) = stream.read_u8().await else { break };
        head.push(byte);
    }
    String::from_utf8_lossy(&head).lines().next().unwrap_or_default().to_owned()
}

/// A proxy that answers every request with this body and tells the first line of each.
async fn proxy(body: bytes::Bytes) -> (SocketAddr, mpsc::UnboundedReceiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (tell, told) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = tell.send(first_line(&mut stream).await);
            let answer = format!(
                "HTTP/1.1 200 OK\r\ncontent-type: application/octet-stream\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
                body.len()
            );
            let _ = stream.write_all(answer.as_bytes()).await;
            let _ = stream.write_all(&body).await;
        }
    });
    (address, told)
}

#[tokio::test]
async fn a_proxy_of_the_environment_is_asked_instead_of_the_registry() {
    let blob = noise(1, 50_000);
    let (address, mut told) = proxy(blob.clone()).await;
    let (dir, proxy) = (tempfile::tempdir().unwrap(), format!("http://{address}"));
    let upstream = ["upstream.\"docker.io\".url=http://registry.invalid"];
    let larder = Process::start(dir.path(), &upstream, &[("HTTP_PROXY", &proxy)]);
    let path = format!("/v2/library/app/blobs/{}", digest_of(&blob));
    let answer = get(larder.url(&path)).await.expect(200);
    assert_eq!(answer.body, blob);
    assert_eq!(told.recv().await.unwrap(), format!("GET http://registry.invalid{path} HTTP/1.1"));
}

#[tokio::test]
async fn a_registry_that_no_proxy_names_is_asked_itself() {
    let (address, mut told) = proxy(bytes::Bytes::new()).await;
    let upstream = Registry::start().await;
    let blob = noise(2, 50_000);
    let digest = upstream.put_blob("library/app", blob.clone());
    let (dir, proxy) = (tempfile::tempdir().unwrap(), format!("http://{address}"));
    let setting = format!("upstream.\"docker.io\".url={}", upstream.url());
    let environment = [("HTTP_PROXY", proxy.as_str()), ("NO_PROXY", "other.example,127.0.0.1")];
    let larder = Process::start(dir.path(), &[&setting], &environment);
    let answer = get(larder.url(&format!("/v2/library/app/blobs/{digest}"))).await.expect(200);
    assert_eq!(answer.body, blob);
    assert!(told.try_recv().is_err(), "the proxy was asked");
}

/// A proxy that joins whoever asks for `CONNECT` with `target`, and tells the first line of each.
async fn tunnel(target: SocketAddr) -> (SocketAddr, mpsc::UnboundedReceiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (tell, told) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((mut outer, _)) = listener.accept().await {
            let _ = tell.send(first_line(&mut outer).await);
            tokio::spawn(async move {
                let mut inner = TcpStream::connect(target).await.unwrap();
                outer.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").await.unwrap();
                let _ = copy_bidirectional(&mut outer, &mut inner).await;
            });
        }
    });
    (address, told)
}

#[tokio::test]
async fn a_proxy_for_https_sees_a_tunnel_and_nothing_of_what_goes_through_it() {
    let upstream = Registry::start().await;
    let blob = noise(3, 50_000);
    let digest = upstream.put_blob("library/app", blob.clone());
    let authority = Authority::new();
    let front = authority.front("registry.invalid", upstream.address()).await;
    let (address, mut told) = tunnel(front.address()).await;
    let dir = tempfile::tempdir().unwrap();
    let (url, file) = ("upstream.\"docker.io\".url=https://registry.invalid", authority.file(dir.path()));
    let file = format!("upstream.\"docker.io\".ca_file={}", file.display());
    let larder = Process::start(dir.path(), &[url, &file], &[("HTTPS_PROXY", &format!("http://{address}"))]);
    let answer = get(larder.url(&format!("/v2/library/app/blobs/{digest}"))).await.expect(200);
    assert_eq!(answer.body, blob);
    assert_eq!(told.recv().await.unwrap(), "CONNECT registry.invalid:443 HTTP/1.1");
}

/// The resolver that refuses private addresses to what a server names is also asked for the proxy, when that has a name.
#[tokio::test]
async fn a_proxy_may_have_a_name_and_a_private_address() {
    let upstream = Registry::start().await;
    let blob = noise(4, 50_000);
    let digest = upstream.put_blob("library/app", blob.clone());
    let authority = Authority::new();
    let front = authority.front("cdn.invalid", upstream.address()).await;
    let storage = format!("https://cdn.invalid/v2/library/app/blobs/{digest}");
    upstream.on(Match::get("/blobs/").times(1), Fault::answer(307, &[("location", &storage)], ""));
    let (address, mut told) = tunnel(front.address()).await;
    let dir = tempfile::tempdir().unwrap();
    let url = format!("upstream.\"docker.io\".url={}", upstream.url());
    let file = format!("upstream.\"docker.io\".ca_file={}", authority.file(dir.path()).display());
    let proxy = format!("http://localhost:{}", address.port());
    let larder = Process::start(dir.path(), &[&url, &file], &[("HTTPS_PROXY", &proxy)]);
    let _ = get(larder.url(&format!("/v2/library/app/blobs/{digest}"))).await;
    assert_eq!(told.recv().await.unwrap(), "CONNECT cdn.invalid:443 HTTP/1.1");
}

#[tokio::test]
async fn an_upstream_may_have_a_proxy_of_its_own_or_none() {
    let blob = noise(5, 50_000);
    let ((own, mut told), (of_all, mut told_of_all)) = (proxy(blob.clone()).await, proxy(blob.clone()).await);
    let upstream = Registry::start().await;
    let digest = upstream.put_blob("library/app", blob.clone());
    let environment = format!("http://{of_all}");
    for (setting, url) in [(format!("http://{own}"), "http://registry.invalid".to_owned()), ("none".into(), upstream.url())] {
        let dir = tempfile::tempdir().unwrap();
        let settings = [format!("upstream.\"docker.io\".url={url}"), format!("upstream.\"docker.io\".proxy={setting}")];
        let larder = Process::start(dir.path(), &[&settings[0], &settings[1]], &[("HTTP_PROXY", &environment)]);
        let answer = get(larder.url(&format!("/v2/library/app/blobs/{digest}"))).await.expect(200);
        assert_eq!(answer.body, blob);
    }
    assert!(told.recv().await.unwrap().starts_with("GET http://registry.invalid/"));
    assert!(told.try_recv().is_err());
    assert!(told_of_all.try_recv().is_err(), "the proxy of the environment was asked");
    assert_eq!(upstream.count("GET", &digest), 1);
}

/// The guard looks at the address that is dialled, and that was the proxy's, who went wherever the upstream said.
#[tokio::test]
async fn a_proxy_is_not_asked_for_what_is_on_the_inside() {
    let (tunnel, mut told) = tunnel(SocketAddr::from(([127, 0, 0, 1], 1))).await;
    let upstream = Registry::start().await;
    let digest = upstream.put_blob("library/app", noise(6, 50_000));
    let dir = tempfile::tempdir().unwrap();
    let url = format!("upstream.\"docker.io\".url={}", upstream.url());
    let proxy = format!("http://localhost:{}", tunnel.port());
    let larder = Process::start(dir.path(), &[&url], &[("HTTPS_PROXY", &proxy), ("NO_PROXY", "127.0.0.1")]);
    let path = format!("/v2/library/app/blobs/{digest}");
    for inner in [
        "localhost",
        &format!("localhost:{}", tunnel.port()),
        "metadata",
        "metadata.google.internal",
        "vault.internal",
        "printer.local",
        "db.home.arpa.",
        "169.254.169.254",
        "10.0.0.1",
        "[::1]",
    ] {
        upstream.heal();
        upstream.on(Match::get("/blobs/"), Fault::answer(307, &[("location", &format!("https://{inner}/x"))], ""));
        get(larder.url(&path)).await.expect(502);
    }
    assert!(told.try_recv().is_err(), "the proxy is asked");
    // So that it is known that it would have been seen.
    upstream.heal();
    upstream.on(Match::get("/blobs/"), Fault::answer(307, &[("location", "https://cdn.invalid/x")], ""));
    let _ = get(larder.url(&path)).await;
    assert_eq!(told.recv().await.unwrap(), "CONNECT cdn.invalid:443 HTTP/1.1");
}

/// Likewise for a name that says nothing, where larder's own resolver knows it.
#[tokio::test]
async fn a_proxy_is_not_asked_for_a_name_that_larder_sees_lead_to_the_inside() {
    let names = [("vault.example", vec!["10.0.0.7"], false), ("both.example", vec!["93.184.215.14", "10.0.0.7"], false)];
    for (name, addresses, asked) in names.into_iter().chain([("cdn.example", vec!["93.184.215.14"], true)]) {
        let (address, mut told) = redirects(format!("http://{name}/x")).await;
        let mirror = TestMirror::builder()
            .set("upstream.\"docker.io\".url = \"http://registry.example\"")
            .set(&format!("upstream.\"docker.io\".proxy = \"http://{address}\""));
        mirror.names().lead(name, &[&addresses]);
        let mirror = mirror.start().await;
        let digest = digest_of(name.as_bytes());
        mirror.get(&format!("/v2/library/app/blobs/{digest}")).await.expect(502);
        assert!(told.recv().await.unwrap().starts_with("GET http://registry.example/v2/"));
        let second = told.try_recv();
        assert_eq!(second.is_ok_and(|line| line.starts_with(&format!("GET http://{name}/x"))), asked, "{name}");
    }
}

/// A proxy that sends everyone on, and tells the first line of each.
async fn redirects(to: String) -> (SocketAddr, mpsc::UnboundedReceiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (tell, told) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = tell.send(first_line(&mut stream).await);
            let answer = format!("HTTP/1.1 307 \r\nlocation: {to}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    });
    (address, told)
}
