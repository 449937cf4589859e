//! Makes the node image from packages and built files; reproducible, with manifest and signature.
