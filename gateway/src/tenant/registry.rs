//! The tenant of a request, by its API key.
//!
//! The configuration and the keys' file can both change while requests arrive. So requests read two
//! snapshots, each swapped whole: a look-up takes 337 instructions, where a `DashMap` takes 501 (64
//! tenants, counted with callgrind), and no request sees half of a change.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use forebay_base::file_watch::FileWatch;
use forebay_base::trouble::Trouble;
use forebay_config::{ANONYMOUS, Gateway, Tenant as Settings};
use http::HeaderMap;
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::answer::refusal::Refusal;
use crate::tenant::Tenant;
use crate::tenant::api_keys::{ApiKeys, KeySource, KeysError, client_keys};

/// How often the keys' file is read.
const LOOK: Duration = Duration::from_secs(2);

/// All tenants, shared by every thread.
pub(crate) struct Tenants {
    configured: ArcSwap<Configured>,
    /// `None` if keys are not checked.
    keys: ArcSwapOption<ApiKeys>,
    /// The number of gateways that share the limits. Every change holds this lock, so that no two
    /// changes mix.
    gateways: Mutex<u32>,
}

struct Configured {
    file: Option<PathBuf>,
    required: bool,
    by_name: HashMap<Arc<str>, Arc<Tenant>>,
    anonymous: Arc<Tenant>,
}

/// A configuration's tenants, ready to be used.
pub(crate) struct PreparedTenants {
    gateway: Gateway,
    keys: Option<ApiKeys>,
}

impl Tenants {
    /// Reads the keys, so that nothing can fail once the configuration is applied.
    pub(crate) fn prepare(gateway: &Gateway) -> Result<PreparedTenants, KeysError> {
        let read = |file: &PathBuf| KeySource::read(file)?.parse(file);
        let keys = gateway.keys.as_ref().map(|keys| read(&keys.file)).transpose()?;
        Ok(PreparedTenants { gateway: gateway.clone(), keys })
    }

    pub(crate) fn new(prepared: PreparedTenants, now: Instant) -> Arc<Self> {
        let none = Configured {
            file: None,
            required: false,
            by_name: HashMap::new(),
            anonymous: Tenant::new(Settings::named(ANONYMOUS), 1, now),
        };
        let tenants = Arc::new(Self {
            configured: ArcSwap::from_pointee(none),
            keys: ArcSwapOption::empty(),
            gateways: Mutex::new(1),
        });
        tenants.apply(prepared, now);
        tenants
    }

    /// Applies a configuration. A tenant that stays keeps its use of its limits.
    pub(crate) fn apply(&self, prepared: PreparedTenants, now: Instant) {
        let PreparedTenants { gateway, keys } = prepared;
        let shared = self.gateways.lock();
        let (before, gateways) = (self.configured.load_full(), *shared);
        let take = |settings: &Settings, before: Option<&Arc<Tenant>>| match before {
            Some(tenant) => {
                tenant.configure(settings.clone(), gateways, now);
                Arc::clone(tenant)
            }
            None => Tenant::new(settings.clone(), gateways, now),
        };
        let mut by_name = HashMap::new();
        let mut anonymous = Settings::named(ANONYMOUS);
        for settings in &gateway.tenants {
            if settings.name == ANONYMOUS {
                anonymous = settings.clone();
                continue;
            }
            let tenant = take(settings, before.by_name.get(settings.name.as_str()));
            by_name.insert(Arc::clone(&tenant.name), tenant);
        }
        let anonymous = take(&anonymous, Some(&before.anonymous));
        let (file, required) = gateway.keys.map(|keys| (keys.file, keys.required)).unzip();
        let required = required.unwrap_or(false);
        let (keys, configured) =
            (keys.map(Arc::new), Arc::new(Configured { file, required, by_name, anonymous }));
        self.configured.store(Arc::clone(&configured));
        self.keys.store(keys.clone());
        if let Some(keys) = keys {
            log_keys(&keys, &configured.by_name);
        }
    }

