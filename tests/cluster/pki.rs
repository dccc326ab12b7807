//! A certificate authority for the tests, and the certificates that it signs.

use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose,
};

/// The names in the certificates.
const NAMES: [&str; 6] = [
    "localhost",
    "kubernetes",
    "keda-operator.keda.svc",
    "keda-metrics-apiserver.keda.svc",
    "127.0.0.1",
    "10.96.0.1",
];

pub struct Pki {
    pub folder: PathBuf,
    authority: CertifiedIssuer<'static, KeyPair>,
}

impl Pki {
    pub fn create(folder: &Path) -> Self {
        std::fs::create_dir_all(folder).expect("a folder for keys");
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        params.distinguished_name.push(DnType::CommonName, "test-ca");
        let key = KeyPair::generate().expect("a key");
        let authority = CertifiedIssuer::self_signed(params, key).expect("signed");
        let pki = Self { folder: folder.to_owned(), authority };
        pki.write("ca.crt", &pki.authority.pem());
        let accounts = KeyPair::generate().expect("a key");
        pki.write("sa.key", &accounts.serialize_pem());
        pki.write("sa.pub", &accounts.public_key_pem());
        pki
    }

    /// Writes `FILE.crt` and `FILE.key`, for clients and servers.
    pub fn issue(&self, file: &str, common_name: &str, organization: Option<&str>) {
        let names = NAMES.map(str::to_owned).to_vec();
        let mut params = CertificateParams::new(names).expect("good names");
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, common_name);
        if let Some(organization) = organization {
            params.distinguished_name.push(DnType::OrganizationName, organization);
        }
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.authority).expect("signed");
        self.write(&format!("{file}.crt"), &certificate.pem());
        self.write(&format!("{file}.key"), &key.serialize_pem());
    }

    /// A kubeconfig for the holder of `USER.crt`.
    pub fn kubeconfig(&self, user: &str, server: &str) -> PathBuf {
        let folder = self.folder.display();
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: test\n\
             clusters: [{{name: test, cluster: {{server: \"{server}\", certificate-authority: \"{folder}/ca.crt\"}}}}]\n\
             users: [{{name: {user}, user: {{client-certificate: \"{folder}/{user}.crt\", client-key: \"{folder}/{user}.key\"}}}}]\n\
             contexts: [{{name: test, context: {{cluster: test, user: {user}}}}}]\n"
        );
        self.write(&format!("{user}.kubeconfig"), &text)
    }

    pub fn path(&self, file: &str) -> String {
        self.folder.join(file).display().to_string()
    }

    pub fn write(&self, file: &str, text: &str) -> PathBuf {
        let path = self.folder.join(file);
        std::fs::create_dir_all(path.parent().expect("in the folder")).expect("a folder");
        std::fs::write(&path, text).expect("written");
        path
    }
}
