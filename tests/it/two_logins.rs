//! Listeners that ask who comes, before an upstream that asks the same: clients have one place for a password.

use std::fs;

use crate::support::{Auth, Authority, Client, Image, Registry, Setup, StoppedMirror, TestMirror, TokenService, basic, get_with};

const HOST: &str = "hub.mirror.test";
const WARDENS: &str = "canary-of-warden";

async fn registry() -> Registry {
    let setup = Setup { auth: Auth::Tokens(TokenService::default()), ..Setup::default() };
    Registry::with(setup.login("alice", "canary-of-alice")).await
}

/// One that asks for a certificate as well as for a password, or for one of the two.
fn asking(upstream: &Registry, authority: &Authority, options: &str) -> StoppedMirror {
    let mirror = TestMirror::builder().gate("docker.io", upstream, HOST);
    let (server, ca, users) =
        (authority.server(mirror.dir(), "127.0.0.1"), authority.file(mirror.dir()), mirror.dir().join("users"));
    fs::write(&users, format!("warden:{}\n", bcrypt::hash(WARDENS, 4).unwrap())).unwrap();
    let options = options.replace("CA", &ca.display().to_string());
    mirror.tls(&server, &format!("users_file = '{}', {options}", users.display()))
}

#[tokio::test]
async fn an_upstream_that_asks_clients_for_a_password_behind_a_listener_that_does_is_refused_at_the_start() {
    let (upstream, authority) = (registry().await, Authority::new());
    for options in [
        "",
        "client_ca_file = 'CA'",
        "client_ca_file = 'CA', client_cert = 'required'",
        "rule = [{ allow = ['**'], deny = ['docker.io/library/**'] }]",
        "rule = [{ allow = ['**'] }, { who = ['user:bob'], deny = ['docker.io/**'] }]",
        "rule = [{ allow = ['quay.io/**'] }]",
    ] {
        let (why, _) = asking(&upstream, &authority, options).try_start().await.err().expect(options);
        assert!(
            !why.contains('\n') && why.starts_with("server.listener at 127.0.0.1:0: users_file asks for one password"),
            "{why}"
        );
        assert!(why.contains(r#"client_cert = "optional"), or let a rule say deny = ["docker.io/**"]"#), "{why}");
    }
    for options in ["client_ca_file = 'CA', client_cert = 'optional'", "rule = [{ allow = ['**'] }, { deny = ['docker.io/**'] }]"]
    {
        asking(&upstream, &authority, options).start().await;
    }
}

#[tokio::test]
async fn where_a_certificate_says_who_comes_the_password_is_for_the_upstream() {
    let (upstream, authority) = (registry().await, Authority::new());
    let image = Image::new(1).layers(&[10_000]).put(&upstream, "team/app", "latest");
    upstream.restrict("team/app", &["alice"]);
    let rules = "rule = [{ who = ['cert:build-*'], allow = ['docker.io/team/*'] }]";
    let options = format!("client_ca_file = 'CA', client_cert = 'optional', {rules}");
    let mirror = asking(&upstream, &authority, &options).start().await;
    let (tag, blob) = (image.tag_path("latest"), image.blob_path(&image.layers[0]));
    let get = async |client: &Client, path: &str, authorization: &str| {
        client.get_with(mirror.tls_url(path), &[("host", HOST), ("authorization", authorization)]).await
    };
    let of = |certificate: &str| Client::tls(authority.believed_by(certificate, &["http/1.1"]));

    let build = of("build-7");
    let challenge = build.get_with(mirror.tls_url(&tag), &[("host", HOST)]).await.expect(401);
    assert!(challenge.header("www-authenticate").unwrap().starts_with("Bearer realm=\"https://hub.mirror.test/token\""));
    let token = get(&build, "/token", &basic("alice", "canary-of-alice")).await.expect(200).json();
    let bearer = format!("Bearer {}", token["token"].as_str().unwrap());
    assert_eq!(get(&build, &tag, &bearer).await.expect(200).body, image.manifest);
    assert_eq!(get(&build, &blob, &bearer).await.expect(200).body, image.layers[0].bytes);
    // Her token does not make up for the certificate, nor the other way round.
    get(&of("other"), &tag, &bearer).await.expect(403);
    get(&build, "/token", &basic("warden", WARDENS)).await.expect(401);
    let nobody = Client::tls(authority.believed(rustls::ALL_VERSIONS, &["http/1.1"]));
    let refused = get(&nobody, &tag, &bearer).await.expect(401);
    assert_eq!(refused.header("www-authenticate"), Some("Basic realm=\"larder\""));
    // In cleartext, without users, as ever.
    get_with(mirror.url(&tag), &[("host", HOST), ("authorization", &bearer)]).await.expect(200);
}
