//! `larder top`

use std::collections::HashMap;
use std::io::IsTerminal as _;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Args;
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::orders::{ActivityReport, AnswersReport, FillReport, Order, Report};

use super::Configured;
use super::give::give;
use super::said::{plain, put};
use super::table::{short, size};

/// Watch a running larder: what it is fetching, what clients get and from where, its disk, its budgets of pulls. Until Ctrl-C; once, where
/// nobody watches at a terminal.
#[derive(Args)]
pub(super) struct Top {
    /// How often to look.
    #[arg(long, value_name = "TIME", default_value = "1s")]
    every: humantime::Duration,
    /// Look once.
    #[arg(long)]
    once: bool,
    /// A line of JSON each time.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    configured: Configured,
}

/// What stands on the screen.
struct Screen {
    all: MultiProgress,
    head: ProgressBar,
    fills: HashMap<(String, String), ProgressBar>,
    /// What was there at the last look.
    before: Option<(Instant, ActivityReport)>,
}

/// Of what was looked at once, there is no rate.
struct Rate<'a>(Option<(Duration, &'a [AnswersReport])>);

// === impl Top ===

impl Top {
    pub(super) fn run(self) -> Result<ExitCode, String> {
        let watched = !self.once && (self.json || std::io::stdout().is_terminal());
        let every = watched.then(|| u64::try_from(self.every.as_millis()).unwrap_or(u64::MAX));
        let mut screen = (watched && !self.json).then(Screen::new);
        give(&self.configured, &Order::Watch { every }, |report| match (&report, &mut screen) {
            (Report::Activity(_), _) if self.json => put(&report.line()),
            (Report::Activity(now), Some(screen)) => screen.show(now),
            (Report::Activity(now), None) => {
                put(&(head(now, &Rate(None)) + "\n"));
                now.fills.iter().for_each(|fill| put(&format!("{}\n", line(fill))));
            }
            _ => {}
        })
    }
}

// === impl Screen ===

impl Screen {
    fn new() -> Self {
        let all = MultiProgress::with_draw_target(ProgressDrawTarget::stdout());
        let style = ProgressStyle::with_template("{msg}").unwrap_or_else(|_| ProgressStyle::default_bar());
        let head = all.add(ProgressBar::no_length().with_style(style));
        Self { all, head, fills: HashMap::new(), before: None }
    }

    fn show(&mut self, now: &ActivityReport) {
        let at = Instant::now();
        let before = self.before.as_ref().map(|(then, before)| (at - *then, &before.answers[..]));
        self.head.set_message(head(now, &Rate(before)));
        let key = |fill: &FillReport| (fill.repository.clone(), fill.digest.clone());
        let over = |fill: &(String, String)| !now.fills.iter().any(|now| key(now) == *fill);
        self.fills.extract_if(|fill, _| over(fill)).for_each(|(_, bar)| {
            bar.finish_and_clear();
            self.all.remove(&bar);
        });
        for fill in &now.fills {
            let bar = self.fills.entry(key(fill)).or_insert_with(|| self.all.add(ProgressBar::no_length()));
            if bar.length() != fill.size || bar.position() == 0 {
                bar.set_style(style(fill.size.is_some()));
                fill.size.iter().for_each(|size| bar.set_length(*size));
            }
            bar.set_prefix(name(fill));
            bar.set_message(clients(fill));
            bar.set_position(fill.bytes);
        }
        self.before = Some((at, now.clone()));
    }
}

fn style(sized: bool) -> ProgressStyle {
    let with_size = "{prefix:44!} {wide_bar} {bytes:>10} of {total_bytes:>10} {bytes_per_sec:>12}  {msg}";
    let without = "{prefix:44!} {spinner} {bytes:>10} {bytes_per_sec:>12}  {msg}";
    ProgressStyle::with_template(if sized { with_size } else { without }).unwrap_or_else(|_| ProgressStyle::default_bar())
}

/// Where nothing moves.
fn line(fill: &FillReport) -> String {
    let of = fill.size.map_or_else(String::new, |bytes| format!(" of {}", size(bytes)));
    format!("{}  {}{of}  {}", name(fill), size(fill.bytes), clients(fill))
}

/// The last of the repository's name says most.
fn name(fill: &FillReport) -> String {
    let repository = plain(&fill.repository).into_owned();
    let count = repository.chars().count();
    let shown = if count > 31 { format!("…{}", repository.chars().skip(count - 30).collect::<String>()) } else { repository };
    format!("{shown} {}", short(&fill.digest))
}

fn clients(fill: &FillReport) -> String {
    match fill.clients {
        0 => "for nobody".into(),
        1 => "for 1 client".into(),
        n => format!("for {n} clients"),
    }
}

