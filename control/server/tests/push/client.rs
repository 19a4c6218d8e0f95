//! A node, as far as the push is concerned.

use std::collections::{BTreeMap, HashMap};

use tokio::{sync::mpsc, time::timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Status, Streaming,
    client::Grpc,
    transport::{Channel, Endpoint},
};
use tonic_prost::ProstCodec;
use weft_store::types::{Command, ObjectKey, Op, Outcome, Put};
use weft_wire::{
    DELTA, SOTW,
    discovery::{Any, DeltaRequest, DeltaResponse, Locality, Node, SotwRequest, SotwResponse},
    prost::Message,
    resource::{ENDPOINT, OBJECT, REJECTED, Rejected},
};

use crate::common::{LIMIT, Running};

/// A stream of a node.
pub struct Client {
    pub requests: mpsc::Sender<DeltaRequest>,
    responses: Streaming<DeltaResponse>,
    /// What it has, by type: names to versions.
    pub has: HashMap<String, BTreeMap<String, String>>,
}

pub fn node(id: &str) -> Node {
    Node {
        id: id.into(),
        user_agent_name: "weft".into(),
        user_agent_version: "1.2.3".into(),
        locality: Some(Locality { zone: "z".into(), ..Locality::default() }),
        ..Node::default()
    }
}

pub async fn channel(address: &str) -> Channel {
    Endpoint::new(format!("http://{address}")).unwrap().connect().await.unwrap()
}

/// A first request for everything of a type.
pub fn first(id: &str, url: &str, has: &BTreeMap<String, String>) -> DeltaRequest {
    DeltaRequest {
        node: Some(node(id)),
        type_url: url.into(),
        initial_resource_versions: has.clone().into_iter().collect(),
        ..DeltaRequest::default()
    }
}

pub fn ack(response: &DeltaResponse) -> DeltaRequest {
    let (type_url, response_nonce) = (response.type_url.clone(), response.nonce.clone());
    DeltaRequest { type_url, response_nonce, ..DeltaRequest::default() }
}

/// Does not take `rejected`: names and reasons.
pub fn nack(response: &DeltaResponse, rejected: &[(&str, &str)]) -> DeltaRequest {
    let detail =
        |(name, reason): &(&str, &str)| Any::of(REJECTED, &Rejected { name: (*name).into(), reason: (*reason).into() });
    let details = rejected.iter().map(detail).collect();
    let error_detail = Some(weft_wire::discovery::Status { code: 3, message: "no".into(), details });
    DeltaRequest { error_detail, ..ack(response) }
}

impl Client {
    /// A stream on which nothing has been asked for.
    pub async fn open(channel: Channel) -> Result<Self, Status> {
        let (requests, receiver) = mpsc::channel(64);
        let mut grpc = Grpc::new(channel).max_decoding_message_size(64 << 20);
        grpc.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
        let codec = ProstCodec::<DeltaRequest, DeltaResponse>::default();
        let request = tonic::Request::new(ReceiverStream::new(receiver));
        let opening = grpc.streaming(request, http::uri::PathAndQuery::from_static(DELTA), codec);
        let responses = timeout(LIMIT, opening).await.expect("headers in time")?.into_inner();
        Ok(Self { requests, responses, has: HashMap::new() })
    }

    /// Asks for everything, as a node does, with what it has.
    pub async fn connect(
        address: &str,
        id: &str,
        has: HashMap<String, BTreeMap<String, String>>,
    ) -> Result<Self, Status> {
        Self::over(channel(address).await, id, has).await
    }

    /// As [`Self::connect`], over a connection of many.
    pub async fn over(
        channel: Channel,
        id: &str,
        has: HashMap<String, BTreeMap<String, String>>,
    ) -> Result<Self, Status> {
        let mut client = Self::open(channel).await?;
        client.has = has;
        for url in [OBJECT, ENDPOINT] {
            let has = client.has.entry(url.into()).or_default();
            let request = first(id, url, has);
            client.requests.send(request).await.unwrap();
        }
        Ok(client)
    }

