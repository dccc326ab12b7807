//! The run itself: sends each request at its time, reads its answer, and measures both.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, bail};
use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderName, HeaderValue, Method};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use serde_json::Value;
use tokio::sync::Semaphore;
use tokio::task::{JoinSet, LocalSet};
use tokio::time::{Instant, sleep_until, timeout};

use super::arrivals::{Arrival, Arrivals};
use super::client::{Client, Connection, Head};
use super::cpu::CpuTime;
use super::measurements::{Ending, Exchange, Measurements};
use super::prompt::{BodyWriter, PromptText};
use super::settings::Api;
use super::stream::{Break, EventReader};
use super::timer::FineTimer;
use super::units::TokenLength;
use super::workload::{ConnectionUse, RequestShape, Workload};

const PROMPT: TokenLength = TokenLength::Fixed(200);
const OUTPUT: TokenLength = TokenLength::Fixed(100);
/// The header that names a client's session.
const SESSION: HeaderName = HeaderName::from_static("x-session-id");
/// The most of an error's text that is read before its connection is given up.
const MOST_ERROR: usize = 64 << 10;

/// A run's results.
pub(crate) struct Generated {
    pub(crate) model: String,
    pub(crate) measurements: Measurements,
    /// From the end of the warm-up to the end of the last answer.
    pub(crate) seconds: f64,
    /// Whether Ctrl-C ended it.
    pub(crate) interrupted: bool,
    /// CPU time after the warm-up: of the process that was named, and of this one.
    pub(crate) cpu: Option<CpuTime>,
    pub(crate) own_cpu: CpuTime,
}

/// The state that all requests of a run share.
struct Generator {
    client: Client,
    head: Head,
    bodies: BodyWriter,
    requests: RequestShape,
    timeout: Duration,
    permits: Semaphore,
    random: RefCell<SmallRng>,
    began: Instant,
    measured: RefCell<Measurements>,
}

/// Runs the workload to its end, or until Ctrl-C. `progress` sees the measurements five times a
/// second.
///
/// # Errors
/// The endpoint names no model, or the process to be measured does not exist.
pub(crate) async fn generate(
    workload: Workload,
    cpu_of: Option<u32>,
    progress: impl Fn(Duration, &Measurements) + 'static,
) -> anyhow::Result<Generated> {
    LocalSet::new().run_until(run(workload, cpu_of, progress)).await
}

async fn run(
    workload: Workload,
    cpu_of: Option<u32>,
    progress: impl Fn(Duration, &Measurements) + 'static,
) -> anyhow::Result<Generated> {
    let Workload { endpoint, arrivals, length, warmup, seed, requests, connections } = workload;
    let ConnectionUse { most, keep_alive, timeout } = connections;
    let client = Client::new(endpoint.base.clone(), keep_alive)?;
    let path = match endpoint.api {
        Api::Chat => endpoint.path("chat/completions")?,
        Api::Completions => endpoint.path("completions")?,
    };
    let head = Head { method: Method::POST, path, headers: endpoint.headers.clone() };
    let model = match endpoint.model.clone() {
        Some(model) => model,
        None => {
            let models =
                Head { method: Method::GET, path: endpoint.path("models")?, ..head.clone() };
            first_model(&client, &models).await.with_context(|| {
                format!(
                    "endpoint.model (--model) is not set, and the models of {} cannot be read",
                    endpoint.base
                )
            })?
        }
    };
    let bodies =
        BodyWriter::new(endpoint.api, &model, requests.shared_prefix, &requests.extra, seed);
    // Fails here, before any request, if there is no such process.
    let cpu_now = move || cpu_of.map(CpuTime::of).transpose();
    cpu_now()?;
    let generator = Rc::new(Generator {
        client,
        head,
        bodies,
        requests,
        timeout,
        permits: Semaphore::new(most as usize),
        random: RefCell::new(SmallRng::seed_from_u64(seed ^ 0x5eed)),
        began: Instant::now(),
        measured: RefCell::new(Measurements::new(length, warmup)),
    });
    let cpu_before = Rc::new(Cell::new((cpu_now()?, CpuTime::own())));
    let mut helpers = JoinSet::new();
    helpers.spawn_local({
        let (generator, cpu_before) = (generator.clone(), cpu_before.clone());
        async move {
            sleep_until(generator.began + warmup).await;
            cpu_before.set((cpu_now().unwrap_or_default(), CpuTime::own()));
        }
    });
    helpers.spawn_local({
        let generator = generator.clone();
        async move {
            loop {
                tokio::time::sleep(Duration::from_millis(200)).await;
                progress(generator.now(), &generator.measured.borrow());
            }
        }
    });
    let mut tasks = JoinSet::new();
    let interrupted = {
        let stop = tokio::signal::ctrl_c();
        let send_all = async {
            send(&generator, &arrivals, length, seed, &mut tasks).await?;
            while let Some(ended) = tasks.join_next().await {
                ended?;
            }
            anyhow::Ok(())
        };
        tokio::select! {
            sent = send_all => sent.map(|()| false)?,
            _ = stop => true,
        }
    };
    let (cpu_then, own_then) = cpu_before.get();
    let cpu_now = cpu_now().unwrap_or_default();
    let own_cpu = CpuTime::own().since(own_then);
    let seconds = generator.now().saturating_sub(warmup).as_secs_f64();
    drop((tasks, helpers));
    let measurements = generator.measured.take();
    let cpu = cpu_now.zip(cpu_then).map(|(now, then)| now.since(then));
    Ok(Generated { model, measurements, seconds, interrupted, cpu, own_cpu })
}