fn head(now: &ActivityReport, rate: &Rate) -> String {
    let ActivityReport { connections, answers, fills, more_fills, limit, used, pinned, disk, left_alone, budgets } = now;
    let of = |served: &[&str]| {
        let these = answers.iter().filter(|answer| served.contains(&answer.served.as_str()));
        these.fold((0, 0), |(number, bytes), answer| (number + answer.answers, bytes + answer.bytes))
    };
    let share = used.saturating_mul(100) / (*limit).max(1);
    let mut lines = vec![
        format!("Disk       {} of {} ({share} %), {} pinned", size(*used), size(*limit), size(*pinned)),
        format!("Clients    {connections} connections{}", rate.all(answers)),
    ];
    for (title, served) in [
        ("From here ", &["hit", "revalidated", "offline", "stale"][..]),
        ("Fetched   ", &["miss", "joined"]),
        ("Past      ", &["bypass"]),
        ("Refused   ", &["refused"]),
    ] {
        let (number, bytes) = of(served);
        if number > 0 || title.starts_with('F') {
            lines.push(format!("{title} {number} answers, {}{}", size(bytes), rate.of(answers, served)));
        }
    }
    for budget in budgets {
        lines.push(format!(
            "Budget     {} of {} pulls at {} as {}",
            budget.remaining, budget.limit, budget.upstream, budget.account
        ));
    }
    lines.extend(disk.iter().map(|why| format!("Trouble    {why}")));
    if !left_alone.is_empty() {
        lines.push(format!("Left alone {}", left_alone.join(", ")));
    }
    let more = if *more_fills > 0 { format!(", of which {} are shown", fills.len()) } else { String::new() };
    lines.push(format!("Now        {} fetched{more}", fills.len() + more_fills));
    lines.iter().map(|line| plain(line).into_owned()).collect::<Vec<_>>().join("\n")
}

// === impl Rate ===

impl Rate<'_> {
    fn all(&self, now: &[AnswersReport]) -> String {
        self.since(now, |_| true)
    }

    fn of(&self, now: &[AnswersReport], served: &[&str]) -> String {
        self.since(now, |answers| served.contains(&answers.served.as_str()))
    }

    fn since(&self, now: &[AnswersReport], which: impl Fn(&AnswersReport) -> bool) -> String {
        let Some((took, before)) = &self.0 else { return String::new() };
        let sum = |reports: &[AnswersReport]| {
            let these = reports.iter().filter(|report| which(report));
            these.fold((0, 0), |(number, bytes), report| (number + report.answers, bytes + report.bytes))
        };
        let ((number, bytes), (number_before, bytes_before)) = (sum(now), sum(before));
        let each_second = |more: u64| u64::try_from(u128::from(more) * 1000 / took.as_millis().max(1)).unwrap_or(u64::MAX);
        let (number, bytes) = (number.saturating_sub(number_before), bytes.saturating_sub(bytes_before));
        format!("; now {}/s, {}/s", each_second(number), size(each_second(bytes)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(answers: &[(&str, u64, u64)]) -> ActivityReport {
        let answers = answers.iter().map(|(served, answers, bytes)| AnswersReport {
            served: (*served).into(),
            answers: *answers,
            bytes: *bytes,
        });
        let fill = FillReport {
            repository: "docker.io/library/a\u{1b}[2J".into(),
            digest: "sha256:00112233445566".into(),
            bytes: 512,
            size: Some(1024),
            clients: 2,
        };
        ActivityReport {
            connections: 3,
            answers: answers.collect(),
            fills: vec![fill],
            more_fills: 4,
            limit: 4096,
            used: 1024,
            pinned: 0,
            disk: None,
            left_alone: vec!["quay.io".into()],
            budgets: Vec::new(),
        }
    }

    #[test]
    fn what_is_going_on_is_told_in_a_few_lines() {
        let (before, now) = (report(&[("hit", 1, 10), ("miss", 2, 20)]), report(&[("hit", 5, 1034), ("miss", 2, 20)]));
        assert_eq!(
            head(&now, &Rate(Some((Duration::from_millis(500), &before.answers)))),
            "Disk       1.0 KiB of 4.0 KiB (25 %), 0 B pinned\nClients    3 connections; now 8/s, 2.0 KiB/s\n\
             From here  5 answers, 1.0 KiB; now 8/s, 2.0 KiB/s\nFetched    2 answers, 20 B; now 0/s, 0 B/s\nLeft alone quay.io\n\
             Now        5 fetched, of which 1 are shown"
        );
        assert!(!head(&now, &Rate(None)).contains("now "));
        assert_eq!(line(&now.fills[0]), "docker.io/library/a\\u{1b}[2J 001122334455  512 B of 1.0 KiB  for 2 clients");
    }

    #[test]
    fn of_a_long_name_the_end_is_shown() {
        let mut fill = report(&[]).fills.remove(0);
        fill.repository = format!("registry.example/{}/app", "team/".repeat(10));
        assert_eq!(name(&fill).chars().count(), 44);
        assert!(name(&fill).contains("team//app 001122334455"), "{}", name(&fill));
    }
}
