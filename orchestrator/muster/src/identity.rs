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
    #[command(flatten)]
    pub load: LoadArgs,
    /// A certificate for names of the site's own; read anew when the file changes
    #[arg(long, value_name = "FILE", requires = "tls_private_key_file")]
    pub tls_cert_file: Option<PathBuf>,
    /// The certificate's key
    #[arg(long, value_name = "FILE", requires = "tls_cert_file")]
    pub tls_private_key_file: Option<PathBuf>,
    /// Encipher objects on disk as this EncryptionConfiguration says; its first key writes, all
    /// read, and a start writes anew what is not by the first
    #[arg(long, value_name = "FILE")]
    pub encryption_provider_config: Option<PathBuf>,
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

/// What is noted, and how many requests are worked on.
#[derive(Debug, Args)]
#[command(next_help_heading = "Audit and load")]
pub(crate) struct LoadArgs {
    /// Note requests as this policy says (audit.k8s.io/v1)
    #[arg(long, value_name = "FILE", requires = "audit_log_path")]
    pub audit_policy_file: Option<PathBuf>,
    /// Where they are noted, a line of JSON each
    #[arg(long, value_name = "FILE", requires = "audit_policy_file")]
    pub audit_log_path: Option<PathBuf>,
    /// Megabytes of the audit log before a new one is begun
    #[arg(long, value_name = "MB", default_value_t = 100)]
    pub audit_log_maxsize: u64,
    /// Old audit logs to keep; 0 keeps all
    #[arg(long, value_name = "COUNT", default_value_t = 10)]
    pub audit_log_maxbackup: usize,
    /// Requests to work on at a time that only read; together with those that write, the seats
    /// that priority levels share
    #[arg(long, value_name = "COUNT", default_value_t = 400)]
    pub max_requests_inflight: u64,
    /// Requests to work on at a time that write
    #[arg(long, value_name = "COUNT", default_value_t = 200)]
    pub max_mutating_requests_inflight: u64,
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
        let load = &self.load;
        let files = load.audit_policy_file.clone().zip(load.audit_log_path.clone());
        let audit = files.map(|(policy_file, log_path)| apiserver::Audit {
            policy_file,
            log_path,
            megabytes_max: load.audit_log_maxsize,
            backups_max: load.audit_log_maxbackup,
        });
        apiserver::Identity {
            issuer: self.service_account_issuer.clone(),
            audiences: self.api_audiences.clone(),
            oidc,
            certificate: self.tls_cert_file.clone().zip(self.tls_private_key_file.clone()),
            encryption_config: self.encryption_provider_config.clone(),
            audit,
            requests_max: load
                .max_requests_inflight
                .saturating_add(load.max_mutating_requests_inflight),
        }
    }
}
