//! Who asks, and whether it may: proof, impersonation, permission.
//!
//! Spec: upstream's order of filters. A client certificate comes first, then a bearer token; a
//! token that proves nothing is refused and not taken for anonymous.

use api::{Attributes, Decision, User};
use http::header::AUTHORIZATION;
use http::{HeaderMap, HeaderName};
use objects::Status;

use crate::handle::Peer;
use crate::server::Server;
use crate::token;

const IMPERSONATE_USER: HeaderName = HeaderName::from_static("impersonate-user");
const IMPERSONATE_GROUP: HeaderName = HeaderName::from_static("impersonate-group");
const IMPERSONATE_UID: HeaderName = HeaderName::from_static("impersonate-uid");
/// What comes before the key of an impersonated extra.
const IMPERSONATE_EXTRA: &str = "impersonate-extra-";
const AUTHENTICATION: &str = "authentication.k8s.io";
const SERVICE_ACCOUNTS: &str = "system:serviceaccounts";

/// Who a request is from: who proved it, and whom it is to be taken for.
#[derive(Debug, Clone)]
pub(crate) struct Asker {
    /// Who it counts as.
    pub(crate) user: User,
    /// Who really asks, when that is another.
    pub(crate) impersonator: Option<User>,
}

/// Finds out who a request is from.
///
/// # Errors
///
/// 401 for a proof that does not hold, 403 for an impersonation that is not allowed.
pub(crate) async fn identify(
    server: &Server,
    peer: &Peer,
    headers: &HeaderMap,
) -> Result<Asker, Status> {
    let user = match (&peer.user, bearer(headers)) {
        (Some(user), _) => user.clone(),
        (None, Some(token)) => {
            let proven = token::authenticate(server, token, server.site.tokens.audiences()).await;
            proven
                .map_err(|err| {
                    tracing::debug!(%err, address = %peer.address, "a token is not believed");
                    Status::unauthorized()
                })?
                .user
        }
        (None, None) => User::anonymous(),
    };
    let Some(wanted) = impersonated(headers)? else {
        return Ok(Asker { user, impersonator: None });
    };
    for asked in &wanted.asked {
        authorize(server, &user, asked)?;
    }
    Ok(Asker { user: wanted.user, impersonator: Some(user) })
}

/// The token a request shows.
fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers.get(AUTHORIZATION)?.to_str().ok()?.trim().split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim()).filter(|token| !token.is_empty())
}

/// Decides whether a user may do what is asked.
///
/// # Errors
///
/// 401 for strangers, who learn nothing about what there is; 403 for others.
pub(crate) fn authorize(
    server: &Server,
    user: &User,
    asked: &Attributes,
) -> Result<Decision, Status> {
    let said = api::authorize(user, asked, &server.roles.now(server), server);
    said.map_err(|status| if user.is_anonymous() { Status::unauthorized() } else { status })
}

/// Whom a request wants to be taken for, and what that takes.
#[derive(Debug)]
struct Impersonated {
    user: User,
    asked: Vec<Attributes>,
}

fn impersonated(headers: &HeaderMap) -> Result<Option<Impersonated>, Status> {
    let texts = |name: &HeaderName| -> Vec<String> {
        let all = headers.get_all(name).iter();
        all.filter_map(|value| value.to_str().ok()).map(str::to_owned).collect()
    };
    let first = |name| texts(name).into_iter().next().unwrap_or_default();
    let (name, uid, groups) =
        (first(&IMPERSONATE_USER), first(&IMPERSONATE_UID), texts(&IMPERSONATE_GROUP));
    let mut user = User { name, uid, groups, ..User::default() };
    for key in headers.keys() {
        if let Some(extra) = key.as_str().strip_prefix(IMPERSONATE_EXTRA) {
            user.extra.insert(api::request::decode_path(extra).to_ascii_lowercase(), texts(key));
        }
    }
    if user.name.is_empty() {
        let empty = user.uid.is_empty() && user.groups.is_empty() && user.extra.is_empty();
        return if empty {
            Ok(None)
        } else {
            let why = "requested groups, uid or extra without impersonating a user";
            Err(Status::internal(why))
        };
    }
    let asked = needed(&user);
    Ok(Some(Impersonated { user: complete(user), asked }))
}

