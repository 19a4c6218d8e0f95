//! What a stream needs to know of its protocol: delta, or the state of the world.

use weft_wire::{
    discovery::{ControlPlane, DeltaRequest, Node, SotwRequest},
    prost::Message,
};

use super::{
    exchange::{Answer, Exchange, Now},
    log::Log,
    sotw::Sotw,
    subscription::{Batch, Subscription, TooFarBehind},
    wire::{EncodedDelta, EncodedSotw},
};

/// One type of one stream, in either protocol.
pub(super) trait Protocol: Default + Send + 'static {
    type Request: Message + Default + 'static;
    type Response: Message + 'static;

    fn node(request: &mut Self::Request) -> Option<Node>;
    fn type_url(request: &Self::Request) -> &str;
    fn request(&mut self, request: Self::Request, log: &Log, now: Now) -> Answer;
    fn next(&mut self, log: &Log, hold: bool) -> Result<Option<Batch>, TooFarBehind>;
    fn resend(&mut self, name: &str);
    fn has_changes(&self, log: &Log) -> bool;
    fn is_settled(&self, log: &Log) -> bool;
    /// Has the client what this member has not heard of?
    fn ahead(&self, log: &Log) -> bool;
    fn exchange(&self) -> &Exchange;
    fn exchange_mut(&mut self) -> &mut Exchange;
    fn response(batch: Batch, type_url: &str, nonce: u64, member: &str) -> Self::Response;
}

impl Protocol for Subscription {
    type Request = DeltaRequest;
    type Response = EncodedDelta;

    fn node(request: &mut DeltaRequest) -> Option<Node> {
        request.node.take()
    }

    fn type_url(request: &DeltaRequest) -> &str {
        &request.type_url
    }

    fn request(&mut self, request: DeltaRequest, log: &Log, now: Now) -> Answer {
        self.request(request, log, now)
    }

    fn next(&mut self, log: &Log, hold: bool) -> Result<Option<Batch>, TooFarBehind> {
        self.next(log, hold)
    }

    fn resend(&mut self, name: &str) {
        self.resend(name);
    }

    fn has_changes(&self, log: &Log) -> bool {
        self.has_changes(log)
    }

    fn is_settled(&self, log: &Log) -> bool {
        self.is_settled(log)
    }

    fn ahead(&self, log: &Log) -> bool {
        self.ahead(log)
    }

    fn exchange(&self) -> &Exchange {
        &self.exchange
    }

    fn exchange_mut(&mut self) -> &mut Exchange {
        &mut self.exchange
    }

    fn response(batch: Batch, type_url: &str, nonce: u64, member: &str) -> EncodedDelta {
        EncodedDelta {
            system_version_info: batch.revision.to_string(),
            resources: batch.resources,
            type_url: type_url.into(),
            nonce: nonce.to_string(),
            removed_resources: batch.removed.iter().map(|name| name.to_string()).collect(),
            control_plane: Some(ControlPlane { identifier: member.into() }),
        }
    }
}

impl Protocol for Sotw {
    type Request = SotwRequest;
    type Response = EncodedSotw;

    fn node(request: &mut SotwRequest) -> Option<Node> {
        request.node.take()
    }

    fn type_url(request: &SotwRequest) -> &str {
        &request.type_url
    }

    fn request(&mut self, request: SotwRequest, log: &Log, now: Now) -> Answer {
        self.request(request, log, now)
    }

    fn next(&mut self, log: &Log, hold: bool) -> Result<Option<Batch>, TooFarBehind> {
        self.next(log, hold)
    }

    fn resend(&mut self, name: &str) {
        self.resend(name);
    }

    fn has_changes(&self, log: &Log) -> bool {
        self.has_changes(log)
    }

    fn is_settled(&self, log: &Log) -> bool {
        self.is_settled(log)
    }

    fn ahead(&self, _: &Log) -> bool {
        false
    }

    fn exchange(&self) -> &Exchange {
        &self.exchange
    }

    fn exchange_mut(&mut self) -> &mut Exchange {
        &mut self.exchange
    }

    fn response(batch: Batch, type_url: &str, nonce: u64, member: &str) -> EncodedSotw {
        EncodedSotw {
            version_info: batch.version,
            resources: batch.resources,
            type_url: type_url.into(),
            nonce: nonce.to_string(),
            control_plane: Some(ControlPlane { identifier: member.into() }),
        }
    }
}
