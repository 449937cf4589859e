//! Requests for certificates.

use std::collections::BTreeMap;

use crate::{
    condition::{Condition, is_condition_true},
    kind,
    view::{objects, views},
};

objects! {
    /// A request for a certificate.
    kind::CERTIFICATE_SIGNING_REQUEST => pub struct CertificateSigningRequest {
        pub spec: CertificateSigningRequestSpec,
        pub status: CertificateSigningRequestStatus,
    }
}

views! {
    /// What is asked for, and by whom.
    pub struct CertificateSigningRequestSpec {
        /// Base64 of the PEM of the PKCS #10 request.
        pub request: String,
        pub signer_name: String,
        pub expiration_seconds: Option<i64>,
        pub usages: Vec<String>,
        pub username: String,
        pub uid: String,
        pub groups: Vec<String>,
        #[serde(rename = "extra")]
        pub user_extra: BTreeMap<String, Vec<String>>,
    }

    /// What was decided, and the certificate.
    pub struct CertificateSigningRequestStatus {
        pub conditions: Vec<Condition>,
        /// Base64 of the PEM of the certificate.
        pub certificate: String,
    }
}

impl CertificateSigningRequest {
    /// Has someone approved it, and nobody denied it?
    #[must_use]
    pub fn is_approved(&self) -> bool {
        is_condition_true(&self.status.conditions, "Approved") && !self.is_denied()
    }

    /// Has someone denied it?
    #[must_use]
    pub fn is_denied(&self) -> bool {
        is_condition_true(&self.status.conditions, "Denied")
    }

    /// Has the certificate been written?
    #[must_use]
    pub fn is_issued(&self) -> bool {
        !self.status.certificate.is_empty()
    }
}
