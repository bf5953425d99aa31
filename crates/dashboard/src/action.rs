//! What may be asked of a run from the page: the only way in which a dashboard reaches it.

use serde::{Deserialize, Serialize};

use crate::status::State;

/// What may be asked of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Finish the step in hand, save, and end: what one Ctrl-C does.
    Stop,
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
    /// All of them, in the order of their buttons.
    pub const ALL: [Action; 1] = [Action::Stop];

    /// Its name in a request.
    pub fn name(self) -> &'static str {
        match self {
            Action::Stop => "stop",
        }
    }

    pub(crate) fn words(self) -> Words {
        match self {
            Action::Stop => Words {
                label: "Stop",
                question: "The workers finish the step in hand, the state is saved, and the run ends. It can be \
                           resumed later.",
                answer: "The run stops once the step in hand is done and saved.",
            },
        }
    }

    /// Whether it makes sense in `state`. A second stop would end the run without saving, which nobody asks for by a
    /// button.
    pub(crate) fn is_possible(self, state: State) -> bool {
        match self {
            Action::Stop => !state.is_over() && !matches!(state, State::Stopping | State::Unattended),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn actions_have_the_names_that_are_sent() {
        for action in Action::ALL {
            assert_eq!(serde_json::to_string(&action).unwrap(), format!("{:?}", action.name()));
            assert!(action.is_possible(State::Training) && !action.is_possible(State::Completed));
        }
        assert!(!Action::Stop.is_possible(State::Stopping));
    }
}
