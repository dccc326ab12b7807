use std::path::PathBuf;

use super::*;

/// A folder of its own, gone at the end.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("forebay-tls-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).expect("a folder");
        Self(path)
    }

    fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.0.join(name);
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("made");
        std::fs::write(&path, content).expect("written");
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn pair() -> (String, String) {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).expect("a pair");
    (made.cert.pem(), made.signing_key.serialize_pem())
}

fn settings(folder: &Folder) -> forebay_config::Tls {
    forebay_config::Tls {
        cert_file: folder.0.join("tls.crt"),
        key_file: folder.0.join("tls.key"),
        client_ca_file: None,
        min_version: TlsVersion::V1_2,
    }
}

#[test]
fn files_that_cannot_be_used_are_reported_with_their_field() {
    let folder = Folder::new("reported");
    let (cert, key) = pair();
    let (_, other_key) = pair();
    for (case, cert_text, key_text, ca, start) in [
        ("empty", "", key.as_str(), None, "gateway.tls.certFile: holds no certificate in PEM"),
        ("no key", cert.as_str(), cert.as_str(), None, "gateway.tls.keyFile: holds no private key"),
        (
            "another's key",
            cert.as_str(),
            other_key.as_str(),
            None,
            "gateway.tls.keyFile: is not the key of the certificate in certFile",
        ),
        (
            "no authority",
            cert.as_str(),
            key.as_str(),
            Some("nothing"),
            "gateway.tls.clientCaFile: holds no certificate in PEM",
        ),
    ] {
        let mut settings = settings(&folder);
        folder.write("tls.crt", cert_text);
        folder.write("tls.key", key_text);
        settings.client_ca_file = ca.map(|text| folder.write("ca.crt", text));
        let error = Tls::load(&settings).err().expect(case).to_string();
        assert!(error.starts_with(start), "{case}: {error}");
    }
    let mut missing = settings(&folder);
    missing.key_file = folder.0.join("none");
    let error = Tls::load(&missing).err().expect("no file").to_string();
    assert!(error.starts_with("gateway.tls.keyFile: cannot read /"), "{error}");
}

#[test]
fn changed_files_are_used_if_they_are_valid() {
    let folder = Folder::new("changed");
    let (cert, key) = pair();
    folder.write("tls.crt", &cert);
    folder.write("tls.key", &key);
    let tls = Tls::load(&settings(&folder)).expect("right files");
    let first = tls.current();
    assert_eq!(read(&tls), Ok(FileChange::None));
    assert!(Arc::ptr_eq(&first, &tls.current()), "nothing changed");

    // The certificate before its key: not used, and not reported yet.
    let (new_cert, new_key) = pair();
    folder.write("tls.crt", &new_cert);
    assert_eq!(read(&tls), Ok(FileChange::Unconfirmed));
    assert!(Arc::ptr_eq(&first, &tls.current()));
    let error = read(&tls).expect_err("it stays so");
    assert!(error.starts_with("gateway.tls.keyFile: is not the key"), "{error}");
    folder.write("tls.key", &new_key);
    assert_eq!(read(&tls), Ok(FileChange::Applied));
    let second = tls.current();
    assert!(!Arc::ptr_eq(&first, &second), "both are there");

    std::fs::remove_file(folder.0.join("tls.key")).expect("was there");
    assert!(read(&tls).is_err());
    assert!(Arc::ptr_eq(&second, &tls.current()), "a missing file changes nothing");
}

/// One reading of the files.
fn read(tls: &Arc<Tls>) -> Result<FileChange, String> {
    let change = tls.read().and_then(|reading| tls.apply(reading.files));
    change.map_err(|error| error.to_string())
}

#[test]
fn a_volume_of_kubernetes_is_followed_through_its_links() {
    let folder = Folder::new("links");
    let (cert, key) = pair();
    folder.write("..1/tls.crt", &cert);
    folder.write("..1/tls.key", &key);
    let link = |to: &str, name: &str| {
        std::os::unix::fs::symlink(to, folder.0.join(name)).expect("a link");
    };
    link("..1", "..data");
    link("..data/tls.crt", "tls.crt");
    link("..data/tls.key", "tls.key");
    let tls = Tls::load(&settings(&folder)).expect("right files");
    let first = tls.current();

    let (cert, key) = pair();
    folder.write("..2/tls.crt", &cert);
    folder.write("..2/tls.key", &key);
    link("..2", "..data_tmp");
    std::fs::rename(folder.0.join("..data_tmp"), folder.0.join("..data")).expect("swapped");
    assert_eq!(read(&tls), Ok(FileChange::Applied));
    assert!(!Arc::ptr_eq(&first, &tls.current()));
}
