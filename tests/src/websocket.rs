//! WebSocket peers on tokio-tungstenite.

use std::net::SocketAddr;

use futures_util::{SinkExt, StreamExt};
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};
pub use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{WebSocketStream, tungstenite::protocol::WebSocketConfig};

/// Echoes text and binary messages.
pub struct WsEcho {
    pub addr: SocketAddr,
    task: JoinHandle<()>,
}

fn limits() -> WebSocketConfig {
    WebSocketConfig::default().max_message_size(None).max_frame_size(None)
}

impl WsEcho {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let accepted = tokio_tungstenite::accept_async_with_config(stream, Some(limits())).await;
                    let Ok(mut socket) = accepted else { return };
                    while let Some(Ok(message)) = socket.next().await {
                        if (message.is_text() || message.is_binary()) && socket.send(message).await.is_err() {
                            return;
                        }
                    }
                });
            }
        });
        Self { addr, task }
    }
}

impl Drop for WsEcho {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Connects through `addr`.
pub async fn connect(addr: SocketAddr, host: &str, path: &str) -> Result<WebSocketStream<TcpStream>, String> {
    let stream = TcpStream::connect(addr).await.map_err(|e| e.to_string())?;
    let url = format!("ws://{host}{path}");
    let connected = tokio_tungstenite::client_async_with_config(url, stream, Some(limits())).await;
    connected.map(|(socket, _)| socket).map_err(|e| e.to_string())
}
