//! The API keys, known only by their hashes, and the file or folder that they are read from.

use std::collections::HashMap;
use std::fs;
use std::hash::{Hash, Hasher};
use std::io;
use std::path::Path;
use std::sync::Arc;

use forebay_config::{Key, Problems, parse_key_lines, parse_keys};
use http::HeaderMap;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

/// Every key that clients may send.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct ApiKeys {
    tenants: HashMap<KeyHash, Arc<str>>,
}

/// SHA-256 of a key. A randomly keyed hash of it decides which hashes are compared at all, and the
/// comparison takes constant time, so the time of a look-up says nothing about the keys.
#[derive(Clone, Copy, Debug)]
struct KeyHash([u8; 32]);

impl PartialEq for KeyHash {
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl Eq for KeyHash {}

impl Hash for KeyHash {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.hash(state);
    }
}

/// An error in the keys' file or folder.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    /// The file can't be read.
    #[error("cannot read {path}: {error}")]
    Unreadable {
        /// The file, or one in the folder.
        path: String,
        /// The system's error.
        error: io::Error,
    },
    /// Lines that are wrong, each with its number.
    #[error("{0}")]
    Wrong(Problems),
    /// One key belongs to two tenants: its owner would depend on the order.
    #[error("one key is given to two tenants, `{0}` and `{1}`")]
    Shared(Arc<str>, Arc<str>),
}

impl ApiKeys {
    pub(crate) fn new(keys: Vec<Key>) -> Result<Self, KeysError> {
        let mut tenants: HashMap<_, Arc<str>> = HashMap::with_capacity(keys.len());
        for key in keys {
            let tenant = Arc::from(key.tenant);
            match tenants.insert(KeyHash(key.sha256), Arc::clone(&tenant)) {
                Some(other) if other != tenant => return Err(KeysError::Shared(other, tenant)),
                _ => {}
            }
        }
        Ok(Self { tenants })
    }

    /// The tenant that a key belongs to.
    pub(crate) fn tenant(&self, key: &[u8]) -> Option<&Arc<str>> {
        self.tenants.get(&KeyHash(Sha256::digest(key).into()))
    }

    pub(crate) fn len(&self) -> usize {
        self.tenants.len()
    }

    /// The tenants that have keys.
    pub(crate) fn tenants(&self) -> impl Iterator<Item = &Arc<str>> {
        self.tenants.values()
    }
}

/// The keys that a client sends: OpenAI's clients use `authorization: Bearer`, Anthropic's
/// `x-api-key`.
pub(crate) fn client_keys(headers: &HeaderMap) -> impl Iterator<Item = &[u8]> {
    let plain = headers.get_all("x-api-key").iter().map(|value| value.as_bytes().trim_ascii());
    forebay_signals::bearers(headers).chain(plain).filter(|key| !key.is_empty())
}

/// The content of the file or folder. If a later reading is equal, it is not parsed again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum KeySource {
    List(Vec<u8>),
    /// A tenant's name and its file's content.
    Folder(Vec<(String, Vec<u8>)>),
}

/// A larger file is not a list of keys.
const MOST_BYTES: u64 = 64 << 20;

impl KeySource {
    /// Reads a file, or the files of a folder. Kubernetes mounts a Secret as links into a folder
    /// that it swaps, and names what it needs for itself with a dot in front.
    pub(crate) fn read(path: &Path) -> Result<Self, KeysError> {
        let unreadable = |path: &Path, error: io::Error| KeysError::Unreadable {
            path: path.display().to_string(),
            error,
        };
        let at = |error| unreadable(path, error);
        let about = fs::metadata(path).map_err(at)?;
        if !about.is_dir() {
            if about.len() > MOST_BYTES {
                return Err(at(io::ErrorKind::FileTooLarge.into()));
            }
            return Ok(Self::List(fs::read(path).map_err(at)?));
        }
        let mut files = Vec::new();
        for entry in fs::read_dir(path).map_err(at)? {
            let name = entry.map_err(at)?.file_name();
            let path = path.join(&name);
            let Some(name) = name.to_str().filter(|name| !name.starts_with('.')) else { continue };
            if fs::metadata(&path).map_err(|error| unreadable(&path, error))?.is_file() {
                let content = fs::read(&path).map_err(|error| unreadable(&path, error))?;
                files.push((name.to_owned(), content));
            }
        }
        files.sort();
        Ok(Self::Folder(files))
    }

