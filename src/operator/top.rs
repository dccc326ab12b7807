//! `forebay top`: all pools, live, with the chosen one's last hour and decisions below.

mod look;

use std::collections::BTreeMap;
use std::io::{IsTerminal as _, stdout};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::bail;
use forebay_scaler::overview::PoolOverview;
use forebay_signals::Frame as FeedFrame;
use forebay_signals::follower::Event as FeedEvent;
use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use ratatui::backend::Backend;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Paragraph, Row, Sparkline, Table, TableState, Wrap};
use ratatui::{Frame, Terminal};
use tokio::sync::mpsc;
use tokio::time::interval;

use super::client::{AdminArgs, AdminClient};
use super::summary::{HEADS, columns, printable, totals};
use look::{Look, Seen};

/// How often times that are left run down.
const TICK: Duration = Duration::from_secs(1);
/// Ticks between two looks at the chosen pool's history and decisions.
const LOOK: u32 = 5;
/// Fewest lines of the lower part.
const DETAIL: u16 = 15;
/// Seconds between two points of a history.
const POINT_SECONDS: u64 = 10;

/// Flags of `forebay top`.
#[derive(clap::Args)]
#[command(after_help = "\
Keys: arrows choose a pool, s changes the order, q ends.")]
pub(crate) struct TopArgs {
    #[command(flatten)]
    admin: AdminArgs,
}

/// The order of the pools.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum PoolOrder {
    #[default]
    Name,
    Held,
    InFlight,
}

/// The content of the screen.
#[derive(Default)]
struct Screen {
    address: String,
    pools: BTreeMap<String, Arc<PoolOverview>>,
    /// The chosen pool.
    chosen: Option<String>,
    order: PoolOrder,
    /// Why the feed is lost, if it is.
    lost: Option<String>,
    seen: Seen,
    table: TableState,
}

/// The wish behind a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wish {
    End,
    Move(isize),
    NextOrder,
}

/// Shows all pools until the operator has seen enough.
pub(crate) async fn top(args: &TopArgs) -> anyhow::Result<ExitCode> {
    if !stdout().is_terminal() {
        bail!("this needs a terminal; `forebay status` prints the same once");
    }
    let first = args.admin.client()?;
    let client = first.leader().await?;
    // A wrong address or token is an error before the screen is taken.
    let _: FeedFrame<PoolOverview> = client.get("/overview").await?;
    let (sender, keys) = mpsc::channel(16);
    let mut terminal = ratatui::try_init()?;
    // It ends with the process: a read of the terminal can't be interrupted.
    let reader = std::thread::Builder::new().name("keys".to_owned());
    reader.spawn(move || {
        while let Ok(event) = event::read() {
            if wish(&event).is_some_and(|wish| sender.blocking_send(wish).is_err()) {
                break;
            }
        }
    })?;
    let outcome = show(&mut terminal, &first, client, keys).await;
    ratatui::try_restore()?;
    outcome.map(|()| ExitCode::SUCCESS)
}

fn wish(event: &Event) -> Option<Wish> {
    let Event::Key(key) = event else { return None };
    if key.kind == KeyEventKind::Release {
        return None;
    }
    Some(match key.code {
        KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => Wish::End,
        KeyCode::Char('q') | KeyCode::Esc => Wish::End,
        KeyCode::Char('s') => Wish::NextOrder,
        KeyCode::Down | KeyCode::Char('j') => Wish::Move(1),
        KeyCode::Up | KeyCode::Char('k') => Wish::Move(-1),
        KeyCode::PageDown => Wish::Move(10),
        KeyCode::PageUp => Wish::Move(-10),
        _ => return None,
    })
}

