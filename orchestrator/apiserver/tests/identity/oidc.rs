//! People who are known elsewhere: an OpenID Connect provider on loopback, whose tokens our server
//! believes as far as they go.

use std::sync::{Arc, Mutex};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use api::authority::token::render_unsigned;
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _,
    RSA_PKCS1_SHA256, RsaKeyPair, RsaPublicKeyComponents,
};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::task::JoinSet;

use super::{DEFAULT, bearer, binding, post, whoami};
use crate::answers::testdata;
use crate::common::{Cluster, LIMIT, listen_tls};

/// A key pair of the provider.
enum Pair {
    Ecdsa(EcdsaKeyPair),
    Rsa(RsaKeyPair),
}

struct Key {
    id: String,
    algorithm: &'static str,
    pair: Pair,
}

fn encode(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

impl Key {
    fn make(id: &str, algorithm: &'static str) -> Self {
        let random = SystemRandom::new();
        let ecdsa = |how| {
            let der = EcdsaKeyPair::generate_pkcs8(how, &random).unwrap();
            Pair::Ecdsa(EcdsaKeyPair::from_pkcs8(how, der.as_ref(), &random).unwrap())
        };
        let pair = match algorithm {
            "ES256" => ecdsa(&ECDSA_P256_SHA256_FIXED_SIGNING),
            "ES384" => ecdsa(&ECDSA_P384_SHA384_FIXED_SIGNING),
            "RS256" => {
                let text: String = testdata("issuer.txt").lines().skip(1).collect();
                Pair::Rsa(RsaKeyPair::from_pkcs8(&STANDARD.decode(text).unwrap()).unwrap())
            }
            other => panic!("{other}"),
        };
        Self { id: id.to_owned(), algorithm, pair }
    }

    fn public(&self) -> Value {
        let mut key = json!({"kid": self.id, "alg": self.algorithm, "use": "sig"});
        match &self.pair {
            Pair::Ecdsa(pair) => {
                let point = &pair.public_key().as_ref()[1..];
                let (x, y) = point.split_at(point.len() / 2);
                let curve = if self.algorithm == "ES256" { "P-256" } else { "P-384" };
                key["kty"] = json!("EC");
                key["crv"] = json!(curve);
                key["x"] = json!(encode(x));
                key["y"] = json!(encode(y));
            }
            Pair::Rsa(pair) => {
                let public: RsaPublicKeyComponents<Vec<u8>> = pair.public().into();
                key["kty"] = json!("RSA");
                key["n"] = json!(encode(&public.n));
                key["e"] = json!(encode(&public.e));
            }
        }
        key
    }

    fn sign(&self, header: &Value, claims: &Value) -> String {
        let unsigned = render_unsigned(header, claims);
        let (random, message) = (SystemRandom::new(), unsigned.as_bytes());
        let signature = match &self.pair {
            Pair::Ecdsa(pair) => pair.sign(&random, message).unwrap().as_ref().to_vec(),
            Pair::Rsa(pair) => {
                let mut signature = vec![0; pair.public().modulus_len()];
                pair.sign(&RSA_PKCS1_SHA256, &random, message, &mut signature).unwrap();
                signature
            }
        };
        format!("{unsigned}.{}", encode(&signature))
    }

    fn header(&self) -> Value {
        json!({"alg": self.algorithm, "kid": self.id, "typ": "JWT"})
    }
}

/// The provider: what it publishes, and how often it was asked for its keys.
struct Provider {
    issuer: String,
    keys: Arc<Mutex<Vec<Value>>>,
    asked: Arc<Mutex<u32>>,
    serving: JoinSet<()>,
    identity: apiserver::Identity,
    _dir: tempfile::TempDir,
}

impl Provider {
    async fn start() -> Self {
        let (listener, acceptor, authority) = listen_tls().await;
        let issuer = format!("https://localhost:{}", listener.local_addr().unwrap().port());
        let keys = Arc::new(Mutex::new(Vec::new()));
        let asked = Arc::new(Mutex::new(0));
        let mut serving = JoinSet::new();
        let (own, published, counted) = (issuer.clone(), Arc::clone(&keys), Arc::clone(&asked));
        serving.spawn(async move {
            loop {
                let (socket, _) = listener.accept().await.unwrap();
                let Ok(mut stream) = acceptor.accept(socket).await else { continue };
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(stream.read_u8().await.unwrap());
                }
                let body = if head.starts_with(b"GET /.well-known/openid-configuration ") {
                    json!({"issuer": own, "jwks_uri": format!("{own}/keys")})
                } else {
                    *counted.lock().unwrap() += 1;
                    json!({"keys": *published.lock().unwrap()})
                }
                .to_string();
                let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len());
                stream.write_all((head + &body).as_bytes()).await.unwrap();
                stream.flush().await.unwrap();
            }
        });
        let dir = tempfile::tempdir().unwrap();
        let ca_file = dir.path().join("ca.pem");
        std::fs::write(&ca_file, authority.cert_pem()).unwrap();
        let oidc = apiserver::Oidc {
            issuer_url: issuer.clone(),
            client_id: "racks".to_owned(),
            username_claim: "email".to_owned(),
            groups_claim: "groups".to_owned(),
            groups_prefix: "uni:".to_owned(),
            required_claims: vec![("campus".to_owned(), "north".to_owned())],
            ca_file: Some(ca_file),
            ..apiserver::Oidc::default()
        };
        let identity = apiserver::Identity { oidc: Some(oidc), ..apiserver::Identity::default() };
        Self { issuer, keys, asked, serving, identity, _dir: dir }
    }

    fn publish(&self, keys: &[&Key]) {
        *self.keys.lock().unwrap() = keys.iter().map(|key| key.public()).collect();
    }

    /// What is said of Ann, with some of it said otherwise.
    fn claims(&self, other: Value) -> Value {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        let mut claims = json!({"iss": self.issuer, "aud": ["shop", "racks"], "sub": "17",
            "email": "ann@uni.example", "email_verified": true, "groups": ["physics", "staff"],
            "campus": "north", "iat": now, "exp": now + 600});
        for (key, value) in other.as_object().unwrap() {
            match value {
                Value::Null => drop(claims.as_object_mut().unwrap().remove(key)),
                value => claims[key] = value.clone(),
            }
        }
        claims
    }
}

