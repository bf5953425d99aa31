//! What both sides of a connection agree on beyond the messages themselves.

use std::time::Duration;

use tonic::transport::{Channel, Endpoint, Server};

use crate::access::{Client, ServerTls, ShowToken};
use crate::v1::coordinator_client::CoordinatorClient;
use crate::v1::coordinator_server::{Coordinator, CoordinatorServer};

/// The most payload in one part of a block or a file: large enough that the framing costs nothing, small enough that it
/// stays in a core's cache from one copy to the next, and that a heartbeat on the same connection never waits long behind it.
pub const PART_BYTES: usize = 128 << 10;

/// The most of a message that either side sends in one piece: a whole part. The default of 16 KiB costs a third of the speed.
const FRAME_BYTES: u32 = 2 * PART_BYTES as u32;

/// The largest message that either side accepts: a recipe with the manifest of some fifty thousand blocks.
pub const MESSAGE_BYTES: usize = 4 << 20;

/// How much of one stream may be under way: 128 parts, more than any network between two workers holds.
const STREAM_WINDOW_BYTES: u32 = 16 << 20;

/// How much of a connection may be under way, so that two streams can be full at once.
const CONNECTION_WINDOW_BYTES: u32 = 32 << 20;

/// A quiet connection is probed this often, ...
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(10);

/// ... and given up when a probe stays unanswered for this long. Longer than the control plane's own
/// heartbeat limit, which names the worker and so should speak first.
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(30);

/// How long a TLS handshake may take.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(10);

/// A server with the windows and the keep-alive that [`connect`](crate::connect) expects.
///
/// # Errors
/// A certificate or its key cannot be used.
pub fn server(tls: Option<&ServerTls>) -> Result<Server, tonic::transport::Error> {
    let server = match tls {
        Some(tls) => Server::builder().tls_config(tls.config().timeout(HANDSHAKE_LIMIT))?,
        None => Server::builder(),
    };
    Ok(server
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .max_frame_size(FRAME_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .http2_keepalive_interval(Some(KEEP_ALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEP_ALIVE_TIMEOUT)))
}

/// The service around `handlers`, with the limit on messages that both sides keep.
pub fn service<T: Coordinator>(handlers: T) -> CoordinatorServer<T> {
    CoordinatorServer::new(handlers)
        .max_decoding_message_size(MESSAGE_BYTES)
        .max_encoding_message_size(MESSAGE_BYTES)
}

pub(crate) fn endpoint(endpoint: Endpoint) -> Endpoint {
    endpoint
        .tcp_nodelay(true)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .max_frame_size(FRAME_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
}

pub(crate) fn client(channel: Channel, token: ShowToken) -> Client {
    CoordinatorClient::with_interceptor(channel, token)
        .max_decoding_message_size(MESSAGE_BYTES)
        .max_encoding_message_size(MESSAGE_BYTES)
}