/// Shows the pools of `client`, and those of another scaler once `first` names that one as the leader.
async fn show<B>(
    terminal: &mut Terminal<B>,
    first: &AdminClient,
    mut client: AdminClient,
    mut keys: mpsc::Receiver<Wish>,
) -> anyhow::Result<()>
where
    B: Backend,
    B::Error: std::error::Error + Send + Sync + 'static,
{
    let mut feed = client.follow::<PoolOverview>("/overview");
    let mut looking = Look::default();
    let mut screen = Screen { address: client.address(), ..Screen::default() };
    // A search for the leader, while the feed is lost.
    let mut search: Option<BoxFuture<'_, anyhow::Result<AdminClient>>> = None;
    let mut ticks = interval(TICK);
    let mut until_look = 0;
    loop {
        let mut look = false;
        tokio::select! {
            event = feed.next() => match event {
                Some(FeedEvent::Update { view, .. }) => {
                    screen.pools.clone_from(&view.pools);
                    screen.lost = None;
                }
                Some(FeedEvent::Lost { error } | FeedEvent::Short { error }) => {
                    screen.lost = Some(error);
                    // Another scaler may lead by now.
                    search.get_or_insert_with(|| Box::pin(first.leader()));
                }
                Some(FeedEvent::Goodbye) => screen.lost = Some("Forebay has ended".to_owned()),
                None => return Ok(()),
            },
            found = async { search.as_mut()?.await.ok() }, if search.is_some() => {
                search = None;
                if let Some(leader) = found.filter(|leader| leader.address() != client.address()) {
                    screen = Screen { address: leader.address(), order: screen.order, ..Screen::default() };
                    (client, looking) = (leader, Look::default());
                    feed = client.follow("/overview");
                }
            }
            wish = keys.recv() => match wish {
                Some(Wish::End) | None => return Ok(()),
                Some(Wish::Move(by)) => {
                    screen.choose(by);
                    look = true;
                }
                Some(Wish::NextOrder) => screen.order = screen.order.next(),
            },
            _ = ticks.tick() => {
                look = until_look == 0;
                until_look = if look { LOOK } else { until_look - 1 };
            }
            seen = looking.next() => if let Some(seen) = seen {
                screen.seen = seen;
            },
        }
        if screen.chosen.is_none() {
            screen.choose(0);
            look |= screen.chosen.is_some();
        }
        if looking.pool != screen.chosen {
            // The charts of another pool would be taken for this one's.
            screen.seen =
                Seen { silent: std::mem::take(&mut screen.seen.silent), ..Seen::default() };
            (looking, look) = (Look::default(), true);
        }
        if let Some(pool) = screen.chosen.clone().filter(|_| look && screen.lost.is_none()) {
            looking.begin(&client, pool);
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
        terminal.draw(|frame| screen.draw(frame, now as u64))?;
    }
}

impl PoolOrder {
    fn next(self) -> Self {
        match self {
            Self::Name => Self::Held,
            Self::Held => Self::InFlight,
            Self::InFlight => Self::Name,
        }
    }

    fn label(self) -> &'static str {
        match self {
            Self::Name => "by name",
            Self::Held => "most held first",
            Self::InFlight => "most in flight first",
        }
    }
}

impl Screen {
    /// The pools in their order.
    fn ordered(&self) -> Vec<(&String, &Arc<PoolOverview>)> {
        let mut pools: Vec<_> = self.pools.iter().collect();
        match self.order {
            PoolOrder::Name => {}
            PoolOrder::Held => pools.sort_by_key(|(_, pool)| std::cmp::Reverse(pool.held)),
            PoolOrder::InFlight => pools.sort_by_key(|(_, pool)| std::cmp::Reverse(pool.in_flight)),
        }
        pools
    }

    /// The chosen pool's place.
    fn place(&self) -> Option<usize> {
        self.ordered().iter().position(|(name, _)| Some(*name) == self.chosen.as_ref())
    }

    /// Chooses the pool `by` places further down, or the first if none is chosen.
    fn choose(&mut self, by: isize) {
        let to = self.place().unwrap_or(0).saturating_add_signed(by);
        let pools = self.ordered();
        let chosen = pools.get(to).or(pools.last()).map(|(name, _)| (*name).clone());
        self.chosen = chosen;
    }

    fn draw(&mut self, frame: &mut Frame<'_>, now: u64) {
        // The chosen pool gets the lines that the table does not need: its head and a row for each
        // pool, beside the first and the last line.
        let table = self.pools.len().saturating_add(3).min(usize::from(u16::MAX)) as u16;
        let detail = DETAIL.max(frame.area().height.saturating_sub(table + 1));
        let [head, table, detail, keys] = Layout::vertical([
            Constraint::Length(1),
            Constraint::Min(4),
            Constraint::Length(detail),
            Constraint::Length(1),
        ])
        .areas(frame.area());
        let live = match &self.lost {
            None => Span::styled(" live ", Style::new().fg(Color::Black).bg(Color::Green)),
            Some(_) => Span::styled(" lost ", Style::new().fg(Color::Black).bg(Color::Red)),
        };
        let words = match &self.lost {
            None => totals(self.pools.values().map(|pool| &**pool)),
            Some(why) => printable(&format!("the feed is lost, and these figures are old: {why}")),
        };
        let line = Line::from_iter([
            live,
            Span::raw(format!(" {}  ", self.address)),
            Span::styled(words, Modifier::BOLD),
        ]);
        frame.render_widget(line, head);
        self.draw_table(frame, table, now);
        self.draw_detail(frame, detail, now);
        let keys_line = format!(" ↑↓ choose   s order ({})   q end", self.order.label());
        frame.render_widget(Line::styled(keys_line, Modifier::DIM), keys);
    }

