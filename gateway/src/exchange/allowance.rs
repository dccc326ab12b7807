//! A request's share of its tenant's limits, from its admission to its last token.

use std::sync::Arc;

use http::HeaderMap;

use crate::answer::meter::Tokens;
use crate::answer::refusal::Refusal;
use crate::net::clock;
use crate::tenant::{Grant, RateLimits, Tenant};

/// The limits that one request counts against. Empty before its tenant is known.
#[derive(Default)]
pub(crate) struct Allowance {
    tenant: Option<Arc<Tenant>>,
    grant: Option<Grant>,
    limits: RateLimits,
    /// The prompt's estimated tokens, used until the replica reports the real number.
    prompt: u64,
}

impl Allowance {
    pub(crate) fn tenant(&self) -> Option<&Arc<Tenant>> {
        self.tenant.as_ref()
    }

    /// Counts the request as one of the tenant's, while this lives. Its tokens are not known yet.
    pub(crate) fn admit(&mut self, tenant: &Arc<Tenant>) -> Result<(), Refusal> {
        let now = clock::now();
        let granted = tenant.admit(now);
        self.limits = tenant.rate_limits(now);
        self.tenant = Some(Arc::clone(tenant));
        self.grant = Some(granted.map_err(|limited| limited.refusal(&tenant.name))?);
        Ok(())
    }

    /// Takes `tokens`, of which `prompt` are the prompt's, within the tenant's limits.
    pub(crate) fn reserve(&mut self, prompt: u64, tokens: u64) -> Result<(), Refusal> {
        let (Some(tenant), Some(grant)) = (&self.tenant, &mut self.grant) else { return Ok(()) };
        let now = clock::now();
        self.prompt = prompt;
        let reserved = grant.reserve(tokens, now);
        self.limits = tenant.rate_limits(now);
        reserved.map_err(|limited| limited.refusal(&tenant.name))
    }

    /// Corrects the estimate by the tokens that are known now.
    pub(crate) fn used(&mut self, tokens: &Tokens) {
        if let Some(grant) = &mut self.grant {
            let prompt = tokens.prompt.unwrap_or(self.prompt);
            grant.used(prompt + tokens.generated, clock::now());
        }
    }

    /// Charges at least the prompt: a replica has read it, or is reading it.
    pub(crate) fn used_prompt(&mut self) {
        if let Some(grant) = &mut self.grant {
            grant.used_at_least(self.prompt, clock::now());
        }
    }

    /// Writes headers with the rest of the limits.
    pub(crate) fn write_headers(&self, headers: &mut HeaderMap) {
        self.limits.write(headers);
    }
}
