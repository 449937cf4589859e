//! From request to verdict, without sockets or storage.
//!
//! The API server reads in this order: [`request::parse_request`] says what is asked,
//! [`authority::authorize`] whether it may be asked, [`prepare`] turns a body and the stored
//! object into what is to be stored, [`accept`], [`table`] and [`list`] say in which form it is
//! answered, and [`document`] answers what is no object at all: discovery, OpenAPI, version.
//!
//! Everything is a function of its arguments: the time, the fresh uid and the random suffix of a
//! generated name come with [`prepare::Context`].

pub mod accept;
pub mod admission;
pub mod authority;
pub mod cel;
pub mod custom;
pub mod document;
pub mod list;
pub mod policy;
pub mod prepare;
pub mod protobuf;
pub mod registry;
pub mod remote;
pub mod request;
pub mod said;
pub mod schema;
pub mod service;
pub mod table;
pub mod webhook;
pub mod yaml;

mod apply;
mod convert;
mod decode;
mod defaults;
mod json;
mod patch;
mod validate;

pub use accept::{Form, negotiate, negotiate_resource};
pub use authority::{Attributes, Decision, Facts, User, authorize, decide};
pub use custom::Registry;
pub use document::{Document, render_document, render_document_in, root_paths};
pub use prepare::{
    Body, Change, Context, Prepared, answer, answer_deletion, check_namespace, decide_eviction,
    merge_configuration, prepare_binding, prepare_create, prepare_delete, prepare_patch,
    prepare_update, readmit,
};
pub use request::{
    FieldValidation, Options, Request, ReviewPath, Route, Verb, not_allowed, parse_request,
    parse_request_in,
};
