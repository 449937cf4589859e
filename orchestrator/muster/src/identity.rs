//! Arguments of `muster master` about who may come in.

use std::path::PathBuf;

use clap::Args;

/// Who may come in, and how it proves who it is.
#[derive(Debug, Args)]
#[command(next_help_heading = "Identity")]
pub(crate) struct IdentityArgs {
    /// The issuer that stands in service accounts' tokens
    #[arg(
        long,
        value_name = "URL",
        default_value = "https://kubernetes.default.svc.cluster.local"
    )]
    pub service_account_issuer: String,
    /// For whom tokens are that name nobody [default: the issuer]
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub api_audiences: Vec<String>,
    /// Believe tokens of this OpenID Connect provider
    #[arg(long, value_name = "URL", requires = "oidc_client_id")]
    pub oidc_issuer_url: Option<String>,
    /// The audience the provider's tokens must name
    #[arg(long, value_name = "ID", requires = "oidc_issuer_url")]
    pub oidc_client_id: Option<String>,
    /// The claim that is the user's name
    #[arg(long, value_name = "CLAIM", default_value = "sub")]
    pub oidc_username_claim: String,
    /// What is put before the provider's user names; `-` for nothing [default: the issuer and #]
    #[arg(long, value_name = "PREFIX", default_value = "", hide_default_value = true)]
    pub oidc_username_prefix: String,
    /// The claim that lists the user's groups
    #[arg(long, value_name = "CLAIM", default_value = "", hide_default_value = true)]
    pub oidc_groups_claim: String,
    /// What is put before the provider's groups
    #[arg(long, value_name = "PREFIX", default_value = "", hide_default_value = true)]
    pub oidc_groups_prefix: String,
    /// A claim that must have this value; may be given more than once
    #[arg(long, value_name = "CLAIM=VALUE", value_parser = pair)]
    pub oidc_required_claim: Vec<(String, String)>,
    /// Authorities for the provider's certificate, PEM [default: those of the system]
    #[arg(long, value_name = "FILE")]
    pub oidc_ca_file: Option<PathBuf>,
}

fn pair(text: &str) -> Result<(String, String), &'static str> {
    let (key, value) = text.split_once('=').ok_or("CLAIM=VALUE is wanted")?;
    Ok((key.to_owned(), value.to_owned()))
}

impl IdentityArgs {
    /// The settings they make.
    pub(crate) fn settings(&self) -> apiserver::Identity {
        let oidc = self.oidc_issuer_url.as_ref().map(|issuer| apiserver::Oidc {
            issuer_url: issuer.clone(),
            client_id: self.oidc_client_id.clone().unwrap_or_default(),
            username_claim: self.oidc_username_claim.clone(),
            username_prefix: self.oidc_username_prefix.clone(),
            groups_claim: self.oidc_groups_claim.clone(),
            groups_prefix: self.oidc_groups_prefix.clone(),
            required_claims: self.oidc_required_claim.clone(),
            ca_file: self.oidc_ca_file.clone(),
        });
        apiserver::Identity {
            issuer: self.service_account_issuer.clone(),
            audiences: self.api_audiences.clone(),
            oidc,
        }
    }
}
