//! All addresses of a DNS name, looked up at an interval.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use forebay_base::trouble::Trouble;
use forebay_config::Dns;
use futures_util::{StreamExt, stream};
use tokio::net::lookup_host;
use tokio::time::sleep;

use crate::{Change, Changes, Member};

/// The resolver's errors for a name without addresses, such as a headless Service without ready pods.
const NO_ADDRESSES: [&str; 3] =
    ["No address associated", "Name or service not known", "nodename nor servname"];

struct Lookup {
    dns: Dns,
    known: Option<BTreeSet<SocketAddr>>,
    trouble: Trouble,
}

pub(crate) fn changes(dns: Dns) -> Changes {
    let lookup = Lookup { dns, known: None, trouble: Trouble::default() };
    stream::unfold(lookup, |mut lookup| async move {
        loop {
            if lookup.known.is_some() || lookup.trouble.reason().is_some() {
                sleep(lookup.dns.interval).await;
            }
            let found = lookup_host((lookup.dns.host.as_str(), lookup.dns.port)).await;
            if let Some(change) = lookup.take(found.map(Iterator::collect)) {
                return Some((change, lookup));
            }
        }
    })
    .boxed()
}

impl Lookup {
    fn take(&mut self, found: std::io::Result<BTreeSet<SocketAddr>>) -> Option<Change> {
        let found = match found {
            Ok(found) => found,
            // A resolver that is down gives the same error for every name. Known addresses stay;
            // the probes find out which of them no longer answer.
            Err(error) => {
                let none = NO_ADDRESSES.iter().any(|text| error.to_string().contains(text));
                let why = if none { "no addresses".to_owned() } else { error.to_string() };
                let why = format!("{}: {why}", self.dns.host);
                return self.trouble.begins(why.as_str()).then_some(Change::Trouble(why));
            }
        };
        self.trouble.ends();
        if self.known.as_ref() == Some(&found) {
            return None;
        }
        self.known = Some(found.clone());
        let member = |address: SocketAddr| (address.to_string(), Member::at(address));
        Some(Change::All(found.into_iter().map(member).collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resolver_that_fails_takes_nothing_away() {
        let dns = Dns { host: "vllm".into(), port: 8000, interval: std::time::Duration::ZERO };
        let mut lookup = Lookup { dns, known: None, trouble: Trouble::default() };
        let one: BTreeSet<SocketAddr> = ["10.0.0.1:8000".parse().expect("an address")].into();
        let change = lookup.take(Ok(one.clone()));
        assert!(matches!(change, Some(Change::All(found)) if found.len() == 1));
        assert_eq!(lookup.take(Ok(one.clone())), None, "nothing new");
        let away = || Err(std::io::Error::other("timed out"));
        assert_eq!(lookup.take(away()), Some(Change::Trouble("vllm: timed out".into())));
        assert_eq!(lookup.take(away()), None, "reported once");
        assert_eq!(lookup.take(Ok(one)), None, "and it is as it was");
    }
}
