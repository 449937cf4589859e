//! A cluster that gets a second family of service addresses, and keeps it.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use runtime::client::ListParams;
use runtime::resource::{Resource, SERVICES};
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::answers::{Player, testdata};
use crate::common::{Cluster, soon};

/// Plays a file of requests and answers.
async fn play(cluster: &Cluster, file: &str) {
    let told = Player::new(cluster).await.play(&testdata(&format!("dual/{file}.txt"))).await;
    assert!(told.is_empty(), "{file}:\n{}", told.join("\n"));
}

/// The addresses that services hold, and those that are claimed.
async fn held(cluster: &Cluster) -> (BTreeSet<String>, BTreeSet<String>) {
    let admin = cluster.admin();
    let services = admin.list(&SERVICES, None, &ListParams::default()).await.unwrap().items;
    let held = services.iter().flat_map(|one| one["spec"]["clusterIPs"].as_array().cloned());
    let held = held.flatten().map(|one| one.as_str().unwrap().to_owned());
    let kind = objects::kind::by_gvk("networking.k8s.io/v1", "IPAddress").unwrap();
    let claims =
        admin.list(&Resource::from(kind), None, &ListParams::default()).await.unwrap().items;
    let claims = claims.iter().map(|one| one["metadata"]["name"].as_str().unwrap().to_owned());
    (held.filter(|address| address != "None").collect(), claims.collect())
}

/// Does the server's certificate say that it is reached at this address?
async fn is_known_by(cluster: &Cluster, address: &str) -> bool {
    let config = cluster.kubeconfig();
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(config.ca_pem.as_bytes()) {
        roots.add(certificate.unwrap()).unwrap();
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let socket = TcpStream::connect(config.server.trim_start_matches("https://")).await.unwrap();
    let name = ServerName::IpAddress(address.parse::<IpAddr>().unwrap().into());
    let shaken = TlsConnector::from(Arc::new(tls)).connect(name, socket);
    soon("the handshake", shaken).await.is_ok()
}

#[tokio::test]
async fn a_cluster_gets_a_second_family_and_keeps_it() {
    let mut cluster = Cluster::start().await;
    play(&cluster, "single").await;
    cluster.restart_with("172.21.0.0/24,fd21::/112").await;
    play(&cluster, "second").await;
    let (services, claims) = held(&cluster).await;
    assert!(services.iter().any(|address| address.contains(':')), "{services:?}");
    assert_eq!(services, claims);
    // Ranges are never taken away by a start, and what is held in them stays.
    cluster.restart_with("172.21.0.0/24").await;
    play(&cluster, "back").await;
    assert_eq!(held(&cluster).await, (services, claims));
}

#[tokio::test]
async fn a_cluster_may_have_ipv6_first() {
    let mut cluster = Cluster::start_in_ranges("fd21:0:0:1::/64,172.21.0.0/24").await;
    play(&cluster, "six").await;
    for (address, known) in [("fd21:0:0:1::1", true), ("172.21.0.1", true), ("10.0.0.1", false)] {
        assert_eq!(is_known_by(&cluster, address).await, known, "{address}");
    }
    let (services, claims) = held(&cluster).await;
    assert_eq!(services, claims);
    // A kill between a claim and its service is repaired by the next start in either family.
    cluster.kill_and_restart().await;
    assert_eq!(held(&cluster).await, (services, claims));
}