/// What one must be allowed to, to be taken for this user.
fn needed(user: &User) -> Vec<Attributes> {
    let on = |group: &str, resource: &str, name: &str| {
        Attributes::on("impersonate", group, resource, name)
    };
    let mut asked = vec![match service_account(&user.name) {
        Some((namespace, name)) => on("", "serviceaccounts", name).in_namespace(namespace),
        None => on("", "users", &user.name),
    }];
    asked.extend(user.groups.iter().map(|group| on("", "groups", group)));
    if !user.uid.is_empty() {
        asked.push(on(AUTHENTICATION, "uids", &user.uid));
    }
    for (key, values) in &user.extra {
        let resource = format!("userextras/{key}");
        asked.extend(values.iter().map(|value| on(AUTHENTICATION, &resource, value)));
    }
    asked
}

/// The groups that come with being someone.
fn complete(mut user: User) -> User {
    if user.groups.is_empty()
        && let Some((namespace, _)) = service_account(&user.name)
    {
        user.groups = vec![SERVICE_ACCOUNTS.to_owned(), format!("{SERVICE_ACCOUNTS}:{namespace}")];
    }
    if user.is_anonymous() {
        user.with_group(api::authority::UNAUTHENTICATED)
    } else if user.is_in(api::authority::UNAUTHENTICATED) {
        user
    } else {
        user.with_group(api::authority::AUTHENTICATED)
    }
}

/// Namespace and name of the ServiceAccount that a user name stands for.
pub(crate) fn service_account(user: &str) -> Option<(&str, &str)> {
    user.strip_prefix("system:serviceaccount:")?.split_once(':')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(headers: &[(&'static str, &str)], expected: Result<Option<(&str, &[&str])>, u16>) {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(HeaderName::from_static(name), value.parse().unwrap());
        }
        let said = impersonated(&map).map_err(|status| status.code);
        let shown = said.map(|found| {
            found.map(|found| {
                let asked = found.asked.iter().map(|asked| {
                    format!("{} {}/{}", asked.qualified_resource(), asked.namespace, asked.name)
                });
                let groups = found.user.groups.join(",");
                (format!("{} {groups}", found.user.name), asked.collect::<Vec<_>>())
            })
        });
        let expected = expected.map(|found| {
            found.map(|(user, asked)| {
                (user.to_owned(), asked.iter().map(|one| (*one).to_owned()).collect())
            })
        });
        assert_eq!(shown, expected);
    }

    #[test]
    fn whoever_impersonates_must_be_allowed_each_part_of_it() {
        check(&[], Ok(None));
        check(
            &[("impersonate-user", "ann")],
            Ok(Some(("ann system:authenticated", &["users /ann"]))),
        );
        check(
            &[
                ("impersonate-user", "ann"),
                ("impersonate-group", "a"),
                ("impersonate-group", "b"),
                ("impersonate-uid", "7"),
                ("impersonate-extra-scopes%2fx", "view"),
            ],
            Ok(Some((
                "ann a,b,system:authenticated",
                &["users /ann", "groups /a", "groups /b", "uids /7", "userextras/scopes/x /view"],
            ))),
        );
        check(
            &[("impersonate-user", "system:serviceaccount:ns:robot")],
            Ok(Some((
                "system:serviceaccount:ns:robot \
                 system:serviceaccounts,system:serviceaccounts:ns,system:authenticated",
                &["serviceaccounts ns/robot"],
            ))),
        );
        check(
            &[("impersonate-user", "system:anonymous")],
            Ok(Some(("system:anonymous system:unauthenticated", &["users /system:anonymous"]))),
        );
        check(&[("impersonate-group", "a")], Err(500));
    }
}