    /// Sets the number of gateways that share the limits.
    pub(crate) fn set_gateways(&self, gateways: u32, now: Instant) {
        let gateways = gateways.max(1);
        let mut shared = self.gateways.lock();
        if std::mem::replace(&mut *shared, gateways) == gateways {
            return;
        }
        tracing::info!("{gateways} gateways share the limits");
        let configured = self.configured.load();
        for tenant in configured.by_name.values().chain([&configured.anonymous]) {
            tenant.share(gateways, now);
        }
    }

    /// Whether clients' keys are for the gateway, so that replicas never see them.
    pub(crate) fn checks_keys(&self) -> bool {
        self.keys.load().is_some()
    }

    /// The tenant of a request with these headers.
    ///
    /// # Errors
    /// No key, where one is required, or a wrong one.
    pub(crate) fn of(&self, headers: &HeaderMap) -> Result<Arc<Tenant>, Refusal> {
        let configured = self.configured.load();
        let Some(keys) = &*self.keys.load() else { return Ok(Arc::clone(&configured.anonymous)) };
        let mut keys_sent = client_keys(headers).peekable();
        if keys_sent.peek().is_none() {
            return match configured.required {
                true => Err(Refusal::NoKey),
                false => Ok(Arc::clone(&configured.anonymous)),
            };
        }
        let tenant = keys_sent.find_map(|key| keys.tenant(key));
        let tenant = tenant.and_then(|name| configured.by_name.get(name));
        tenant.cloned().ok_or(Refusal::WrongKey)
    }

    /// Watches the keys' file. If it can't be used, the present keys stay.
    pub(crate) async fn watch(self: Arc<Self>) {
        let tenants = Arc::clone(&self);
        let read = move || {
            let Some(file) = tenants.configured.load().file.clone() else { return Ok(None) };
            KeySource::read(&file).map(|source| Some((file, source)))
        };
        let mut files = FileWatch::new(LOOK, None, read);
        let mut trouble = Trouble::default();
        loop {
            let read = match files.next().await {
                Ok(None) => continue,
                Ok(Some((file, source))) => source.parse(&file).map(|keys| (keys, file)),
                Err(error) => Err(error),
            };
            match read {
                Ok((keys, file)) => {
                    trouble.ends();
                    self.replace(keys, &file);
                }
                Err(error) => {
                    let error = error.to_string();
                    if trouble.begins(error.as_str()) {
                        tracing::error!("gateway.keys.file: {error}; the keys stay as they were");
                    }
                }
            }
        }
    }

    /// Takes the keys of `file`, if that is still the configured one.
    fn replace(&self, keys: ApiKeys, file: &Path) {
        let _changing = self.gateways.lock();
        let (configured, before) = (self.configured.load(), self.keys.load());
        if configured.file.as_deref() == Some(file)
            && before.as_deref().is_some_and(|before| *before != keys)
        {
            let keys = Arc::new(keys);
            self.keys.store(Some(Arc::clone(&keys)));
            log_keys(&keys, &configured.by_name);
        }
    }
}

