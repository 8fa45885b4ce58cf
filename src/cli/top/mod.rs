//! `top`: all vendors of a running service on one screen, read again once a second.
//!
//! Never asks for more than the dashboard does. Changes nothing but pauses, after a question.

use std::{
    io::{self, IsTerminal as _},
    time::Duration,
};

use anyhow::Context as _;
use clap::Args;
use futures_util::{StreamExt as _, stream::FuturesUnordered};
use tokio::{
    signal::unix::{SignalKind, signal},
    time::{Instant, sleep, sleep_until},
};

use self::{
    state::{Ask, Figures, Top},
    terminal::Terminal,
};
use super::{
    Failure,
    client::{self, Call, Service, Target},
    failures, print,
    times::ZoneArgs,
    vendors,
};

mod screen;
mod state;
mod terminal;

/// Between two readings.
const EVERY: Duration = Duration::from_secs(1);
/// Requests under way at most; keys that would make more are ignored.
const MOST_ASKED: usize = 8;

#[derive(Debug, Args)]
pub(super) struct TopArgs {
    /// Prints one table and exits, as it does without a terminal
    #[arg(long)]
    once: bool,
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    zone: ZoneArgs,
}

/// What came of an [`Ask`].
enum Answer {
    Figures(Result<Figures, Failure>),
    Failures { vendor: String, text: String },
    Changed(String),
}

pub(super) async fn run(args: &TopArgs) -> Result<(), Failure> {
    let service = Service::at(&args.target)?;
    if args.once || !io::stdin().is_terminal() || !io::stdout().is_terminal() {
        return once(&service, &args.zone).await;
    }
    Ok(live(&service, &args.zone).await.context("the terminal cannot be used; try --once")?)
}

/// Two readings, because what is sent in a second is their difference.
async fn once(service: &Service, zone: &ZoneArgs) -> Result<(), Failure> {
    let (mut top, began) = (Top::default(), Instant::now());
    top.note(figures(service).await?, began.elapsed());
    sleep(EVERY).await;
    top.note(figures(service).await?, began.elapsed());
    print::line(&screen::plain(&top, &zone.times()))
}

async fn live(service: &Service, zone: &ZoneArgs) -> io::Result<()> {
    let mut terminal = Terminal::open()?;
    let mut resized = signal(SignalKind::window_change())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let (mut top, began, mut asked) = (Top::default(), Instant::now(), FuturesUnordered::new());
    let mut next = began;
    asked.push(ask(service, zone, Ask::Figures { at: next }));
    while !top.is_over {
        terminal.draw(&screen::lines(&top, &zone.times(), terminal.size()))?;
        tokio::select! {
            keys = terminal.keys() => {
                for key in keys? {
                    let wanted = top.press(key).filter(|_| asked.len() < MOST_ASKED);
                    asked.extend(wanted.map(|what| ask(service, zone, what)));
                }
            }
            Some(answer) = asked.next() => match answer {
                Answer::Figures(read) => {
                    match read {
                        Ok(figures) => top.note(figures, began.elapsed()),
                        Err(error) => top.cannot_read(&error.to_string()),
                    }
                    next = (next + EVERY).max(Instant::now());
                    asked.push(ask(service, zone, Ask::Figures { at: next }));
                }
                Answer::Failures { vendor, text } => top.note_failures(&vendor, text),
                Answer::Changed(text) => top.say(text),
            },
            _ = resized.recv() => {}
            _ = interrupt.recv() => break,
            _ = terminate.recv() => break,
            _ = hangup.recv() => break,
        }
    }
    Ok(())
}

async fn ask(service: &Service, zone: &ZoneArgs, what: Ask) -> Answer {
    match what {
        Ask::Figures { at } => {
            sleep_until(at).await;
            Answer::Figures(figures(service).await)
        }
        Ask::Failures { vendor } => {
            let path = format!("/failures?since=1h&vendor={}", client::segment(&vendor));
            let read = service.call(Call::get(path)).await;
            let text = read.and_then(|answer| failures::view(answer.json(), &zone.times()));
            Answer::Failures { vendor, text: text.unwrap_or_else(|error| error.to_string()) }
        }
        Ask::Pause { vendor, resume } => {
            let (verb, now) = if resume { ("resume", "is no longer paused") } else { ("pause", "is paused") };
            let changed = service.call(Call::post(format!("/vendors/{}/{verb}", client::segment(&vendor)))).await;
            Answer::Changed(match changed {
                Ok(_) => format!("{vendor} {now}"),
                Err(error) => error.to_string(),
            })
        }
    }
}

async fn figures(service: &Service) -> Result<Figures, Failure> {
    let stats = service.call(Call::get("/stats")).await?.read()?;
    let answer = service.call(Call::get("/vendors")).await?;
    let vendors = vendors::each(answer.json())?.into_iter().map(client::read).collect::<Result<_, _>>()?;
    Ok(Figures { stats, vendors })
}
