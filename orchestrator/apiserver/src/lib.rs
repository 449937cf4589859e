//! The API server: TLS, identities, requests, watches.
