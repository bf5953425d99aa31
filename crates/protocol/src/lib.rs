//! The contract between the coordinator and its workers.
//!
//! [`v1`] is generated from `/proto`, where each call and each field is explained; start there. Beside it
//! stand what both sides must agree on ([`PROTOCOL_VERSION`], [`server`] and [`connect`] with their limits), what
//! they show each other ([`Token`], [`Access`], [`ServerTls`]) and a type for each kind of number that names something ([`WorkerId`], [`Generation`], [`Rank`]).
//!
//! This crate knows nothing of training: it decides nothing and keeps no state.

mod access;
mod checksums;
mod connect;
mod ids;
mod limits;
mod pauses;
mod token;

pub use access::{Access, Client, ClientTls, Credentials, ServerTls, ShowToken, check_token};
pub use connect::{ConnectError, client, connect, endpoint, innermost};
pub use ids::{Generation, Rank, WorkerId};
pub use limits::{MESSAGE_BYTES, PART_BYTES, server, service};
pub use pauses::Pauses;
pub use token::{TOKEN_FILE_VARIABLE, TOKEN_VARIABLE, Token, TokenError};
pub use tonic::transport::Endpoint;

/// Raised when the meaning of a message changes. Coordinator and worker must have the same. Since 2 a generation
/// can follow another, and every message names its run; since 3 every call shows the run's token, workers prove to
/// each other that they know it, and a worker comes back to a coordinator that was restarted; since 4 checkpoints have
/// checksums; since 5 all that is reported and ordered has, and a worker may leave a run that goes on.
pub const PROTOCOL_VERSION: u32 = 5;

/// The messages, the client and the server, generated from `/proto/simsiam/v1/coordinator.proto`.
#[allow(missing_docs, unreachable_pub, clippy::all, clippy::pedantic)]
pub mod v1 {
    tonic::include_proto!("simsiam.v1");
}
