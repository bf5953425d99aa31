//! `coordinator certs`: certificates for TLS, where nobody else makes them.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};

use super::CertsArguments;
use crate::exit::{Ending, answer};
use crate::{network, private_file};

/// Names that a coordinator always has on its own machine, beside that of the machine.
const OWN_NAMES: [&str; 3] = ["localhost", "127.0.0.1", "::1"];

/// Makes an authority, and a certificate for the coordinator and one for all workers. The authority's key is not
/// kept, so that nobody can make more of them.
pub(super) fn run(arguments: &CertsArguments) -> Result<Ending> {
    let folder = &arguments.folder;
    fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
    let authority = authority()?;
    // The coordinator tells the command of workers with the machine's name.
    let own = OWN_NAMES.map(String::from).into_iter().chain([network::host_name()]);
    let names = own.chain(arguments.hosts.iter().cloned());
    let both = [ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    // Workers on the coordinator's machine show its certificate.
    write(folder, "coordinator", names.collect(), &both, &authority.issuer)?;
    write(folder, "worker", Vec::new(), &both[1..], &authority.issuer)?;
    private_file::write_new(&folder.join("ca.pem"), &authority.certificate_pem)?;
    let folder = folder.display();
    answer(&format!(
        "coordinator: --tls-cert {folder}/coordinator.pem --tls-key {folder}/coordinator-key.pem --tls-ca {folder}/ca.pem\n\
         worker:      --tls-cert {folder}/worker.pem --tls-key {folder}/worker-key.pem --tls-ca {folder}/ca.pem"
    ));
    Ok(Ending::Done)
}

struct Authority {
    certificate_pem: String,
    issuer: Issuer<'static, KeyPair>,
}

fn authority() -> Result<Authority> {
    let key = KeyPair::generate().context("draw a key")?;
    let mut parameters = CertificateParams::default();
    parameters.distinguished_name.push(DnType::CommonName, "simsiam authority");
    parameters.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let certificate = parameters.self_signed(&key).context("sign the authority's certificate")?;
    Ok(Authority { certificate_pem: certificate.pem(), issuer: Issuer::new(parameters, key) })
}

fn write(
    folder: &Path,
    owner: &str,
    names: Vec<String>,
    purposes: &[ExtendedKeyUsagePurpose],
    issuer: &Issuer<'_, KeyPair>,
) -> Result<()> {
    let named = names.join(", ");
    let mut parameters =
        CertificateParams::new(names).with_context(|| format!("a certificate for the names {named}"))?;
    parameters.distinguished_name.push(DnType::CommonName, format!("simsiam {owner}"));
    parameters.extended_key_usages = purposes.to_vec();
    let key = KeyPair::generate().context("draw a key")?;
    let certificate =
        parameters.signed_by(&key, issuer).with_context(|| format!("sign the certificate of the {owner}"))?;
    private_file::write_new(&folder.join(format!("{owner}.pem")), &certificate.pem())?;
    private_file::write_new(&folder.join(format!("{owner}-key.pem")), &key.serialize_pem())
}
