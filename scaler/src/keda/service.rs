//! The five calls of KEDA's protocol.
//!
//! A trigger that can't be parsed is refused with the field's name. An answer that is not known yet is
//! waited for, and is never zero. A stream ends with OK: after any other end KEDA waits up to a minute
//! before it opens the stream again.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use forebay_config::Config;
use forebay_signals::PoolReplicas;
use futures_util::{Stream, stream};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use super::answers;
use super::metadata::{Question, parse};
use super::proto::external_scaler_server::ExternalScaler;
use super::proto::{
    GetMetricSpecResponse, GetMetricsRequest, GetMetricsResponse, IsActiveResponse, ScaledObjectRef,
};

/// The last decision of every pool; empty before the first one.
pub(crate) type KnownPools = Arc<BTreeMap<String, PoolReplicas>>;

/// Time that a call waits for the first decision. KEDA's metrics server gives its operator 3 s.
const FIRST_DECISION: Duration = Duration::from_millis(2_500);
/// Pause before a stream repeats its answer: dead connections are noticed, and KEDA's time of last
/// activity stays fresh.
const HEARTBEAT: Duration = Duration::from_secs(30);
/// The same while replicas are wanted and none exists: KEDA drops a push that comes before it has
/// read the trigger's metrics.
const REMINDER: Duration = Duration::from_secs(2);

pub(crate) struct Service {
    pub(crate) config: watch::Receiver<Arc<Config>>,
    pub(crate) known: watch::Receiver<KnownPools>,
    pub(crate) stop: CancellationToken,
}

type AnswerStream<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

impl Service {
    fn question(&self, object: &ScaledObjectRef) -> Result<Question, Status> {
        let config = Arc::clone(&self.config.borrow());
        parse(object, &config).map_err(|mistake| {
            let (namespace, name) = (&object.namespace, &object.name);
            tracing::warn!("ScaledObject {namespace}/{name}: {mistake}");
            Status::invalid_argument(format!("forebay: {mistake}"))
        })
    }

    /// The last decision of the pool.
    async fn pool(&self, question: &Question) -> Result<PoolReplicas, Status> {
        let mut known = self.known.clone();
        let decided = known.wait_for(|known| known.contains_key(&question.pool));
        match timeout(FIRST_DECISION, decided).await {
            Ok(Ok(known)) => Ok(known[&question.pool].clone()),
            _ => Err(Status::unavailable(format!(
                "forebay: pool `{}` has no decision yet: this scaler has just started",
                question.pool
            ))),
        }
    }
}

#[tonic::async_trait]
impl ExternalScaler for Service {
    type StreamIsActiveStream = AnswerStream<IsActiveResponse>;
    type StreamMetricSpecStream = AnswerStream<GetMetricSpecResponse>;

    async fn is_active(
        &self,
        request: Request<ScaledObjectRef>,
    ) -> Result<Response<IsActiveResponse>, Status> {
        let question = self.question(request.get_ref())?;
        let pool = self.pool(&question).await?;
        Ok(Response::new(IsActiveResponse { result: answers::active(&question, &pool) }))
    }

    async fn stream_is_active(
        &self,
        request: Request<ScaledObjectRef>,
    ) -> Result<Response<Self::StreamIsActiveStream>, Status> {
        let question = self.question(request.get_ref())?;
        let active = move |pool: &PoolReplicas| {
            let active = answers::active(&question, pool);
            let no_replica_yet = active && answers::current(pool) == 0;
            let again = if no_replica_yet { REMINDER } else { HEARTBEAT };
            Some((IsActiveResponse { result: active }, again))
        };
        let pool = self.question(request.get_ref())?.pool;
        Ok(Response::new(Box::pin(self.answers(pool, active))))
    }

    async fn get_metric_spec(
        &self,
        request: Request<ScaledObjectRef>,
    ) -> Result<Response<GetMetricSpecResponse>, Status> {
        let question = self.question(request.get_ref())?;
        let pool = self.pool(&question).await?;
        let spec = answers::spec(&question, &pool);
        let spec = spec.ok_or_else(|| Status::unavailable("forebay: no capacity is known yet"))?;
        Ok(Response::new(GetMetricSpecResponse { metric_specs: vec![spec] }))
    }

    async fn get_metrics(
        &self,
        request: Request<GetMetricsRequest>,
    ) -> Result<Response<GetMetricsResponse>, Status> {
        let request = request.into_inner();
        let object = request.scaled_object_ref.unwrap_or_default();
        let question = self.question(&object)?;
        let pool = self.pool(&question).await?;
        let value = answers::value(&question, &pool).ok_or_else(|| {
            Status::failed_precondition(format!(
                "forebay: metadata.metric: nothing measures `{}` for pool `{}`; configure its \
                 source in Forebay, or use another metric",
                answers::name(&question.ask),
                question.pool
            ))
        })?;
        Ok(Response::new(GetMetricsResponse { metric_values: vec![value] }))
    }

    async fn stream_metric_spec(
        &self,
        request: Request<ScaledObjectRef>,
    ) -> Result<Response<Self::StreamMetricSpecStream>, Status> {
        let question = self.question(request.get_ref())?;
        let pool = question.pool.clone();
        let spec = move |pool: &PoolReplicas| {
            let spec = answers::spec(&question, pool)?;
            Some((GetMetricSpecResponse { metric_specs: vec![spec] }, HEARTBEAT))
        };
        Ok(Response::new(Box::pin(self.answers(pool, spec))))
    }
}

impl Service {
    /// Sends `answer` at once, at every change, and again after the pause that comes with it.
    fn answers<T: Clone + PartialEq + Send + 'static>(
        &self,
        pool: String,
        answer: impl Fn(&PoolReplicas) -> Option<(T, Duration)> + Send + 'static,
    ) -> impl Stream<Item = Result<T, Status>> + Send + 'static {
        struct Answers<T, F> {
            known: watch::Receiver<KnownPools>,
            stop: CancellationToken,
            pool: String,
            answer: F,
            last: Option<(T, Instant)>,
        }
        let (known, stop) = (self.known.clone(), self.stop.clone());
        let answers = Answers { known, stop, pool, answer, last: None };
        stream::unfold(answers, |mut answers| async move {
            loop {
                let answer = {
                    let known = answers.known.borrow_and_update();
                    known.get(&answers.pool).and_then(&answers.answer)
                };
                let mut due = None;
                if let Some((answer, again)) = answer {
                    let fresh = answers
                        .last
                        .as_ref()
                        .filter(|(last, at)| *last == answer && at.elapsed() < again);
                    let Some((_, at)) = fresh else {
                        answers.last = Some((answer.clone(), Instant::now()));
                        return Some((Ok(answer), answers));
                    };
                    due = Some(*at + again);
                }
                let wait = async {
                    match due {
                        Some(due) => sleep_until(due).await,
                        None => std::future::pending().await,
                    }
                };
                tokio::select! {
                    () = answers.stop.cancelled() => return None,
                    changed = answers.known.changed() => if changed.is_err() { return None },
                    () = wait => {}
                }
            }
        })
    }
}
