//! What is spoken on both sides, and translation in between.

mod connect;
mod grpc;
mod http;
mod tcp;
mod websocket;