/// Starts every request at its time.
async fn send(
    generator: &Rc<Generator>,
    arrivals: &Arrivals,
    length: Duration,
    seed: u64,
    tasks: &mut JoinSet<()>,
) -> anyhow::Result<()> {
    if let Arrivals::Clients(clients) = arrivals {
        for _ in 0..*clients {
            let generator = generator.clone();
            tasks.spawn_local(async move {
                while generator.now() < length {
                    let arrival = Arrival { at: generator.now(), ..Arrival::default() };
                    generator.exchange(arrival).await;
                }
            });
        }
        return Ok(());
    }
    let timer = FineTimer::new()?;
    for arrival in arrivals.within(length, seed) {
        timer.until(generator.began + arrival.at).await?;
        let generator = generator.clone();
        tasks.spawn_local(async move { generator.exchange(arrival).await });
        while let Some(ended) = tasks.try_join_next() {
            ended?;
        }
    }
    Ok(())
}

impl Generator {
    /// Since the beginning of the run.
    fn now(&self) -> Duration {
        self.began.elapsed()
    }

    /// One request and its answer.
    async fn exchange(&self, arrival: Arrival) {
        let intended = arrival.at;
        let (stream, body) = self.body(&arrival);
        let session = arrival.content.and_then(|content| content.session);
        let Ok(_permit) = self.permits.acquire().await else { return };
        self.measured.borrow_mut().begin(intended, self.now());
        let mut answer = Answer { first_token: None, misordered: false };
        let ending = timeout(self.timeout, self.answer(session, stream, &body, &mut answer)).await;
        let exchange = Exchange {
            intended,
            first_token: answer.first_token,
            ended: self.now(),
            ending: ending.unwrap_or(Ending::TimedOut),
            misordered: answer.misordered,
        };
        self.measured.borrow_mut().end(&exchange);
    }

    fn body(&self, Arrival { tokens, content, .. }: &Arrival) -> (bool, Bytes) {
        let mut random = self.random.borrow_mut();
        let mut draw =
            |length: Option<TokenLength>, given: Option<u32>, default: TokenLength| match (
                length, given,
            ) {
                (Some(length), _) => length.draw(&mut random),
                (None, Some(tokens)) => tokens,
                (None, None) => default.draw(&mut random),
            };
        let content = content.as_ref().filter(|_| self.requests.prompt.is_none());
        let prompt = match content {
            Some(content) => PromptText::Known(content),
            None => {
                let tokens = tokens.map(|(prompt, _)| prompt);
                PromptText::Random(draw(self.requests.prompt, tokens, PROMPT))
            }
        };
        let output = draw(self.requests.output, tokens.map(|(_, output)| output), OUTPUT);
        let stream = random.random::<f64>() < self.requests.stream_share;
        (stream, self.bodies.body(stream, prompt, output, &mut random))
    }

    async fn answer(
        &self,
        session: Option<u64>,
        stream: bool,
        body: &Bytes,
        answer: &mut Answer,
    ) -> Ending {
        let named = session.map(|session| {
            let mut head = self.head.clone();
            head.headers.insert(SESSION, HeaderValue::from(session));
            head
        });
        let head = named.as_ref().unwrap_or(&self.head);
        let (mut connection, response) = match self.client.send(head, body).await {
            Ok(answered) => answered,
            Err(failure) => return Ending::Unsent(failure),
        };
        let (head, mut body) = response.into_parts();
        if !head.status.is_success() {
            if read_whole(&mut connection, &mut body, MOST_ERROR).await.is_ok() {
                self.client.keep(connection);
            }
            return Ending::Refused(head.status.as_u16());
        }
        let content_type = head.headers.get(CONTENT_TYPE).map_or(&[][..], |value| value.as_bytes());
        if stream && !content_type.starts_with(b"text/event-stream") {
            return Ending::Broken(Break::NotAStream);
        }
        let mut reader = EventReader::new(self.requests.numbered);
        let mut last_token: Option<Duration> = None;
        while let Some(data) = connection.data(&mut body).await {
            let Ok(data) = data else { return Ending::Broken(Break::Connection) };
            if !stream {
                continue;
            }
            let tokens = reader.feed(&data);
            if tokens > 0 {
                let now = self.now();
                let gap = last_token.map(|last| now.saturating_sub(last));
                answer.first_token.get_or_insert(now);
                last_token = Some(now);
                self.measured.borrow_mut().tokens(now, tokens, gap);
            }
        }
        self.client.keep(connection);
        if !stream {
            return Ending::Complete;
        }
        answer.misordered = reader.misordered();
        reader.broken().map_or(Ending::Complete, Ending::Broken)
    }
}

/// The part of an answer that has come before its end.
struct Answer {
    first_token: Option<Duration>,
    misordered: bool,
}

async fn read_whole(
    connection: &mut Connection,
    body: &mut hyper::body::Incoming,
    most: usize,
) -> anyhow::Result<Vec<u8>> {
    let mut whole = Vec::new();
    while let Some(data) = connection.data(body).await {
        whole.extend_from_slice(&data?);
        if whole.len() > most {
            bail!("the answer is longer than {most} bytes");
        }
    }
    Ok(whole)
}

async fn first_model(client: &Client, head: &Head) -> anyhow::Result<String> {
    let (mut connection, response) = match client.send(head, &Bytes::new()).await {
        Ok(answered) => answered,
        Err(failure) => bail!("{}; is it running?", Ending::Unsent(failure).name()),
    };
    let (status, mut body) = (response.status(), response.into_body());
    let body = read_whole(&mut connection, &mut body, 16 << 20).await?;
    if !status.is_success() {
        bail!("{} answered with status {status}", head.path);
    }
    client.keep(connection);
    let models: Value = serde_json::from_slice(&body)?;
    let model = models["data"][0]["id"].as_str().map(str::to_owned);
    model.with_context(|| format!("{} lists no model; name one with --model", head.path))
}
