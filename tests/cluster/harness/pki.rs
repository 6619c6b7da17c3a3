//! The certificates and keys of a control plane.

use std::{fs, path::Path};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};

/// Writes into a folder: `ca.crt`; `server.crt` and `server.key` for these names and addresses; `admin.crt` and
/// `admin.key` for a user who may do everything; `service-account.key`, which signs tokens, and `service-account.pub`,
/// which verifies them.
pub(crate) fn write(folder: &Path, server: &[&str]) {
    let mut authority = CertificateParams::default();
    authority.distinguished_name.push(DnType::CommonName, "control plane of a test");
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    authority.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let key = KeyPair::generate().unwrap();
    save(folder, "ca.crt", &authority.self_signed(&key).unwrap().pem());
    let issuer = Issuer::new(authority, key);

    let certify = |name: &str, mut params: CertificateParams, usage| {
        params.extended_key_usages = vec![usage];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        let key = KeyPair::generate().unwrap();
        save(folder, &format!("{name}.crt"), &params.signed_by(&key, &issuer).unwrap().pem());
        save(folder, &format!("{name}.key"), &key.serialize_pem());
    };
    let names: Vec<String> = server.iter().map(|name| (*name).to_owned()).collect();
    let mut params = CertificateParams::new(names).unwrap();
    params.distinguished_name.push(DnType::CommonName, "kube-apiserver");
    certify("server", params, ExtendedKeyUsagePurpose::ServerAuth);
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "admin");
    // The group that the API server's own roles allow everything.
    params.distinguished_name.push(DnType::OrganizationName, "system:masters");
    certify("admin", params, ExtendedKeyUsagePurpose::ClientAuth);
    let key = KeyPair::generate().unwrap();
    save(folder, "service-account.key", &key.serialize_pem());
    save(folder, "service-account.pub", &key.public_key_pem());
}

fn save(folder: &Path, name: &str, text: &str) {
    fs::write(folder.join(name), text).unwrap();
}
