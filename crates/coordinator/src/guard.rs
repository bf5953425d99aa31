//! Who may call: the token is asked for before a call is looked at.

use std::sync::{Arc, Mutex, PoisonError};

use protocol::{Token, check_token};
use tokio::time::Instant;
use tonic::service::Interceptor;
use tonic::{Request, Status};

use crate::incoming::Caller;
use crate::rate::Rate;

/// Warnings of refused calls at first, and in a second after that: a flood of strangers must not fill the log.
const WARNINGS: (u32, f64) = (10, 0.1);

/// Refuses calls that do not show the token. Nothing of their messages has been read by then.
#[derive(Clone)]
pub(crate) struct Guard {
    token: Token,
    begun_at: Instant,
    warnings: Arc<Mutex<Rate>>,
}

impl Guard {
    pub(crate) fn new(token: Token) -> Guard {
        let warnings = Arc::new(Mutex::new(Rate::new(WARNINGS.0, WARNINGS.1)));
        Guard { token, begun_at: Instant::now(), warnings }
    }

    fn warn(&self, caller: Option<&Caller>, status: &Status) {
        // A rate is whole even if someone panicked beside it.
        let mut warnings = self.warnings.lock().unwrap_or_else(PoisonError::into_inner);
        if warnings.take(self.begun_at.elapsed()).is_ok() {
            let from = caller.map(|caller| caller.from.to_string()).unwrap_or_default();
            tracing::warn!(from, "a call was refused: {}", status.message());
        }
    }
}

impl Interceptor for Guard {
    fn call(&mut self, request: Request<()>) -> Result<Request<()>, Status> {
        let caller = request.extensions().get::<Caller>();
        match check_token(request.metadata(), &self.token) {
            Ok(()) => {
                if let Some(caller) = caller {
                    caller.is_known();
                }
                Ok(request)
            }
            Err(status) => {
                self.warn(caller, &status);
                Err(status)
            }
        }
    }
}
