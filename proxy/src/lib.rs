//! weft-proxy: the data plane.
//!
//! The mods stand in the order in which a request meets them. To follow one from `accept` to its upstream, read
//! [`accept`], [`serve`], [`pipeline`], [`layer::target`], [`route`], [`headers`], [`balance`], [`upstream::send`],
//! [`upstream::pool`] and [`body`]; [`exchange`] is what is remembered on the way.

pub mod accept;
pub mod admin;
pub mod app;
pub mod balance;
pub mod body;
pub mod conn;
pub mod endpoint;
pub mod error;
pub mod exchange;
pub mod explain;
pub mod forward;
pub mod headers;
pub mod health;
pub mod identity;
pub mod kernel;
pub mod layer;
pub mod options;
pub mod pipeline;
pub mod proxy_tcp;
pub mod record;
pub mod reply;
pub mod resilience;
pub mod resolve;
pub mod route;
pub mod serve;
pub mod snapshot;
pub mod source;
pub mod telemetry;
pub mod tunnel;
pub mod upgrade;
pub mod upstream;
pub mod wheel;
pub mod worker;
