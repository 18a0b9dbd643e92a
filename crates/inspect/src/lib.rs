//! What the proxy does, for people and programs: the read-only API below `/api/v1/`, and the page that uses it.
//!
//! Requests to responses, as functions ([`Api::answer`]). What they tell comes from the agent as values
//! ([`agent::snapshot`]) and from the host through [`Host`]; nothing is changed, and nothing secret is in it. Questions to the
//! agent are small: a listing of many Services asks for them page by page, so that no change waits for it.
//!
//! `docs/openapi.json` describes every document; a test holds it to what is sent.
#![forbid(unsafe_code)]

mod api;
pub mod document;
pub mod findings;
#[cfg(test)]
mod fixture;
mod guard;
mod packet;
mod page;
mod query;
mod rows;
mod select;
mod stream;
mod traffic;
pub mod words;

pub use api::{About, Api, Ask, Body, Host, Sources};
pub use select::{Selector, matches as name_matches};