    /// The next response.
    pub async fn next(&mut self) -> Result<DeltaResponse, Status> {
        let response = timeout(LIMIT, self.responses.message()).await.expect("a response in time");
        response.map(|response| response.expect("no end"))
    }

    /// Takes a response, and says so.
    pub async fn take(&mut self) -> DeltaResponse {
        let response = self.next().await.unwrap();
        self.keep(&response);
        self.requests.send(ack(&response)).await.unwrap();
        response
    }

    pub fn keep(&mut self, response: &DeltaResponse) {
        let has = self.has.entry(response.type_url.clone()).or_default();
        for resource in &response.resources {
            has.insert(resource.name.clone(), resource.version.clone());
        }
        for name in &response.removed_resources {
            has.remove(name);
        }
    }

    /// Takes what comes until it has what is expected.
    pub async fn until(&mut self, url: &str, expected: &[(&str, u64)]) {
        let expected: BTreeMap<String, String> =
            expected.iter().map(|(name, version)| ((*name).to_owned(), version.to_string())).collect();
        while self.has.get(url).is_none_or(|has| *has != expected) {
            self.take().await;
        }
    }

    /// Nothing is on its way: the answer to a question that is always answered comes first.
    pub async fn is_quiet(&mut self) {
        let name = format!("Service/default/none-{}", fastrand::u32(..));
        let request = DeltaRequest {
            type_url: OBJECT.into(),
            resource_names_subscribe: vec![name.clone()],
            ..DeltaRequest::default()
        };
        self.requests.send(request).await.unwrap();
        let response = self.take().await;
        assert_eq!((response.resources.len(), &*response.removed_resources), (0, &[name][..]), "{response:?}");
    }
}

/// A stream in the older protocol.
pub struct SotwClient {
    pub requests: mpsc::Sender<SotwRequest>,
    responses: Streaming<SotwResponse>,
}

impl SotwClient {
    pub async fn open(channel: Channel) -> Self {
        let (requests, receiver) = mpsc::channel(64);
        let mut grpc = Grpc::new(channel);
        grpc.ready().await.unwrap();
        let codec = ProstCodec::<SotwRequest, SotwResponse>::default();
        let request = tonic::Request::new(ReceiverStream::new(receiver));
        let opening = grpc.streaming(request, http::uri::PathAndQuery::from_static(SOTW), codec);
        let responses = timeout(LIMIT, opening).await.expect("headers in time").unwrap().into_inner();
        Self { requests, responses }
    }

    pub async fn next(&mut self) -> SotwResponse {
        let response = timeout(LIMIT, self.responses.message()).await.expect("a response in time");
        response.unwrap().expect("no end")
    }
}

/// Registers an endpoint, as the registry does; the revision.
pub async fn register(member: &Running, service: &str, port: u16, weight: u32) -> u64 {
    let endpoint = weft_control::registry::Endpoint {
        service: service.into(),
        address: "10.0.0.7".into(),
        port: port.into(),
        weight,
        zone: "z".into(),
        draining: false,
    };
    let key = weft_control::registry::key_of(&endpoint.check("default").unwrap());
    write(member, Op::put(Put::spec(key, endpoint.body()))).await
}

pub async fn deregister(member: &Running, service: &str, port: u16) -> u64 {
    let name = format!("{service}/10.0.0.7:{port}");
    write(member, Op::delete(ObjectKey::new("Endpoint", "default", &name))).await
}

pub async fn write(member: &Running, op: Op) -> u64 {
    match member.member.store().write(Command::new("test", 0, op)).await.unwrap() {
        Outcome::Done { revision, changed: 1.. } => revision.0,
        other => panic!("{other:?}"),
    }
}

/// A resource's message.
pub fn message<M: Message + Default>(response: &DeltaResponse, name: &str) -> M {
    let resource = response.resources.iter().find(|resource| resource.name == name).unwrap();
    M::decode(resource.resource.as_ref().unwrap().value.clone()).unwrap()
}
