//! Who a request is: keys → tenants. What is configured and what is read from the keys' file can
//! both change while requests come.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use forebay_config::{ANONYMOUS, Gateway, Tenant as Settings};
use http::HeaderMap;
use parking_lot::Mutex;
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::answer::refusal::Refusal;
use crate::tenant::Tenant;
use crate::tenant::api_keys::{Keys, KeysError, Source, shown};

/// How often the keys' file is looked at.
const LOOK: Duration = Duration::from_secs(2);

/// All tenants, shared by every thread.
pub(crate) struct Tenants {
    known: ArcSwap<Known>,
    /// `None` where keys are not checked.
    keys: ArcSwapOption<Keys>,
    /// How many gateways share the limits. Held by whoever changes anything, so that no change is
    /// made by half of another.
    gateways: Mutex<u32>,
}

struct Known {
    file: Option<PathBuf>,
    required: bool,
    by_name: HashMap<Arc<str>, Arc<Tenant>>,
    anonymous: Arc<Tenant>,
}

/// A configuration's tenants, ready to be used.
pub(crate) struct Prepared {
    gateway: Gateway,
    keys: Option<Keys>,
}

impl Tenants {
    /// Reads what has to be read, so that nothing can fail once it is applied.
    pub(crate) fn prepare(gateway: &Gateway) -> Result<Prepared, KeysError> {
        let read = |file: &PathBuf| Source::read(file)?.parse(file);
        let keys = gateway.keys.as_ref().map(|keys| read(&keys.file)).transpose()?;
        Ok(Prepared { gateway: gateway.clone(), keys })
    }

    pub(crate) fn new(prepared: Prepared, now: Instant) -> Arc<Self> {
        let nobody = Known {
            file: None,
            required: false,
            by_name: HashMap::new(),
            anonymous: Tenant::new(Settings::named(ANONYMOUS), 1, now),
        };
        let tenants = Arc::new(Self {
            known: ArcSwap::from_pointee(nobody),
            keys: ArcSwapOption::empty(),
            gateways: Mutex::new(1),
        });
        tenants.apply(prepared, now);
        tenants
    }

    /// Takes a configuration over. A tenant that stays keeps its books.
    pub(crate) fn apply(&self, prepared: Prepared, now: Instant) {
        let Prepared { gateway, keys } = prepared;
        let shared = self.gateways.lock();
        let (before, gateways) = (self.known.load_full(), *shared);
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
        let (keys, known) =
            (keys.map(Arc::new), Arc::new(Known { file, required, by_name, anonymous }));
        self.known.store(Arc::clone(&known));
        self.keys.store(keys.clone());
        if let Some(keys) = keys {
            tell_of(&keys, &known.by_name);
        }
    }

    /// How many gateways share the limits.
    pub(crate) fn set_gateways(&self, gateways: u32, now: Instant) {
        let gateways = gateways.max(1);
        let mut shared = self.gateways.lock();
        if std::mem::replace(&mut *shared, gateways) == gateways {
            return;
        }
        tracing::info!("limits are shared by {gateways} gateways");
        let known = self.known.load();
        for tenant in known.by_name.values().chain([&known.anonymous]) {
            tenant.share(gateways, now);
        }
    }

    /// Whether clients' keys are meant for the gateway, and so go no further.
    pub(crate) fn checks_keys(&self) -> bool {
        self.keys.load().is_some()
    }

    /// Whose request this is.
    pub(crate) fn of(&self, headers: &HeaderMap) -> Result<Arc<Tenant>, Refusal> {
        let known = self.known.load();
        let Some(keys) = &*self.keys.load() else { return Ok(Arc::clone(&known.anonymous)) };
        let mut shown = shown(headers).peekable();
        if shown.peek().is_none() {
            return match known.required {
                true => Err(Refusal::NoKey),
                false => Ok(Arc::clone(&known.anonymous)),
            };
        }
        let tenant = shown.find_map(|key| keys.tenant(key));
        let tenant = tenant.and_then(|name| known.by_name.get(name));
        tenant.cloned().ok_or(Refusal::WrongKey)
    }

