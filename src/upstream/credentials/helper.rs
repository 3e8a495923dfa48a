//! Credential helpers: programs that know credentials.
//!
//! `docker-credential-<name> get` reads a server's address from its standard input and writes JSON to its standard output,
//! or fails with a message there: <https://github.com/docker/docker-credential-helpers#development>. No shell is involved.

use std::ffi::OsString;
use std::io;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};
use tokio::time::timeout;

use super::Credential;

/// Runs helpers.
pub(super) struct Runner {
    /// Where they are looked for, in place of the `PATH` that larder has itself.
    pub(super) path: Option<OsString>,
    pub(super) time_limit: Duration,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    username: String,
    secret: String,
}

const TIME_LIMIT: Duration = Duration::from_secs(10);
/// How long a killed helper may take to be gone before it is left to the runtime.
const REAP_LIMIT: Duration = Duration::from_secs(1);
/// The largest that is read of each of a helper's outputs.
const LARGEST_OUTPUT: usize = 64 << 10;
/// How all helpers say that they know nothing of a server. Some add to it.
const NOT_FOUND: &str = "credentials not found";

/// True for what may follow `docker-credential-`.
pub(super) fn is_name(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
}

impl Default for Runner {
    fn default() -> Self {
        Self { path: None, time_limit: TIME_LIMIT }
    }
}

// === impl Runner ===

impl Runner {
    /// Asks the helper `name` for the credentials for `server`. `None`: it knows none.
    ///
    /// Cancel safe: the helper is killed.
    ///
    /// # Errors
    /// One line, without anything of an answer.
    pub(super) async fn ask(&self, name: &str, server: &str) -> Result<Option<Credential>, String> {
        let program = format!("docker-credential-{name}");
        let mut command = Command::new(&program);
        command.arg("get").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // A group of its own, so that the children of a script die with it.
        command.process_group(0).kill_on_drop(true);
        if let Some(path) = &self.path {
            command.env("PATH", path);
        }
        let mut child = command.spawn().map_err(|error| format!("{program} cannot be started: {error}"))?;
        let ended = timeout(self.time_limit, talk(&mut child, server)).await;
        let why = match ended {
            Ok(Ok((status, out, err))) => return judge(status, &out, &err).map_err(|why| format!("{program} {why}")),
            Ok(Err(error)) => format!("{program}: {error}"),
            Err(_) => format!("{program} has taken longer than {}", humantime::format_duration(self.time_limit)),
        };
        if let Some(group) = child.id().and_then(|id| Pid::from_raw(id.cast_signed())) {
            let _ = kill_process_group(group, Signal::KILL);
        }
        let _ = timeout(REAP_LIMIT, child.wait()).await;
        Err(why)
    }
}

async fn talk(child: &mut Child, server: &str) -> io::Result<(ExitStatus, Vec<u8>, Vec<u8>)> {
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let write = async {
        if let Some(mut stdin) = stdin {
            // A helper need not read what it does not want to know.
            let _ = stdin.write_all(server.as_bytes()).await;
        }
        Ok(())
    };
    let ((), out, err) = tokio::try_join!(write, read(stdout), read(stderr))?;
    Ok((child.wait().await?, out, err))
}

async fn read(pipe: Option<impl AsyncRead + Unpin>) -> io::Result<Vec<u8>> {
    let mut output = Vec::new();
    if let Some(pipe) = pipe {
        pipe.take(LARGEST_OUTPUT as u64 + 1).read_to_end(&mut output).await?;
    }
    if output.len() > LARGEST_OUTPUT {
        return Err(io::Error::other("it writes more than 64 KiB"));
    }
    Ok(output)
}

fn judge(status: ExitStatus, out: &[u8], err: &[u8]) -> Result<Option<Credential>, String> {
    if !status.success() {
        if String::from_utf8_lossy(out).contains(NOT_FOUND) {
            return Ok(None);
        }
        let said = first_line(out).or_else(|| first_line(err)).map(|line| format!(": {line}"));
        return Err(format!("ends with {status}{}", said.unwrap_or_default()));
    }
    let Answer { username, secret } = serde_json::from_slice(out).map_err(|_| "answers no JSON with Username and Secret")?;
    Ok((!secret.is_empty()).then_some(Credential { username, password: secret }))
}

