//! Settings about who may come in and what is noted of it.

use std::path::PathBuf;

use crate::RunError;
use crate::audit::AuditLog;
use crate::fair::Fair;
use crate::seal::Seals;

/// How identities are proven, and what becomes of their requests.
#[derive(Debug, Clone)]
pub struct Identity {
    /// The issuer that stands in ServiceAccount tokens.
    pub issuer: String,
    /// For whom tokens are that name nobody; empty = the issuer.
    pub audiences: Vec<String>,
    /// An OpenID Connect provider whose tokens are believed.
    pub oidc: Option<Oidc>,
    /// A certificate and its key that are shown, besides our own, to those who ask for its names.
    pub certificate: Option<(PathBuf, PathBuf)>,
    /// Which objects are enciphered on disk (an EncryptionConfiguration); `None` = none.
    pub encryption_config: Option<PathBuf>,
    /// What is noted of requests; `None` = nothing.
    pub audit: Option<Audit>,
    /// How many requests are worked on at a time; the others wait for their turn.
    pub requests_max: u64,
}

/// What is noted of requests, and where.
#[derive(Debug, Clone)]
pub struct Audit {
    /// The policy, a Policy of audit.k8s.io/v1.
    pub policy_file: PathBuf,
    /// The log; a line of JSON for each event.
    pub log_path: PathBuf,
    /// The log's size before a new one is begun.
    pub megabytes_max: u64,
    /// How many old logs are kept; 0 = all.
    pub backups_max: usize,
}

/// An OpenID Connect provider.
#[derive(Debug, Clone, Default)]
pub struct Oidc {
    /// Its address; must be `https` and equal to the tokens' `iss`.
    pub issuer_url: String,
    /// The audience that tokens must name.
    pub client_id: String,
    /// The claim that is the user's name; empty = `sub`.
    pub username_claim: String,
    /// What is put before user names; empty = the issuer and `#`, unless the claim is `email`;
    /// `-` = nothing.
    pub username_prefix: String,
    /// The claim that lists groups; empty = none.
    pub groups_claim: String,
    /// What is put before groups.
    pub groups_prefix: String,
    /// Claims that must have these values.
    pub required_claims: Vec<(String, String)>,
    /// Authorities for the provider's certificate, PEM; `None` = those of the system.
    pub ca_file: Option<PathBuf>,
}

impl Default for Identity {
    fn default() -> Self {
        Self {
            issuer: "https://kubernetes.default.svc.cluster.local".to_owned(),
            audiences: Vec::new(),
            oidc: None,
            certificate: None,
            encryption_config: None,
            audit: None,
            requests_max: 600,
        }
    }
}

/// What the settings make.
pub(crate) struct Keeping {
    pub(crate) fair: Fair,
    pub(crate) audit: Option<AuditLog>,
    pub(crate) seals: Seals,
}

impl Identity {
    /// Opens the audit log and reads the keys.
    pub(crate) fn open(&self) -> Result<Keeping, RunError> {
        Ok(Keeping {
            fair: Fair::new(self.requests_max),
            audit: self.audit.as_ref().map(AuditLog::open).transpose()?,
            seals: Seals::load(self.encryption_config.as_deref())?,
        })
    }

    /// For whom tokens are that name nobody.
    pub(crate) fn audiences(&self) -> Vec<String> {
        if self.audiences.is_empty() { vec![self.issuer.clone()] } else { self.audiences.clone() }
    }
}