    /// Looks at the keys' file again and again. One that can't be used leaves the keys as they are.
    pub(crate) async fn watch(self: Arc<Self>) {
        let mut ticks = interval(LOOK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut last: Option<Source> = None;
        let mut told = String::new();
        loop {
            ticks.tick().await;
            let Some(file) = self.known.load().file.clone() else { continue };
            let path = file.clone();
            let read = tokio::task::spawn_blocking(move || Source::read(&path)).await;
            let Ok(read) = read else { continue };
            let keys = match read {
                Ok(source) if last.as_ref() == Some(&source) => continue,
                Ok(source) => {
                    let keys = source.parse(&file);
                    last = Some(source);
                    keys
                }
                Err(error) => {
                    last = None;
                    Err(error)
                }
            };
            match keys {
                Ok(keys) => {
                    told.clear();
                    self.replace(keys, &file);
                }
                Err(error) => {
                    let error = error.to_string();
                    if told != error {
                        tracing::error!("gateway.keys.file: {error}; the keys stay as they were");
                        told = error;
                    }
                }
            }
        }
    }

    /// Takes what was read of `file`, if that is still the one that is configured.
    fn replace(&self, keys: Keys, file: &Path) {
        let _changing = self.gateways.lock();
        let (known, before) = (self.known.load(), self.keys.load());
        if known.file.as_deref() == Some(file)
            && before.as_deref().is_some_and(|before| *before != keys)
        {
            let keys = Arc::new(keys);
            self.keys.store(Some(Arc::clone(&keys)));
            tell_of(&keys, &known.by_name);
        }
    }
}

/// Of keys that are in force: who reads it may rely on it.
fn tell_of(keys: &Keys, tenants: &HashMap<Arc<str>, Arc<Tenant>>) {
    let mut unknown: Vec<_> = keys.tenants().filter(|name| !tenants.contains_key(*name)).collect();
    unknown.sort_unstable();
    unknown.dedup();
    tracing::info!("{} API keys are known", keys.len());
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
            Keys::new(keys.iter().map(key).collect()).expect("right")
        });
        Tenants::new(Prepared { gateway, keys }, Instant::now())
    }

    fn who(tenants: &Tenants, headers: &[(&'static str, &str)]) -> String {
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
    async fn without_keys_everybody_is_anonymous_whatever_they_show() {
        let tenants = tenants(None, &[]);
        assert!(!tenants.checks_keys());
        assert_eq!(who(&tenants, &[]), "anonymous");
        assert_eq!(who(&tenants, &[("authorization", "Bearer for-vllm")]), "anonymous");
    }

    #[tokio::test]
    async fn a_key_says_who_it_is_and_a_wrong_one_is_refused() {
        let keys: &[_] = &[("a", "sk-a"), ("b", "sk-b"), ("gone", "sk-gone")];
        for required in [true, false] {
            let tenants = tenants(Some((keys, required)), &["a", "b"]);
            assert!(tenants.checks_keys());
            assert_eq!(who(&tenants, &[("authorization", "Bearer sk-a")]), "a");
            assert_eq!(who(&tenants, &[("x-api-key", "sk-b")]), "b");
            assert_eq!(who(&tenants, &[("authorization", "Bearer sk-x")]), "wrong_key");
            assert_eq!(who(&tenants, &[("x-api-key", "sk-gone")]), "wrong_key", "no such tenant");
            let none = if required { "no_key" } else { "anonymous" };
            assert_eq!(who(&tenants, &[]), none);
            assert_eq!(who(&tenants, &[("authorization", "Basic sk-a")]), none);
            // Some clients send a key of another service along.
            let both = [("authorization", "Bearer other"), ("x-api-key", "sk-b")];
            assert_eq!(who(&tenants, &both), "b");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_tenant_that_stays_configured_keeps_its_books() {
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
        let keys = Some(Keys::new(vec![key]).expect("right"));
        tenants.apply(Prepared { gateway, keys }, now);
        let after = of("sk-new");
        assert!(Arc::ptr_eq(&before, &after));
        assert!(after.admit(now).is_err(), "what was admitted before counts");
        drop(grant);
        assert!(after.admit(now).is_ok());
    }

    #[tokio::test]
    async fn keys_of_a_file_that_is_no_longer_configured_are_not_taken() {
        let tenants = tenants(Some((&[("a", "sk-a")], true)), &["a"]);
        let key = |key: &str| {
            let sha256 = forebay_config::parse_hash(&hash_key(key)).expect("a hash");
            let key = forebay_config::Key { tenant: "a".to_owned(), sha256, name: None };
            Keys::new(vec![key]).expect("right")
        };
        tenants.replace(key("sk-old"), Path::new("before"));
        assert_eq!(who(&tenants, &[("x-api-key", "sk-old")]), "wrong_key");
        tenants.replace(key("sk-new"), Path::new("unread"));
        assert_eq!(who(&tenants, &[("x-api-key", "sk-new")]), "a");
    }
}
