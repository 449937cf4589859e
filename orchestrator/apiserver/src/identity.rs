//! Settings about who may come in and what is noted of it.

use std::path::PathBuf;

/// How identities are proven, and what becomes of their requests.
#[derive(Debug, Clone)]
pub struct Identity {
    /// The issuer that stands in ServiceAccount tokens.
    pub issuer: String,
    /// For whom tokens are that name nobody; empty = the issuer.
    pub audiences: Vec<String>,
    /// An OpenID Connect provider whose tokens are believed.
    pub oidc: Option<Oidc>,
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
        }
    }
}

impl Identity {
    /// For whom tokens are that name nobody.
    pub(crate) fn audiences(&self) -> Vec<String> {
        if self.audiences.is_empty() { vec![self.issuer.clone()] } else { self.audiences.clone() }
    }
}