/// Waits until a token is believed or not, as wanted: keys are not fetched at every request.
async fn until(cluster: &Cluster, token: &str, wanted: Result<&str, u16>) {
    let limit = Instant::now() + LIMIT;
    loop {
        let said = whoami(&bearer(cluster, token)).await;
        let said = said.map(|user| user["username"].as_str().unwrap().to_owned());
        if said == wanted.map(str::to_owned) {
            return;
        }
        assert!(Instant::now() < limit, "{said:?} instead of {wanted:?}");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn people_come_in_with_the_tokens_of_their_university() {
    let mut provider = Provider::start().await;
    let keys = ["ES256", "ES384", "RS256"].map(|algorithm| Key::make(algorithm, algorithm));
    provider.publish(&keys.each_ref());
    let cluster = Cluster::start_with(provider.identity.clone()).await;
    for key in &keys {
        let token = key.sign(&key.header(), &provider.claims(json!({})));
        let said = whoami(&bearer(&cluster, &token)).await.unwrap();
        let groups = json!(["uni:physics", "uni:staff", "system:authenticated"]);
        assert_eq!(said, json!({"username": "ann@uni.example", "groups": groups}));
    }
    assert_eq!(*provider.asked.lock().unwrap(), 1, "keys are kept");

    // What her group may do, she may; and reviews by others say the same of her token.
    let key = &keys[0];
    let token = key.sign(&key.header(), &provider.claims(json!({})));
    let (ann, admin) = (bearer(&cluster, &token), cluster.admin());
    let pods = "/api/v1/namespaces/default/pods";
    assert_eq!(ann.raw_get(pods).await.unwrap().status.as_u16(), 403);
    let mut physics = binding("physics", ("ClusterRole", "view"), "uni:physics");
    physics["subjects"][0]["kind"] = json!("Group");
    let bindings = super::resource(&objects::kind::ROLE_BINDING);
    admin.create(&bindings, DEFAULT, &physics).await.unwrap();
    assert_eq!(ann.raw_get(pods).await.unwrap().status.as_u16(), 200);
    let reviews = "/apis/authentication.k8s.io/v1/tokenreviews";
    let (_, said) = post(&admin, reviews, &json!({"spec": {"token": token}})).await;
    assert_eq!(said["status"]["user"]["username"], "ann@uni.example", "{said}");

    // A new key counts once it is published, and an old one until it is no more.
    let new = Key::make("new", "ES256");
    let later = new.sign(&new.header(), &provider.claims(json!({})));
    assert_eq!(whoami(&bearer(&cluster, &later)).await, Err(401));
    provider.publish(&[&new]);
    until(&cluster, &later, Ok("ann@uni.example")).await;
    until(&cluster, &token, Err(401)).await;
    // The provider is not needed for what is known of it.
    provider.serving.shutdown().await;
    until(&cluster, &later, Ok("ann@uni.example")).await;
}

#[tokio::test]
async fn a_token_that_lacks_anything_opens_nothing() {
    let provider = Provider::start().await;
    let key = Key::make("k", "ES256");
    provider.publish(&[&key]);
    let cluster = Cluster::start_with(provider.identity.clone()).await;
    let good = key.sign(&key.header(), &provider.claims(json!({})));
    until(&cluster, &good, Ok("ann@uni.example")).await;
    let with = |other: Value| key.sign(&key.header(), &provider.claims(other));
    let under = |header: Value| key.sign(&header, &provider.claims(json!({})));
    let (signed, signature) = good.rsplit_once('.').unwrap();
    let (header, _) = signed.split_once('.').unwrap();
    let forged = provider.claims(json!({"email": "root@uni.example"})).to_string();
    let unsigned = render_unsigned(&json!({"alg": "none"}), &provider.claims(json!({})));
    for (what, token) in [
        ("it is over", with(json!({"exp": 1000}))),
        ("it has no end", with(json!({"exp": null}))),
        ("it is not valid yet", with(json!({"nbf": 4_000_000_000_u64}))),
        ("it is for others", with(json!({"aud": "shop"}))),
        ("it is for nobody", with(json!({"aud": null}))),
        ("it is by others", with(json!({"iss": "https://elsewhere.example"}))),
        ("it names nobody", with(json!({"email": null}))),
        ("the name is no text", with(json!({"email": 7}))),
        ("the name is not checked", with(json!({"email_verified": false}))),
        ("another campus", with(json!({"campus": "south"}))),
        ("no campus", with(json!({"campus": null}))),
        ("an unknown key", under(json!({"alg": "ES256", "kid": "other"}))),
        ("another algorithm", under(json!({"alg": "ES384", "kid": "k"}))),
        ("a secret that is public", under(json!({"alg": "HS256", "kid": "k"}))),
        ("no signature", format!("{unsigned}.")),
        (
            "a key of another",
            Key::make("k", "ES256").sign(&key.header(), &provider.claims(json!({}))),
        ),
        ("other claims", format!("{header}.{}.{signature}", encode(forged.as_bytes()))),
        ("half of it", signed.to_owned()),
    ] {
        assert_eq!(whoami(&bearer(&cluster, &token)).await, Err(401), "{what}");
    }
    // Groups that are no list of texts are none.
    for (groups, expected) in [
        (json!("one"), json!(["uni:one", "system:authenticated"])),
        (json!(null), json!(["system:authenticated"])),
    ] {
        let said = whoami(&bearer(&cluster, &with(json!({"groups": groups})))).await.unwrap();
        assert_eq!(said["groups"], expected);
    }
}
