//! The five calls of KEDA's protocol.
//!
//! What is not understood is refused with the field's name; what is not known yet is waited for,
//! and never answered with a zero. A stream ends with OK: KEDA waits up to a minute before it opens
//! again one that ended otherwise.

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
use super::metadata::{Question, understand};
use super::proto::external_scaler_server::ExternalScaler;
use super::proto::{
    GetMetricSpecResponse, GetMetricsRequest, GetMetricsResponse, IsActiveResponse, ScaledObjectRef,
};

/// Every pool as last decided; empty before the first decision.
pub(crate) type Known = Arc<BTreeMap<String, PoolReplicas>>;

/// How long a call waits for the first decision. KEDA's metrics server gives its own operator 3 s.
const PATIENCE: Duration = Duration::from_millis(2_500);
/// A stream says again what it said: a dead connection is noticed, and KEDA's idea of the last
/// activity stays fresh.
const HEARTBEAT: Duration = Duration::from_secs(30);
/// The same while replicas are wanted and none is there: KEDA drops a push that comes before it has
/// read the trigger's metrics.
const REMINDER: Duration = Duration::from_secs(2);

pub(crate) struct Service {
    pub(crate) config: watch::Receiver<Arc<Config>>,
    pub(crate) known: watch::Receiver<Known>,
    pub(crate) stop: CancellationToken,
}

type Told<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

impl Service {
    fn question(&self, object: &ScaledObjectRef) -> Result<Question, Status> {
        let config = Arc::clone(&self.config.borrow());
        understand(object, &config).map_err(|mistake| {
            let (namespace, name) = (&object.namespace, &object.name);
            tracing::warn!("ScaledObject {namespace}/{name}: {mistake}");
            Status::invalid_argument(format!("forebay: {mistake}"))
        })
    }

    /// The pool as last decided.
    async fn pool(&self, question: &Question) -> Result<PoolReplicas, Status> {
        let mut known = self.known.clone();
        let there = known.wait_for(|known| known.contains_key(&question.pool));
        match timeout(PATIENCE, there).await {
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
    type StreamIsActiveStream = Told<IsActiveResponse>;
    type StreamMetricSpecStream = Told<GetMetricSpecResponse>;

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
            let unheeded = active && answers::current(pool) == 0;
            let again = if unheeded { REMINDER } else { HEARTBEAT };
            Some((IsActiveResponse { result: active }, again))
        };
        let pool = self.question(request.get_ref())?.pool;
        Ok(Response::new(Box::pin(self.told(pool, active))))
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
        Ok(Response::new(Box::pin(self.told(pool, spec))))
    }
}

impl Service {
    /// Tells `answer` at once, whenever it changes, and again after the time it comes with.
    fn told<T: Clone + PartialEq + Send + 'static>(
        &self,
        pool: String,
        answer: impl Fn(&PoolReplicas) -> Option<(T, Duration)> + Send + 'static,
    ) -> impl Stream<Item = Result<T, Status>> + Send + 'static {
        struct Teller<T, F> {
            known: watch::Receiver<Known>,
            stop: CancellationToken,
            pool: String,
            answer: F,
            told: Option<(T, Instant)>,
        }
        let (known, stop) = (self.known.clone(), self.stop.clone());
        let teller = Teller { known, stop, pool, answer, told: None };
        stream::unfold(teller, |mut teller| async move {
            loop {
                let answer = {
                    let known = teller.known.borrow_and_update();
                    known.get(&teller.pool).and_then(&teller.answer)
                };
                let mut due = None;
                if let Some((answer, again)) = answer {
                    let fresh = teller
                        .told
                        .as_ref()
                        .filter(|(told, at)| *told == answer && at.elapsed() < again);
                    let Some((_, at)) = fresh else {
                        teller.told = Some((answer.clone(), Instant::now()));
                        return Some((Ok(answer), teller));
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
                    () = teller.stop.cancelled() => return None,
                    changed = teller.known.changed() => if changed.is_err() { return None },
                    () = wait => {}
                }
            }
        })
    }
}