    pub(crate) fn parse(&self, path: &Path) -> Result<ApiKeys, KeysError> {
        let text = |bytes: &[u8], path: &Path| {
            let text = std::str::from_utf8(bytes).map(str::to_owned);
            let not_text = |_| io::Error::new(io::ErrorKind::InvalidData, "not text in UTF-8");
            text.map_err(not_text).map_err(|error| {
                let path = path.display().to_string();
                KeysError::Unreadable { path, error }
            })
        };
        let mut keys = Vec::new();
        match self {
            Self::List(bytes) => {
                let source = path.display().to_string();
                keys = parse_keys(&text(bytes, path)?, &source).map_err(KeysError::Wrong)?;
            }
            Self::Folder(files) => {
                for (tenant, bytes) in files {
                    let path = path.join(tenant);
                    let source = path.display().to_string();
                    let lines = parse_key_lines(&text(bytes, &path)?, tenant, &source);
                    keys.extend(lines.map_err(KeysError::Wrong)?);
                }
            }
        }
        ApiKeys::new(keys)
    }
}

/// The hash of a key, as it is written in the file.
#[must_use]
pub fn hash_key(key: &str) -> String {
    let hash = Sha256::digest(key.as_bytes());
    hash.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(tenant: &str, key: &str) -> Key {
        let sha256 = Sha256::digest(key.as_bytes()).into();
        Key { tenant: tenant.to_owned(), sha256, name: None }
    }

    #[test]
    fn hashes_are_equal_only_if_every_byte_is() {
        let one = [7; 32];
        assert_eq!(KeyHash(one), KeyHash(one));
        for at in 0..32 {
            let mut other = one;
            other[at] ^= 1;
            assert_ne!(KeyHash(one), KeyHash(other), "byte {at}");
        }
    }

    #[test]
    fn a_key_is_found_by_its_hash() {
        let keys = ApiKeys::new(vec![key("a", "sk-1"), key("a", "sk-2"), key("b", "sk-3")]);
        let keys = keys.expect("right");
        let of = |key: &str| keys.tenant(key.as_bytes()).map(|tenant| &**tenant);
        assert_eq!((of("sk-1"), of("sk-2"), of("sk-3")), (Some("a"), Some("a"), Some("b")));
        assert_eq!((of("sk-4"), of(""), of("sk-1 ")), (None, None, None));
        assert_eq!(hash_key("hello")[..8], *"2cf24dba");
    }

    #[test]
    fn one_key_for_two_tenants_is_refused() {
        let wrong = ApiKeys::new(vec![key("a", "sk-1"), key("b", "sk-1")]).expect_err("ambiguous");
        assert_eq!(wrong.to_string(), "one key is given to two tenants, `a` and `b`");
        assert_eq!(ApiKeys::new(vec![key("a", "sk-1"), key("a", "sk-1")]).expect("right").len(), 1);
    }

    #[test]
    fn keys_are_read_as_openais_and_anthropics_clients_send_them() {
        for (name, value, want) in [
            ("authorization", "Bearer sk-1", Some("sk-1")),
            ("authorization", "bearer  sk-1 ", Some("sk-1")),
            ("authorization", "Basic sk-1", None),
            ("authorization", "Bearer ", None),
            ("authorization", "Bearer", None),
            ("x-api-key", "sk-1", Some("sk-1")),
            ("x-api-key", "", None),
            ("api-key", "sk-1", None),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(name, value.parse().expect("a value"));
            let want: Vec<_> = want.iter().map(|key| key.as_bytes()).collect();
            assert_eq!(client_keys(&headers).collect::<Vec<_>>(), want, "{name}: {value}");
        }
    }

    #[test]
    fn a_mounted_secret_is_read_through_its_links() {
        let folder = std::env::temp_dir().join(format!("forebay-keys-{}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        let write = |version: &str, key: &str| {
            fs::create_dir_all(folder.join(version)).expect("a folder");
            fs::write(folder.join(version).join("web"), hash_key(key)).expect("written");
        };
        write("..1", "sk-1");
        std::os::unix::fs::symlink("..1", folder.join("..data")).expect("a link");
        std::os::unix::fs::symlink("..data/web", folder.join("web")).expect("a link");
        let first = KeySource::read(&folder).expect("there");
        let keys = first.parse(&folder).expect("right");
        assert_eq!(keys.tenant(b"sk-1").map(|tenant| &**tenant), Some("web"));
        assert_eq!(KeySource::read(&folder).expect("there"), first);

        write("..2", "sk-2");
        std::os::unix::fs::symlink("..2", folder.join("..new")).expect("a link");
        fs::rename(folder.join("..new"), folder.join("..data")).expect("swapped");
        let second = KeySource::read(&folder).expect("there");
        assert_ne!(second, first);
        let keys = second.parse(&folder).expect("right");
        assert!(keys.tenant(b"sk-1").is_none() && keys.tenant(b"sk-2").is_some());
        fs::remove_dir_all(&folder).expect("ours");
        let gone = KeySource::read(&folder).expect_err("gone").to_string();
        assert!(gone.contains("cannot read"), "{gone}");
    }
}
