//! What packagers ask of larder: completions for shells, and manuals.

use crate::support::{Ended, Process};

async fn said(arguments: &[&str]) -> Ended {
    let dir = tempfile::tempdir().unwrap();
    Process::plain(dir.path(), arguments).await
}

#[tokio::test]
async fn every_command_can_be_completed_and_has_a_manual() {
    let help = said(&["--help"]).await.stdout;
    let list = help.split("Commands:\n").nth(1).unwrap().split("\n\n").next().unwrap();
    let commands: Vec<&str> =
        list.lines().filter_map(|line| line.trim().split(' ').next()).filter(|name| *name != "help").collect();
    assert!(commands.len() > 15 && commands.contains(&"serve"), "{help}");
    let overview = said(&["man"]).await.stdout;
    for shell in ["bash", "zsh", "fish"] {
        let completions = said(&["completions", shell]).await;
        assert!(completions.status.success());
        for command in &commands {
            assert!(completions.stdout.contains(command), "{shell} knows no {command}");
        }
    }
    for command in &commands {
        assert!(overview.contains(&format!("larder\\-{command}(1)")), "{command} is not in {overview}");
        let manual = said(&["man", command]).await;
        assert!(manual.status.success() && manual.stdout.contains(&format!(".TH larder-{command} 1")), "{}", manual.stdout);
    }
    let unknown = said(&["man", "nothing"]).await;
    assert_eq!((unknown.status.code(), unknown.log.as_str()), (Some(1), "larder: there is no command nothing\n"));
}
