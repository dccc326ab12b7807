//! All addresses of a DNS name, asked for again and again.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use forebay_config::Dns;
use futures_util::{StreamExt, stream};
use tokio::net::lookup_host;
use tokio::time::sleep;

use crate::{Change, Changes, Member};

/// What the resolver says when a name has no address: a headless Service of no ready pods.
const NONE_THERE: [&str; 3] =
    ["No address associated", "Name or service not known", "nodename nor servname"];

struct Asked {
    dns: Dns,
    known: Option<BTreeSet<SocketAddr>>,
    trouble: Option<String>,
}

pub(crate) fn changes(dns: Dns) -> Changes {
    let asked = Asked { dns, known: None, trouble: None };
    stream::unfold(asked, |mut asked| async move {
        loop {
            if asked.known.is_some() || asked.trouble.is_some() {
                sleep(asked.dns.interval).await;
            }
            let found = lookup_host((asked.dns.host.as_str(), asked.dns.port)).await;
            if let Some(change) = asked.heard(found.map(Iterator::collect)) {
                return Some((change, asked));
            }
        }
    })
    .boxed()
}

impl Asked {
    fn heard(&mut self, found: std::io::Result<BTreeSet<SocketAddr>>) -> Option<Change> {
        let found = match found {
            Ok(found) => found,
            // A resolver that is away says the same of every name. What was known stays, and that
            // nobody answers there the probes find out.
            Err(error) => {
                let none = NONE_THERE.iter().any(|text| error.to_string().contains(text));
                let why = if none { "no addresses".to_owned() } else { error.to_string() };
                let why = format!("{}: {why}", self.dns.host);
                let new = self.trouble.as_ref() != Some(&why);
                self.trouble = Some(why.clone());
                return new.then_some(Change::Trouble(why));
            }
        };
        self.trouble = None;
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
        let mut asked = Asked { dns, known: None, trouble: None };
        let one: BTreeSet<SocketAddr> = ["10.0.0.1:8000".parse().expect("an address")].into();
        let change = asked.heard(Ok(one.clone()));
        assert!(matches!(change, Some(Change::All(found)) if found.len() == 1));
        assert_eq!(asked.heard(Ok(one.clone())), None, "nothing new");
        let away = || Err(std::io::Error::other("timed out"));
        assert_eq!(asked.heard(away()), Some(Change::Trouble("vllm: timed out".into())));
        assert_eq!(asked.heard(away()), None, "told once");
        assert_eq!(asked.heard(Ok(one)), None, "and it is as it was");
    }
}