/// Logs how many keys are in force, and which of them have no tenant.
fn log_keys(keys: &ApiKeys, tenants: &HashMap<Arc<str>, Arc<Tenant>>) {
    let mut unknown: Vec<_> = keys.tenants().filter(|name| !tenants.contains_key(*name)).collect();
    unknown.sort_unstable();
    unknown.dedup();
    tracing::info!("{} API keys are in force", keys.len());
    for name in unknown {
        tracing::warn!(
            "gateway.keys.file: tenant `{name}` is not one of gateway.tenants; its keys are refused"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tenant::api_keys::hash_key;

    fn tenants(keys: Option<(&[(&str, &str)], bool)>, names: &[&str]) -> Arc<Tenants> {
        let gateway = Gateway {
            tenants: names.iter().map(|name| Settings::named(*name)).collect(),
            keys: keys
                .map(|(_, required)| forebay_config::Keys { file: "unread".into(), required }),
            ..Gateway::default()
        };
        let keys = keys.map(|(keys, _)| {
            let key = |(tenant, key): &(&str, &str)| forebay_config::Key {
                tenant: (*tenant).to_owned(),
                sha256: forebay_config::parse_hash(&hash_key(key)).expect("a hash"),
                name: None,
            };
            ApiKeys::new(keys.iter().map(key).collect()).expect("right")
        });
        Tenants::new(PreparedTenants { gateway, keys }, Instant::now())
    }

    fn tenant(tenants: &Tenants, headers: &[(&'static str, &str)]) -> String {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, value.parse().expect("a value"));
        }
        match tenants.of(&map) {
            Ok(tenant) => tenant.name.to_string(),
            Err(refusal) => refusal.reason().to_owned(),
        }
    }

    #[tokio::test]
    async fn without_keys_every_client_is_anonymous_whatever_it_shows() {
        let tenants = tenants(None, &[]);
        assert!(!tenants.checks_keys());
        assert_eq!(tenant(&tenants, &[]), "anonymous");
        assert_eq!(tenant(&tenants, &[("authorization", "Bearer for-vllm")]), "anonymous");
    }

    #[tokio::test]
    async fn a_key_identifies_its_tenant_and_a_wrong_one_is_refused() {
        let keys: &[_] = &[("a", "sk-a"), ("b", "sk-b"), ("gone", "sk-gone")];
        for required in [true, false] {
            let tenants = tenants(Some((keys, required)), &["a", "b"]);
            assert!(tenants.checks_keys());
            assert_eq!(tenant(&tenants, &[("authorization", "Bearer sk-a")]), "a");
            assert_eq!(tenant(&tenants, &[("x-api-key", "sk-b")]), "b");
            assert_eq!(tenant(&tenants, &[("authorization", "Bearer sk-x")]), "wrong_key");
            assert_eq!(
                tenant(&tenants, &[("x-api-key", "sk-gone")]),
                "wrong_key",
                "no such tenant"
            );
            let none = if required { "no_key" } else { "anonymous" };
            assert_eq!(tenant(&tenants, &[]), none);
            assert_eq!(tenant(&tenants, &[("authorization", "Basic sk-a")]), none);
            // Some clients also send a key of another service.
            let both = [("authorization", "Bearer other"), ("x-api-key", "sk-b")];
            assert_eq!(tenant(&tenants, &both), "b");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_tenant_that_stays_configured_keeps_its_use_of_its_limits() {
        let keys: &[_] = &[("a", "sk-a")];
        let tenants = tenants(Some((keys, true)), &["a"]);
        let of = |key: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("x-api-key", key.parse().expect("a value"));
            tenants.of(&headers).expect("known")
        };
        let (before, now) = (of("sk-a"), Instant::now());
        let grant = before.admit(now).expect("no limit");
        let mut settings = Settings::named("a");
        settings.max_concurrent = Some(1);
        let gateway = Gateway {
            tenants: vec![settings],
            keys: Some(forebay_config::Keys { file: "unread".into(), required: true }),
            ..Gateway::default()
        };
        let key = forebay_config::parse_hash(&hash_key("sk-new")).expect("a hash");
        let key = forebay_config::Key { tenant: "a".to_owned(), sha256: key, name: None };
        let keys = Some(ApiKeys::new(vec![key]).expect("right"));
        tenants.apply(PreparedTenants { gateway, keys }, now);
        let after = of("sk-new");
        assert!(Arc::ptr_eq(&before, &after));
        assert!(after.admit(now).is_err(), "a request that was admitted before counts");
        drop(grant);
        assert!(after.admit(now).is_ok());
    }

    #[tokio::test]
    async fn keys_of_a_file_that_is_no_longer_configured_are_ignored() {
        let tenants = tenants(Some((&[("a", "sk-a")], true)), &["a"]);
        let key = |key: &str| {
            let sha256 = forebay_config::parse_hash(&hash_key(key)).expect("a hash");
            let key = forebay_config::Key { tenant: "a".to_owned(), sha256, name: None };
            ApiKeys::new(vec![key]).expect("right")
        };
        tenants.replace(key("sk-old"), Path::new("before"));
        assert_eq!(tenant(&tenants, &[("x-api-key", "sk-old")]), "wrong_key");
        tenants.replace(key("sk-new"), Path::new("unread"));
        assert_eq!(tenant(&tenants, &[("x-api-key", "sk-new")]), "a");
    }
}
