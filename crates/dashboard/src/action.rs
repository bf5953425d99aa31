//! What may be asked of a run from the page: the only way in which a dashboard reaches it.

use coordinator::Request;
use protocol::WorkerId;
use serde::{Deserialize, Serialize};

use crate::status::State;

/// What may be asked of a run; in a request, `{"action": "pause"}` or `{"action": "drain", "worker": 3}`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "action", rename_all = "snake_case")]
pub enum Action {
    /// Make no more steps for now; the workers stay.
    Pause,
    /// Go on after a pause.
    Continue,
    /// Save what is there now.
    Save,
    /// Finish the step in hand, save, and end: what one Ctrl-C does.
    Stop,
    /// Let one worker leave after the step in hand; the others go on.
    Drain {
        /// Its id.
        worker: u64,
    },
}

impl From<Action> for Request {
    fn from(action: Action) -> Request {
        match action {
            Action::Pause => Request::Pause,
            Action::Continue => Request::Continue,
            Action::Save => Request::Save,
            Action::Stop => Request::Stop,
            Action::Drain { worker } => Request::Drain(WorkerId(worker)),
        }
    }
}

/// The words of an action for a person.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Words {
    /// On the button.
    pub(crate) label: &'static str,
    /// Before it is done.
    pub(crate) question: &'static str,
    /// Once it was asked for.
    pub(crate) answer: &'static str,
}

impl Action {
    /// Those that concern the whole run, in the order of their buttons.
    pub const OF_THE_RUN: [Action; 4] = [Action::Pause, Action::Continue, Action::Save, Action::Stop];

    /// Its name in a request.
    pub fn name(self) -> &'static str {
        match self {
            Action::Pause => "pause",
            Action::Continue => "continue",
            Action::Save => "save",
            Action::Stop => "stop",
            Action::Drain { .. } => "drain",
        }
    }

    pub(crate) fn words(self) -> Words {
        match self {
            Action::Pause => Words {
                label: "Pause",
                question: "The workers drop the step in hand and wait, with what they hold. It is computed again when \
                           the run goes on; nothing else is lost.",
                answer: "The run pauses.",
            },
            Action::Continue => Words {
                label: "Continue",
                question: "The workers go on where they were.",
                answer: "The run goes on.",
            },
            Action::Save => Words {
                label: "Save",
                question: "A checkpoint is saved after the step in hand, in a pause at once. Nothing else changes.",
                answer: "A checkpoint is saved after the step in hand, in a pause at once.",
            },
            Action::Stop => Words {
                label: "Stop",
                question: "The workers finish the step in hand, the state is saved, and the run ends. It can be \
                           resumed later.",
                answer: "The run stops once the step in hand is done and saved.",
            },
            Action::Drain { .. } => Words {
                label: "Drain",
                question: "It finishes the step in hand and ends; the others take over its shards and go on. If it waits \
                           for a place, it ends at once.",
                answer: "The worker leaves after the step in hand.",
            },
        }
    }

    /// Whether it makes sense in `state`. A second stop would end the run without saving, which nobody asks for by a
    /// button.
    pub(crate) fn is_possible(self, state: State) -> bool {
        match self {
            Action::Pause => matches!(
                state,
                State::Gathering | State::Reuniting | State::Assembling | State::Training | State::Regrouping
            ),
            Action::Continue => state == State::Paused,
            Action::Save => matches!(state, State::Training | State::Paused),
            Action::Stop | Action::Drain { .. } => {
                !state.is_over() && !matches!(state, State::Stopping | State::Unattended)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn actions_have_the_names_that_are_sent() {
        for (action, rest) in Action::OF_THE_RUN
            .into_iter()
            .map(|action| (action, ""))
            .chain([(Action::Drain { worker: 3 }, r#","worker":3"#)])
        {
            let expected = format!(r#"{{"action":"{}"{rest}}}"#, action.name());
            assert_eq!(serde_json::to_string(&action).unwrap(), expected);
        }
        let possible = |state| -> Vec<&str> {
            Action::OF_THE_RUN
                .into_iter()
                .filter(|action| action.is_possible(state))
                .map(Action::name)
                .collect()
        };
        assert_eq!(possible(State::Training), ["pause", "save", "stop"]);
        assert_eq!(possible(State::Paused), ["continue", "save", "stop"]);
        for state in [State::Stopping, State::Completed, State::Stopped, State::Failed, State::Unattended] {
            assert_eq!(possible(state), [""; 0], "{state:?}");
        }
    }
}