/// The first line that says something, fit for a log. What may be an answer, or a token, is left out.
fn first_line(output: &[u8]) -> Option<String> {
    const LONGEST_LINE: usize = 120;
    const LONGEST_WORD: usize = 40;
    let text = String::from_utf8_lossy(output);
    let line = text.lines().map(str::trim).find(|line| !line.is_empty())?;
    if text.contains('{') {
        return None;
    }
    let words = line.split(|c: char| c.is_whitespace() || c.is_control()).filter(|word| !word.is_empty());
    let words: Vec<_> = words.map(|word| if word.len() > LONGEST_WORD { "…" } else { word }).collect();
    Some(words.join(" ").chars().take(LONGEST_LINE).collect())
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use std::io::Read;
    use std::path::Path;
    use std::time::Instant;

    use rustix::fs::{Mode, OFlags, fcntl_setfl, open};
    use tempfile::TempDir;

    /// A helper `name` in `dir` that is this script. A shell writes it: a file that we had open ourselves could not be run
    /// as long as a child that another thread is starting has it too.
    pub(in super::super) fn install(dir: &Path, name: &str, script: &str) {
        let write = r#"printf '#!/bin/sh\n%s\n' "$2" > "$1" && chmod 755 "$1""#;
        let path = dir.join(format!("docker-credential-{name}"));
        let written = std::process::Command::new("/bin/sh").args(["-c", write, "sh"]).arg(path).arg(script).status();
        assert!(written.unwrap().success());
    }

    pub(in super::super) fn runner(dir: &Path, time_limit: Duration) -> Runner {
        let system = std::env::var_os("PATH").unwrap();
        let path = std::env::join_paths([dir.to_owned()].into_iter().chain(std::env::split_paths(&system))).unwrap();
        Runner { path: Some(path), time_limit }
    }

    /// What a helper that is this script answers for `r.example`: `user secret`.
    async fn ask(script: &str) -> Result<Option<String>, String> {
        let dir = TempDir::new().unwrap();
        install(dir.path(), "test", script);
        let answer = runner(dir.path(), TIME_LIMIT).ask("test", "r.example").await?;
        Ok(answer.map(|credential| format!("{} {}", credential.username, credential.password)))
    }

    #[tokio::test]
    async fn a_helper_is_asked_by_the_protocol() {
        let echo = r#"printf '{"ServerURL":"x","Username":"%s","Secret":"%s"}' "$*" "$(cat)""#;
        assert_eq!(ask(echo).await, Ok(Some("get r.example".into())));
        let deaf = r#"exec <&-; echo '{"Username":"<token>","Secret":"eyJ"}'"#;
        assert_eq!(ask(deaf).await, Ok(Some("<token> eyJ".into())));
        let loud = r#"echo "a warning" >&2; echo '{"Username":"AWS","Secret":"s"}'"#;
        assert_eq!(ask(loud).await, Ok(Some("AWS s".into())));
    }

    #[tokio::test]
    async fn a_helper_may_know_nothing() {
        assert_eq!(ask("echo credentials not found in native keychain; exit 1").await, Ok(None));
        assert_eq!(ask("echo error getting credentials - err: credentials not found; exit 2").await, Ok(None));
        assert_eq!(ask(r#"echo '{"Username":"","Secret":""}'"#).await, Ok(None));
    }

    #[tokio::test]
    async fn a_failing_helper_is_quoted_in_one_clean_line() {
        let failed = |said: &str| Err(format!("docker-credential-test ends with exit status: 3{said}"));
        assert_eq!(ask("exit 3").await, failed(""));
        assert_eq!(ask("echo; echo no session; echo log in first; exit 3").await, failed(": no session"));
        assert_eq!(ask("echo 'no aws' >&2; exit 3").await, failed(": no aws"));
        assert_eq!(ask(r"printf 'a\033[31m b\007\tc\n'; exit 3").await, failed(": a [31m b c"));
        assert_eq!(ask("kill -9 $$").await, Err("docker-credential-test ends with signal: 9 (SIGKILL)".into()));
        let long = ask("yes 'much to say' | head -c 1000 | tr '\\n' ' '; exit 3").await.unwrap_err();
        assert!(long.len() < 200, "{long}");
        let missing = runner(Path::new("/nowhere"), TIME_LIMIT).ask("no-such-helper", "r.example").await;
        assert!(matches!(missing, Err(why) if why.starts_with("docker-credential-no-such-helper cannot be started: ")));
    }

    #[tokio::test]
    async fn no_error_holds_a_secret() {
        let token = "dGhpcyBpcyBhIHNlY3JldCB0aGF0IG5vYm9keSBtYXkgc2Vl";
        for script in [
            r#"echo '{"Username":"bob","Secret":"hunter2"}'; exit 1"#,
            r#"echo '{"Username":"bob",'; echo '"Secret":"hunter2"}'; exit 1"#,
            r#"echo '{"Username":"bob","Secret":"hunter2"}' >&2; exit 1"#,
            r#"echo '{"Username":"bob","Secret":["hunter2"]}'"#,
            r#"echo '"hunter2"'"#,
            "echo hunter2",
            &format!("echo the token {token} has expired; exit 1"),
        ] {
            let error = ask(script).await.unwrap_err();
            assert!(!error.contains("hunter2") && !error.contains(token), "{script}: {error}");
        }
    }

    #[tokio::test]
    async fn a_helper_that_writes_too_much_is_stopped() {
        for script in ["yes", "yes >&2"] {
            let started = Instant::now();
            assert_eq!(ask(script).await, Err("docker-credential-test: it writes more than 64 KiB".into()));
            assert!(started.elapsed() < TIME_LIMIT, "it was stopped at once");
        }
    }

    #[tokio::test]
    async fn a_helper_that_takes_too_long_is_killed_with_its_children() {
        let dir = TempDir::new().unwrap();
        let alive = dir.path().join("alive");
        // Whoever lives on keeps the pipe open.
        let script = format!("mkfifo {0} && exec 9<>{0} && : > {0}.open; sleep 30; :", alive.display());
        install(dir.path(), "test", &script);
        let asked = runner(dir.path(), Duration::from_millis(500)).ask("test", "r.example").await;
        assert!(matches!(asked, Err(why) if why == "docker-credential-test has taken longer than 500ms"));
        assert!(alive.with_extension("open").exists(), "it came as far as to sleep");
        let pipe = open(&alive, OFlags::RDONLY | OFlags::NONBLOCK, Mode::empty()).unwrap();
        fcntl_setfl(&pipe, OFlags::empty()).unwrap();
        let read = tokio::task::spawn_blocking(move || std::fs::File::from(pipe).read(&mut [0]).unwrap());
        assert_eq!(timeout(TIME_LIMIT, read).await.unwrap().unwrap(), 0, "nobody has the pipe open any more");
    }

    #[test]
    fn a_name_holds_nothing_that_leads_elsewhere() {
        assert!(["ecr-login", "gcloud", "acr_env", "v1.2"].into_iter().all(is_name));
        assert!(!["", "a/b", "a b", "a;b", "ä", "a\n"].into_iter().any(is_name));
    }
}
