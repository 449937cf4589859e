use std::os::unix::fs::PermissionsExt as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::*;

const DAY: Duration = Duration::from_secs(86_400);

fn authority() -> Authority {
    Authority::generate("muster-ca", DAY).unwrap()
}

fn claims(cert_pem: &str) -> Claims {
    parse_certificate(&first_der(cert_pem).unwrap()).unwrap()
}

#[test]
fn an_issued_certificate_names_its_subject_and_addresses() {
    let subject = Subject::new("system:node:a-worker", &["system:nodes"]);
    let sans = Sans { names: vec!["a".into()], addresses: vec!["10.98.1.12".parse().unwrap()] };
    let identity = authority().issue(&subject, &sans, Usage::Both, DAY).unwrap();
    assert_eq!(claims(&identity.cert_pem), Claims { subject, sans });
}

#[test]
fn a_request_is_signed_for_its_subject_and_names() {
    let ca = authority();
    let subject = Subject::new("system:node:b", &["system:nodes"]);
    let sans = Sans { names: vec![], addresses: vec!["fd00::1".parse().unwrap()] };
    let request = Request::generate(&subject, &sans).unwrap();
    let parsed = parse_request(&request.csr_pem).unwrap();
    assert_eq!(parsed, Claims { subject: subject.clone(), sans: sans.clone() });
    let cert = ca.sign(&request.csr_pem, Usage::Both, DAY).unwrap();
    assert_eq!(claims(&cert), Claims { subject, sans });
    let end = not_after(&cert).unwrap();
    assert!(end > SystemTime::now() && end < SystemTime::now() + 2 * DAY);
}

#[test]
fn an_altered_request_is_refused() {
    let request =
        Request::generate(&Subject::new("system:node:b", &["x"]), &Sans::default()).unwrap();
    let mut der = STANDARD
        .decode(request.csr_pem.lines().filter(|l| !l.starts_with('-')).collect::<String>())
        .unwrap();
    let at = der.windows(6).position(|w| w == b"node:b").unwrap();
    der[at + 5] = b'c';
    let altered = format!(
        "-----BEGIN CERTIFICATE REQUEST-----\n{}\n-----END CERTIFICATE REQUEST-----\n",
        STANDARD.encode(der)
    );
    assert!(parse_request(&altered).is_err());
    assert!(authority().sign(&altered, Usage::Client, DAY).is_err());
}

#[test]
fn an_authority_survives_its_files() {
    let dir = tempfile::tempdir().unwrap();
    let ca = authority();
    write_public(&dir.path().join("ca.crt"), ca.cert_pem()).unwrap();
    write_secret(&dir.path().join("ca.key"), &ca.key_pem()).unwrap();
    let mode = fs::metadata(dir.path().join("ca.key")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let again = Authority::load(dir.path()).unwrap();
    assert_eq!(again.fingerprint(), ca.fingerprint());
    assert_eq!(again.fingerprint().len(), 64);
    again.issue(&Subject::new("x", &[]), &Sans::default(), Usage::Client, DAY).unwrap();
}

#[test]
fn a_kubeconfig_reads_back_as_written() {
    let ca = authority();
    let subject = Subject::new("admin", &["system:masters"]);
    let identity = ca.issue(&subject, &Sans::default(), Usage::Client, DAY).unwrap();
    for identity in [Some(identity), None] {
        let config = Kubeconfig {
            server: "https://127.0.0.1:6443".into(),
            ca_pem: ca.cert_pem().into(),
            identity,
        };
        assert_eq!(Kubeconfig::parse(config.render().expose()).unwrap(), config);
    }
}

#[test]
fn secrets_are_not_shown() {
    let identity =
        authority().issue(&Subject::new("a", &[]), &Sans::default(), Usage::Client, DAY).unwrap();
    assert!(!format!("{identity:?}").contains("PRIVATE"));
}

#[test]
fn garbage_is_an_error_and_never_a_panic() {
    for text in ["", "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----"]
    {
        assert!(parse_request(text).is_err());
        assert!(fingerprint(text).is_err());
        assert!(Kubeconfig::parse(text).is_err());
    }
    assert!(parse_certificate(&[0x30, 0x82]).is_err());
}