    fn draw_table(&mut self, frame: &mut Frame<'_>, area: Rect, now: u64) {
        let place = self.place();
        let pools = self.ordered();
        let rows: Vec<_> = pools
            .iter()
            .map(|(name, pool)| {
                let row = Row::new(columns(name, pool, now));
                match (pool.troubles.is_empty(), pool.held) {
                    (false, _) => row.style(Style::new().fg(Color::Red)),
                    (true, held) if held > 0 => row.style(Style::new().fg(Color::Yellow)),
                    _ => row,
                }
            })
            .collect();
        let name = pools.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(4);
        let widths = [name.clamp(4, 32) as u16, 34, 6, 9, 8, 8, 9];
        let widths = widths.map(Constraint::Length).into_iter().chain([Constraint::Fill(1)]);
        let table = Table::new(rows, widths)
            .header(Row::new(HEADS).style(Modifier::DIM))
            .column_spacing(2)
            .row_highlight_style(Modifier::REVERSED);
        self.table.select(place);
        frame.render_stateful_widget(table, area, &mut self.table);
    }

    fn draw_detail(&self, frame: &mut Frame<'_>, area: Rect, now: u64) {
        let Some((name, pool)) =
            self.chosen.as_ref().and_then(|name| self.pools.get_key_value(name))
        else {
            return;
        };
        let models = pool.settings.as_ref().map(|settings| settings.models.join(", "));
        let title = printable(&format!(" {name}: {} ", models.unwrap_or_default()));
        let block = Block::bordered().title(title).border_style(Modifier::DIM);
        let inner = block.inner(area);
        frame.render_widget(block, area);
        let [charts, text] =
            Layout::horizontal([Constraint::Percentage(40), Constraint::Fill(1)]).areas(inner);
        let parts = Layout::vertical([Constraint::Fill(1); 3]).areas::<3>(charts);
        let tokens: Vec<_> =
            self.seen.hour.tokens.iter().map(|tokens| tokens.round() as u64).collect();
        let charted = [
            ("held", &self.seen.hour.held, Color::Yellow),
            ("in flight", &self.seen.hour.in_flight, Color::Blue),
            ("tokens/s", &tokens, Color::Magenta),
        ];
        let span = match self.seen.hour.held.len() as u64 * POINT_SECONDS {
            span @ 0..3600 => ago(span),
            _ => "hour".to_owned(),
        };
        for ((label, values, colour), part) in charted.into_iter().zip(parts) {
            let width = usize::from(part.width.max(1));
            let most = values.iter().copied().max().unwrap_or(0);
            let title =
                Line::styled(format!("{label}, the last {span}, at most {most}"), Modifier::DIM);
            let chart = Sparkline::default()
                .data(fitted(values, width))
                .style(Style::new().fg(colour))
                .block(Block::new().title(title));
            frame.render_widget(chart, part);
        }
        let mut lines = Vec::new();
        let troubles = pool.troubles.iter().map(|trouble| &trouble.text);
        for trouble in self.seen.silent.iter().chain(troubles) {
            let text = printable(trouble);
            lines.push(Line::styled(format!("! {text}"), Style::new().fg(Color::Red)));
        }
        for decision in &self.seen.decisions {
            let when = if decision.current {
                "now".to_owned()
            } else {
                format!("{} ago", ago(now.saturating_sub(decision.at_millis) / 1000))
            };
            lines.push(Line::from_iter([
                Span::styled(format!("{when:>10}  "), Modifier::DIM),
                Span::raw(printable(&decision.why)),
            ]));
        }
        let text_block = Block::new().title(Line::styled("decisions", Modifier::DIM));
        frame
            .render_widget(Paragraph::new(lines).wrap(Wrap { trim: true }).block(text_block), text);
    }
}

/// The values over the whole width: the highest of those that share a column, so that no peak is lost.
fn fitted(values: &[u64], width: usize) -> Vec<u64> {
    if values.is_empty() {
        return Vec::new();
    }
    let column = |at: usize| {
        let (from, to) = (at * values.len() / width, (at + 1) * values.len() / width);
        values[from..to.max(from + 1)].iter().copied().max().unwrap_or(0)
    };
    (0..width).map(column).collect()
}

fn ago(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} m", seconds / 60),
        _ => format!("{} h", seconds / 3600),
    }
}

#[cfg(test)]
mod tests;
